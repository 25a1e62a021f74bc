"""The benchmark compares equal work: the usual ways that it measures give the same results as our searches."""

import json

import pytest
import torch
from brute_force import NEG_INF, TableScorer, assert_same_nbest, nbest, random_posteriors, scorer_set

from recog.core.ctc_prefix import CtcPrefixScorer
from recog.core.prefixes import Prefixes
from recog.label_sync import label_sync_search
from recog.options import LabelSyncOptions, TimeSyncOptions
from recog.time_sync import time_sync_search
from tools.benchmark_search import main
from tools.search_benchmark.references import PlainDecoder, RecursivePrefixScorer, usual_time_sync_search
from tools.search_benchmark.setting import EOS, SMALL_SIZES, PrefixCounter, Setting, peaky_posteriors
from tools.search_benchmark.syncs import count_syncs


def make_setting(**kwargs):
    return Setting.make(**{**dict(num_labels=30, batch=2, num_frames=20, seq_len=6, sizes=SMALL_SIZES), **kwargs})


@pytest.mark.parametrize("cut_frames", [True, False])
def test_prefix_scores_as_by_recursion(cut_frames, monkeypatch):
    monkeypatch.setattr(CtcPrefixScorer, "cut_frames", cut_frames)
    ctc, _ = peaky_posteriors(2, 12, 7, seq_len=4, seed=3, margin=1.0)
    ours, usual = CtcPrefixScorer(ctc.log_probs, ctc.lengths, eos_index=EOS), RecursivePrefixScorer(ctc.log_probs)
    state, usual_state = ours.initial_state(), usual.initial_state()
    generator = torch.Generator().manual_seed(1)
    num_hyps = 1
    for _ in range(5):
        scores = ours.score_all(state)
        expected, new_n, new_b = usual.score_all(usual_state)
        expected = expected.masked_fill(expected < -1e9, NEG_INF)
        torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-5)
        parents = torch.randint(0, num_hyps, (2, 3), generator=generator)
        labels = torch.randint(1, 7, (2, 3), generator=generator)
        labels[:, 0] = usual_state[2].gather(1, parents)[:, 0].clamp(min=1)  # a repeated label
        psi = scores[torch.arange(2)[:, None], parents, labels]
        state = ours.advance(state, parents, labels, psi)
        usual_state = usual.select(new_n, new_b, parents, labels)
        num_hyps = 3


def test_frames_without_probability_are_not_needed(monkeypatch):
    """Posteriors so peaky that a hypothesis has probability in some frames only."""
    ctc, labels = peaky_posteriors(2, 60, 9, seq_len=20, seed=3, margin=20.0)
    scores = []
    for cut_frames in (True, False):
        monkeypatch.setattr(CtcPrefixScorer, "cut_frames", cut_frames)
        scorer = CtcPrefixScorer(ctc.log_probs, torch.tensor([60, 44]), eos_index=EOS)
        state = scorer.initial_state()
        for i in range(12):
            psi = scorer.score_all(state)
            label = labels[:, i : i + 1]
            state = scorer.advance(state, torch.zeros_like(label), label, psi[:, 0].gather(1, label))
        scores.append(scorer.score_all(state))
    torch.testing.assert_close(scores[0], scores[1])


def test_plain_decoder_is_the_decoder():
    with torch.no_grad():
        setting = make_setting()
        scorer = setting.attention_scorer()
        beam = 5  # more than one chunk
        labels = torch.randint(1, 30, (2, beam, 4))
        outputs = list(PlainDecoder(setting.decoder, setting.memory).run(labels, [2, 10, 10, 10]))
        state = scorer.initial_state(2)
        log_probs, state = scorer.step(torch.zeros(2, dtype=torch.int64), state, torch.arange(2))
        torch.testing.assert_close(outputs[0], log_probs)
        utt = torch.arange(2).repeat_interleave(beam)
        state = {key: value.repeat_interleave(beam, dim=0) for key, value in state.items()}
        for i in range(1, 4):
            log_probs, state = scorer.step(labels[:, :, i].flatten(), state, utt)
            torch.testing.assert_close(outputs[i], log_probs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("full_sum", [False, True])
@pytest.mark.parametrize("beam_size", [2, 4, 8, 150])
def test_usual_time_sync_search_finds_the_same(beam_size, full_sum):
    scales = dict(att_scale=0.5, ctc_scale=0.4)
    opts = TimeSyncOptions(beam_size=beam_size, recombination="sum" if full_sum else "max", **scales)
    if full_sum:
        opts = TimeSyncOptions(
            beam_size=beam_size, recombination="sum", blank_scale="ctc", repeat_scale="ctc", **scales
        )
    frame_scale = 0.4 if full_sum else 1.0
    for seed in range(4):
        lengths = [5, 3]
        table = TableScorer(4, max_len=5, num_utts=2, seed=seed)
        ctc = random_posteriors(2, 5, 4, seed=seed, lengths=lengths)
        ours = time_sync_search(scorers=scorer_set({"att": table}, {"att": 0.5}, num_labels=4), ctc=ctc, opts=opts)

        class Flat(TableScorer):
            """States as a dict of tensors"""

            def initial_state(self, batch_size):
                return {"history": torch.full((batch_size,), -1)}

            def step(self, prev_labels, state, utt):
                log_probs, state = super().step(prev_labels, {**state, "unused": ()}, utt)
                return log_probs, {"history": state["history"]}

        flat = Flat(4, max_len=5, num_utts=2, seed=seed)
        usual = usual_time_sync_search(
            flat,
            ctc,
            beam_size=beam_size,
            full_sum=full_sum,
            blank_scale=frame_scale,
            repeat_scale=frame_scale,
            **scales,
        )
        for utt in range(2):
            assert_same_nbest(nbest(ours, utt), usual[utt])


def test_usual_time_sync_search_with_decoder():
    """Also with the decoder and posteriors of the benchmark itself."""
    scales = dict(att_scale=0.85, ctc_scale=0.15)
    with torch.no_grad():
        setting = make_setting()
        ours = time_sync_search(
            scorers=setting.scorers(0.85), ctc=setting.ctc, opts=TimeSyncOptions(beam_size=4, **scales)
        )
        usual = usual_time_sync_search(setting.attention_scorer(), setting.ctc, beam_size=4, **scales)
    for utt in range(2):
        assert_same_nbest(nbest(ours, utt), usual[utt])
        assert nbest(ours, utt)[0][0] == tuple(setting.labels[utt].tolist())


def test_decoder_runs_little_more_than_once_per_prefix():
    """Prefixes that come back after they have been pruned are scored again: that is rare."""
    with torch.no_grad():
        setting = make_setting(num_frames=60, seq_len=16)
        counters = []
        scorers = setting.scorers(0.85, wrap=lambda x: counters.append(PrefixCounter(x)) or counters[0])
        opts = TimeSyncOptions(beam_size=8, att_scale=0.85, ctc_scale=0.15)
        result = time_sync_search(scorers=scorers, ctc=setting.ctc, opts=opts)
    assert counters[0].num_rows == int(result.stats["decoder_rows"])
    assert counters[0].num_prefixes <= counters[0].num_rows <= 1.2 * counters[0].num_prefixes
    assert counters[0].num_rows < 0.5 * 2 * 8 * 60  # the usual way runs it for every hypothesis in every frame


def syncs_of_search(search, num_steps):
    """Copies to the host of a search of so many steps"""
    num_frames = num_steps if search == "time_sync" else 2 * num_steps
    setting = make_setting(num_frames=num_frames, seq_len=num_steps // 2)
    reward = 4.0
    by_label = LabelSyncOptions(
        beam_size=4, att_scale=0.8, ctc_scale=0.2, early_stop=False, max_len_ratio=0.5, length_reward=reward
    )
    by_time = TimeSyncOptions(beam_size=4, att_scale=0.85, ctc_scale=0.15)

    def run():
        if search == "time_sync":
            return time_sync_search(scorers=setting.scorers(0.85), ctc=setting.ctc, opts=by_time)
        scorers = setting.scorers(0.8, length_reward=reward)
        return label_sync_search(scorers=scorers, ctc=setting.ctc, frame_lengths=setting.ctc.lengths, opts=by_label)

    with torch.no_grad():
        return sum(count_syncs(run).values())


@pytest.mark.parametrize("search", ["label_sync", "time_sync"])
def test_one_copy_to_the_host_per_step(search):
    """Whether all have ended (label-sync), how many prefixes are new (time-sync): no other question to the device."""
    short, long = syncs_of_search(search, 20), syncs_of_search(search, 40)
    assert 0 < long - short <= 20


def test_syncs_are_seen():
    x = torch.arange(4.0)
    assert count_syncs(lambda: x.sum().item()) == {"item": 1}
    assert count_syncs(lambda: x[x > 1]) == {"index by mask": 1}
    assert count_syncs(lambda: (x.tolist(), x.nonzero(), bool(x.any()))) == {"tolist": 1, "nonzero": 1, "item": 1}
    assert count_syncs(lambda: x.cumsum(0) @ x) == {}


def test_program(tmp_path, capsys):
    """All measurements, on tiny sizes."""
    file = tmp_path / "figures.json"
    sizes = "--small-decoder --vocabs 20 30 --beams 2 3 --batches 1 2 --frames 12 --rounds 1 --growth-frames 8 16 32"
    args = f"{sizes} --prefix-sizes 20 12 3 2 --reference-frames 12 --json {file}"
    assert main(args.split()) == 0
    out = capsys.readouterr().out
    content = json.loads(file.read_text())
    assert set(content["results"]) == {
        "prefix", "labelsync", "timesync", "recombination", "step", "growth", "syncs"
    }  # fmt: skip
    assert "targets met" in out and "V 30 B 2 K 3" in out
    rows = [row for rows in content["results"].values() for row in rows]
    assert all(row["ours"] >= 0 and row["ratio"] >= 0 for row in rows)
    for row in content["results"]["timesync"]:
        if row["what"].startswith("decoder rows"):
            assert row["met"]
    with pytest.raises(SystemExit):
        main(["--beams", "0"])


def test_prefix_memory_does_not_grow_with_frames_times_labels():
    """O(B K (T + V)): no tensor of a step has T V entries of a hypothesis."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.untyped_storage().nbytes() // 4 if x._base is None else 0)
            return out

    batch, num_frames, num_labels, beam = 2, 50, 200, 40
    ctc, _ = peaky_posteriors(batch, num_frames, num_labels, seq_len=10, seed=1)
    scorer = CtcPrefixScorer(ctc.log_probs, ctc.lengths, eos_index=EOS)
    shared = batch * num_frames * num_labels  # the posteriors themselves
    with Largest():
        state = scorer.initial_state()
        psi = scorer.score_all(state)
        top = psi[:, 0].topk(beam, dim=1)
        state = scorer.advance(state, torch.zeros_like(top.indices), top.indices, top.values)
        scorer.score_all(state)
    assert 0 < largest <= max(shared, 2 * batch * beam * (num_frames + num_labels))
    assert largest < batch * beam * num_frames * num_labels / 10


@pytest.mark.parametrize("compact", [True, False])
def test_find_parents(compact, monkeypatch):
    """Random beams with prefixes that go and come back, against a comparison of all labels."""
    monkeypatch.setattr(Prefixes, "compact", compact)
    generator = torch.Generator().manual_seed(5)
    batch, beam = 3, 6
    prefixes = Prefixes(batch, beam, device="cpu")
    alive = [{0: ()}, {0: ()}, {0: ()}]  # slot -> labels
    num_found = num_returned = 0
    for _ in range(60):
        parent, found = prefixes.find_parents(batch)
        for b in range(batch):
            for slot, labels in alive[b].items():
                expected = [s for s, other in alive[b].items() if labels and other == labels[:-1]]
                assert found[b, slot].item() == bool(expected)
                assert not expected or parent[b, slot].item() == expected[0]
                num_found += bool(expected)
                num_returned += bool(expected) and expected[0] > slot
            assert not found[b][[s for s in range(beam) if s not in alive[b]]].any()
        kept = torch.rand(batch, beam, generator=generator) < 0.6
        new, before = [], [dict(hyps) for hyps in alive]
        for b in range(batch):
            alive[b] = {slot: labels for slot, labels in alive[b].items() if kept[b, slot]}
            for slot in range(beam):
                if slot in alive[b] or not before[b]:
                    continue
                kept[b, slot] = False
                source = list(before[b])[int(torch.randint(0, len(before[b]), (), generator=generator))]
                label = int(torch.randint(0, 2, (), generator=generator))
                labels = (*before[b][source], label)
                if labels not in alive[b].values():
                    alive[b][slot] = labels
                    new.append((b, source, label, slot))
        prefixes.keep(kept)
        if new:
            prefixes.extend(*torch.tensor(new).unbind(1))
    assert num_found > 100 and num_returned > 10


@pytest.mark.parametrize("compact", [True, False])
def test_find_parents_compares_labels(compact, monkeypatch):
    """Equal hashes alone do not make a prefix the parent of another one."""
    monkeypatch.setattr(Prefixes, "compact", compact)
    for other_label in (5, 6):
        prefixes = Prefixes(1, 4, device="cpu")
        one, kept = torch.tensor([0]), torch.ones(1, 4, dtype=torch.bool)
        prefixes.extend(one, one, torch.tensor([5]), torch.tensor([1]))
        prefixes.extend(one, torch.tensor([1]), torch.tensor([7]), torch.tensor([2]))
        prefixes.labels[0, 2, 0] = other_label  # 6: another label sequence, with the same hash
        kept[0, 1] = False
        prefixes.keep(kept)
        assert prefixes.find_parents(1)[1].tolist() == [[False] * 4]
        prefixes.extend(one, one, torch.tensor([5]), torch.tensor([3]))  # comes back
        parent, found = prefixes.find_parents(1)
        assert found.tolist() == [[False, False, other_label == 5, True]]
        assert parent[0, 3] == 0 and (other_label == 6 or parent[0, 2] == 3)
