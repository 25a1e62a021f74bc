"""
The measurements of tools/benchmark_search.py. Each returns rows for one table.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import returnn.frontend as rf
import torch
from returnn.tensor import Dim
from returnn.tensor import Tensor as RfTensor
from torch import Tensor

from recog.core.ctc_prefix import CtcPrefixScorer
from recog.core.prefixes import Prefixes
from recog.label_sync import label_sync_search
from recog.options import LabelSyncOptions, TimeSyncOptions
from recog.scorers.base import expand_rows
from recog.scorers.combined import ScorerSet
from recog.time_sync import time_sync_search

from . import espnet_peers
from .references import PlainDecoder, RecursivePrefixScorer, usual_time_sync_search
from .setting import EOS, LS960_SIZES, PrefixCounter, Setting, peaky_posteriors
from .syncs import count_syncs
from .timing import alternate, cpu_seconds, peak_memory, timed_methods

__all__ = ["EXPERIMENTS", "Row", "Sizes"]

_SHORT = 0.05  # seconds: what is shorter is repeated within one measurement


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    vocabs: tuple[int, ...] = (1057, 10025)
    beams: tuple[int, ...] = (4, 12, 32)
    batches: tuple[int, ...] = (1, 8)
    num_frames: int = 167
    decoder: dict[str, int] = field(default_factory=lambda: dict(LS960_SIZES))
    prefix: tuple[int, int, int, int] = (10025, 250, 12, 4)
    """V, T, K, B of the measurement of prefix scores alone."""
    growth_frames: tuple[int, ...] = (100, 200, 400, 800, 1600)
    rounds: int = 3
    max_reference_frames: int = 20
    """The usual time-synchronous search is only run for so many frames: each costs the same."""

    def seq_len(self, num_labels: int) -> int:
        """:return: labels of an utterance: of 10 s of speech, 45 of a vocabulary of 1k, 30 of one of 10k"""
        per_frame = 45 / 167 if num_labels < 5000 else 30 / 167
        return max(1, round(per_frame * self.num_frames))


@dataclass
class Row:
    """One comparison. Times are CPU seconds."""

    what: str
    sizes: str
    ours: float
    other: float | None
    ratio: float
    target: float | None = None
    higher_is_better: bool = False
    unit: str = "ms"
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one"""
        if self.target is None:
            return None
        return self.ratio >= self.target if self.higher_is_better else self.ratio <= self.target


def _repeats(method: Callable[[], object]) -> int:
    """:return: how often to repeat a short method. Also warms up."""
    method()
    return max(1, round(_SHORT / max(1e-6, cpu_seconds(method))))


def prefix_scores(sizes: Sizes) -> Iterator[Row]:
    """CTC prefix scores of all labels, and the states of the survivors: one step of a search."""
    vocab, num_frames, beam, batch = sizes.prefix
    ctc, labels = peaky_posteriors(batch, num_frames, vocab, seq_len=max(2, num_frames // 6), seed=1)
    ours = CtcPrefixScorer(ctc.log_probs, ctc.lengths, eos_index=EOS)
    usual = RecursivePrefixScorer(ctc.log_probs)
    parents = torch.arange(beam).expand(batch, beam)
    # Hypotheses in the middle of the utterance: what the posteriors say, and a last label of their own.
    state = ours.initial_state()
    for i in range(labels.shape[1] // 2):
        psi = ours.score_all(state)
        psi[:, :, EOS] = -math.inf
        last = i == labels.shape[1] // 2 - 1
        label = psi[:, 0].topk(beam, dim=1).indices if last else labels[:, i : i + 1]
        parent = torch.zeros_like(label)
        state = ours.advance(state, parent, label, psi[:, 0].gather(1, label))
    # The same forward variables, as the usual way has them.
    usual_state = (
        state.n[:, :, 1:].permute(2, 0, 1).float().clamp(min=-1e10),
        state.b[:, :, 1:].permute(2, 0, 1).float().clamp(min=-1e10),
        state.last,
    )

    def our_step() -> Tensor:
        scores = ours.score_all(state)
        best = scores.max(dim=2)
        return ours.advance(state, parents, best.indices, best.values).psi

    def usual_step() -> Tensor:
        scores, n, b = usual.score_all(usual_state)
        best = scores.max(dim=2)
        usual.select(n, b, parents, best.indices)
        return best.values

    torch.testing.assert_close(our_step().float(), usual_step(), atol=1e-2, rtol=1e-4)  # frame by frame in float32
    repeats = {"ours": _repeats(our_step), "usual": 1}
    seconds = alternate({"ours": our_step, "usual": usual_step}, rounds=sizes.rounds, repeats=repeats, warm_up=False)
    name = f"V {vocab} T {num_frames} B {batch} K {beam}"
    ratio = seconds["usual"] / seconds["ours"]
    yield Row("step: usual / ours", name, seconds["ours"], seconds["usual"], ratio, 200.0, higher_is_better=True)
    # At most three [B, K, V] float32 and 16 [B, K, T+1] float64 at a time.
    bound = batch * beam * (3 * 4 * vocab + 16 * 8 * (num_frames + 1))
    memory = {"ours": peak_memory(our_step), "usual": peak_memory(usual_step)}
    if memory["ours"] is not None:
        mib = {key: value / 2**20 for key, value in memory.items()}
        yield Row(
            "peak memory / 4 B·K·(3 V + 32 T)",
            name,
            mib["ours"],
            mib["usual"],
            memory["ours"] / bound,
            1.0,
            unit="MiB",
        )


def label_sync(sizes: Sizes) -> Iterator[Row]:
    """Label-synchronous search against its own decoder steps alone."""
    for batch, vocab, beam, setting in _settings(sizes):
        # The decoder is random: it costs log V per label, and a reward of that size makes up for it. So the search
        # follows the posteriors to their end and no further, as with a trained model.
        opts = LabelSyncOptions(
            beam_size=beam, att_scale=0.8, ctc_scale=0.2, length_reward=round(0.8 * math.log(vocab), 2)
        )
        plain = PlainDecoder(setting.decoder, setting.memory)

        def search(setting=setting, opts=opts):
            scorers = setting.scorers(opts.att_scale, length_reward=opts.length_reward)
            return label_sync_search(scorers=scorers, ctc=setting.ctc, frame_lengths=setting.ctc.lengths, opts=opts)

        counter: list[PrefixCounter] = []
        scorers = setting.scorers(
            opts.att_scale,
            length_reward=opts.length_reward,
            wrap=lambda x, counter=counter: counter.append(PrefixCounter(x)) or counter[0],
        )
        result = label_sync_search(scorers=scorers, ctc=setting.ctc, frame_lengths=setting.ctc.lengths, opts=opts)
        row_counts = [len(rows) for rows in counter[0].seen]
        labels = torch.randint(1, vocab, (batch, beam, len(row_counts)))

        def floor(plain=plain, labels=labels, row_counts=row_counts) -> None:
            for _ in plain.run(labels, row_counts):
                pass

        seconds = alternate({"ours": search, "floor": floor}, rounds=sizes.rounds, warm_up=False)
        yield Row(
            "search / decoder steps",
            f"V {vocab} B {batch} K {beam}",
            seconds["ours"] / batch,
            seconds["floor"] / batch,
            seconds["ours"] / seconds["floor"],
            1.2,
            note=f"{len(row_counts)} steps, {_right(result.labels, result.label_lengths, setting)}",
        )


def time_sync(sizes: Sizes) -> Iterator[Row]:
    """Time-synchronous search against the usual way and, where installed, ESPnet's."""
    published = dict(att_scale=0.85, ctc_scale=0.15)
    scaled = dict(att_scale=0.5, ctc_scale=0.5)
    for batch, vocab, beam, setting in _settings(sizes):
        name = f"V {vocab} B {batch} K {beam}"
        opts = TimeSyncOptions(beam_size=beam, **published)
        num_frames = min(sizes.max_reference_frames, sizes.num_frames)

        def search(opts=opts, setting=setting):
            return time_sync_search(scorers=setting.scorers(opts.att_scale), ctc=setting.ctc, opts=opts)

        def usual(setting=setting, beam=beam, num_frames=num_frames) -> None:
            usual_time_sync_search(
                setting.attention_scorer(), setting.ctc, beam_size=beam, max_frames=num_frames, **published
            )

        counter: list[PrefixCounter] = []
        scorers = setting.scorers(
            opts.att_scale, wrap=lambda x, counter=counter: counter.append(PrefixCounter(x)) or counter[0]
        )
        result = time_sync_search(scorers=scorers, ctc=setting.ctc, opts=opts)
        seconds = alternate({"ours": search, "usual": usual}, rounds=sizes.rounds, warm_up=False)
        usual_seconds = seconds["usual"] * sizes.num_frames / num_frames
        star = "" if num_frames == sizes.num_frames else f", usual: from {num_frames} frames"
        yield Row(
            "usual / ours",
            name,
            seconds["ours"] / batch,
            usual_seconds / batch,
            usual_seconds / seconds["ours"],
            10.0 if vocab > 5000 else None,
            higher_is_better=True,
            note=_right(result.labels, result.label_lengths, setting) + star,
        )
        rows, prefixes = counter[0].num_rows, counter[0].num_prefixes
        note = f"of {batch * beam * sizes.num_frames} frames x hypotheses"
        yield Row("decoder rows / prefixes", name, rows, prefixes, rows / prefixes, 1.2, unit="", note=note)

        if not espnet_peers.have_espnet():
            continue
        all_scaled = TimeSyncOptions(
            beam_size=beam, recombination="sum", blank_scale="ctc", repeat_scale="ctc", eos_at_end=False, **scaled
        )

        def scaled_search(opts=all_scaled, setting=setting):
            return time_sync_search(scorers=setting.scorers(opts.att_scale), ctc=setting.ctc, opts=opts)

        def peer(setting=setting, beam=beam):
            return espnet_peers.time_sync_search(setting, 0, beam_size=beam, **scaled)  # one utterance

        result = scaled_search()
        labels, score = peer()
        same = labels == tuple(result.labels[0, 0, : int(result.label_lengths[0, 0])].tolist())
        seconds = alternate({"ours": scaled_search, "espnet": peer}, rounds=sizes.rounds, warm_up=False)
        ours = seconds["ours"] / batch
        note = "same best hypothesis" if same else f"other best hypothesis ({score:.2f}, {result.scores[0, 0]:.2f})"
        yield Row("ours / ESPnet", name, ours, seconds["espnet"], ours / seconds["espnet"], 0.5, note=note)


def recombination(sizes: Sizes) -> Iterator[Row]:
    """All that finds out which prefix of a beam extends which, inside of a time-synchronous search."""
    batch, beam, vocab = 16, 64, min(sizes.vocabs)
    ctc, _ = peaky_posteriors(batch, sizes.num_frames, vocab, seq_len=sizes.seq_len(vocab), seed=1)
    opts = TimeSyncOptions(beam_size=beam, att_scale=0.0, ctc_scale=1.0)
    scorers = ScorerSet({}, {}, num_labels=vocab, eos_index=EOS)
    matching: list[float] = []
    storing: list[float] = []
    for _ in range(3 * sizes.rounds):
        with (
            timed_methods(Prefixes, ["find_parents", "keep", "adopt"]) as match_seconds,
            timed_methods(Prefixes, ["extend"]) as extend_seconds,
        ):
            time_sync_search(scorers=scorers, ctc=ctc, opts=opts)
        matching.append(sum(match_seconds.values()) / sizes.num_frames)
        storing.append((extend_seconds["extend"] - match_seconds["adopt"]) / sizes.num_frames)
    name = f"V {vocab} B {batch} K {beam} T {sizes.num_frames}"
    ms = 1000 * statistics.median(matching)
    yield Row("matching, per frame [ms]", name, ms / 1000, None, ms, 0.2)
    ms = 1000 * statistics.median(storing)
    yield Row("storing new prefixes, per frame [ms]", name, ms / 1000, None, ms)


def decoder_step(sizes: Sizes) -> Iterator[Row]:
    """The decoder step of the scorer (plain torch) against that of the frontend's module, and the plain one."""
    for batch, vocab, beam, setting in _settings(sizes):
        if beam != 12 and 12 in sizes.beams:
            continue
        decoder, memory = setting.decoder, setting.memory
        scorer, plain = setting.attention_scorer(), PlainDecoder(decoder, memory)
        utt = torch.arange(batch).repeat_interleave(beam)
        state = expand_rows(scorer.initial_state(batch), beam)
        labels = torch.randint(1, vocab, (batch * beam,))
        _, state = scorer.step(labels, state, utt)
        own_batch_dim, beam_dim = memory.enc.dims[0], Dim(beam, name="beam")
        rf_state = decoder.default_initial_state(batch_dims=[own_batch_dim, beam_dim], memory=memory)
        rf_labels = RfTensor(
            "label",
            dims=[own_batch_dim, beam_dim],
            dtype="int64",
            sparse_dim=decoder.target_dim,
            raw_tensor=labels.view(batch, beam),
        )

        def rf_step(decoder=decoder, rf_labels=rf_labels, memory=memory, rf_state=rf_state) -> None:
            logits, _ = decoder.step(decoder.embed(rf_labels), memory=memory, state=rf_state)
            rf.log_softmax(logits, axis=decoder.target_dim)

        def our_step(scorer=scorer, labels=labels, state=state, utt=utt) -> None:
            scorer.step(labels, state, utt)

        def plain_step(plain=plain, labels=labels, state=state) -> None:
            embed = torch.nn.functional.embedding(labels, plain.w["target_embed.weight"])
            plain.step(embed, state["h"], state["c"], state["att"], state["beta"])

        methods = {"ours": our_step, "rf": rf_step, "plain": plain_step}
        repeats = {key: _repeats(method) for key, method in methods.items()}
        seconds = alternate(methods, rounds=3 * sizes.rounds, repeats=repeats, warm_up=False)
        name = f"V {vocab} B {batch} K {beam}"
        ours = seconds["ours"]
        yield Row("frontend / scorer", name, ours, seconds["rf"], seconds["rf"] / ours)
        yield Row("scorer / plain", name, ours, seconds["plain"], ours / seconds["plain"], 1.2)


def growth(sizes: Sizes) -> Iterator[Row]:
    """Time of time-synchronous search over T, of label-synchronous search over the number of labels."""
    vocab, beam = min(sizes.vocabs), min(12, max(sizes.beams))
    frames = sizes.growth_frames
    seq_len = max(1, min(frames) // 4)
    settings = {
        t: Setting.make(num_labels=vocab, batch=1, num_frames=t, seq_len=seq_len, sizes=sizes.decoder) for t in frames
    }
    opts = TimeSyncOptions(beam_size=beam, att_scale=0.0, ctc_scale=1.0)

    def by_time(t: int) -> Callable[[], object]:
        setting = settings[t]
        scorers = setting.scorers(0.0)
        return lambda: time_sync_search(scorers=scorers, ctc=setting.ctc, opts=opts)

    yield from _growth_rows(
        {t: by_time(t) for t in frames}, f"V {vocab} B 1 K {beam}, {seq_len} labels", "time-sync, CTC only, T", sizes
    )
    with_decoder = TimeSyncOptions(beam_size=beam, att_scale=0.85, ctc_scale=0.15)

    def by_time_with_decoder(t: int) -> Callable[[], object]:
        setting = settings[t]
        scorers = setting.scorers(with_decoder.att_scale)
        return lambda: time_sync_search(scorers=scorers, ctc=setting.ctc, opts=with_decoder)

    yield from _growth_rows(
        {t: by_time_with_decoder(t) for t in frames}, f"V {vocab} B 1 K {beam}, {seq_len} labels", "time-sync, T", sizes
    )

    # Labels: always the same frames.
    t = max(frames) // 4
    lengths = [max(1, t // 2 >> shift) for shift in (4, 3, 2, 1, 0)]
    reward = round(0.8 * math.log(vocab), 2)
    label_opts = LabelSyncOptions(beam_size=beam, att_scale=0.8, ctc_scale=0.2, length_reward=reward)

    def by_label(n: int) -> Callable[[], object]:
        setting = Setting.make(num_labels=vocab, batch=1, num_frames=t, seq_len=n, sizes=sizes.decoder)
        scorers = setting.scorers(0.8, length_reward=reward)
        return lambda: label_sync_search(
            scorers=scorers, ctc=setting.ctc, frame_lengths=setting.ctc.lengths, opts=label_opts
        )

    yield from _growth_rows(
        {n: by_label(n) for n in dict.fromkeys(lengths)}, f"V {vocab} B 1 K {beam} T {t}", "label-sync, labels", sizes
    )


def _growth_rows(methods: dict[int, Callable[[], object]], name: str, what: str, sizes: Sizes) -> Iterator[Row]:
    """Rows with the time per unit relative to that of the smallest: 1 is linear growth."""
    seconds = alternate({str(n): method for n, method in methods.items()}, rounds=sizes.rounds, warm_up=False)
    smallest = min(methods)
    base = seconds[str(smallest)] / smallest
    for n in methods:
        per_unit = seconds[str(n)] / n
        yield Row(
            f"{what} {n}", name, seconds[str(n)], None, per_unit / base, 1.2, note=f"{1e3 * per_unit:.2f} ms each"
        )


def syncs(sizes: Sizes) -> Iterator[Row]:
    """How often the step loops wait for the device: operations that copy a number to the host."""
    vocab = min(sizes.vocabs)
    for batch in sizes.batches:
        counts = {}
        for num_frames in (20, 40):
            setting = Setting.make(
                num_labels=vocab, batch=batch, num_frames=num_frames, seq_len=num_frames // 4, sizes=sizes.decoder
            )
            counts["time-sync", num_frames] = count_syncs(
                lambda setting=setting: time_sync_search(
                    scorers=setting.scorers(0.85),
                    ctc=setting.ctc,
                    opts=TimeSyncOptions(beam_size=4, att_scale=0.85, ctc_scale=0.15),
                )
            )
            reward = 0.8 * math.log(vocab)
            opts = LabelSyncOptions(
                beam_size=4, att_scale=0.8, ctc_scale=0.2, length_reward=reward, early_stop=False, max_len_ratio=0.5
            )
            counts["label-sync", num_frames] = count_syncs(
                lambda setting=setting, opts=opts: label_sync_search(
                    scorers=setting.scorers(0.8, length_reward=opts.length_reward),
                    ctc=setting.ctc,
                    frame_lengths=setting.ctc.lengths,
                    opts=opts,
                )
            )
        for search, steps in (("time-sync", 20), ("label-sync", 10)):
            small, large = counts[search, 20], counts[search, 40]
            per_step = (sum(large.values()) - sum(small.values())) / steps
            note = ", ".join(f"{key} {value}" for key, value in large.items()) + (
                " (every step on a CPU, every eighth on other devices)" if search == "label-sync" else ""
            )
            yield Row(f"{search}, per step", f"B {batch}", sum(large.values()), None, per_step, 1.0, unit="", note=note)


def _settings(sizes: Sizes) -> Iterator[tuple[int, int, int, Setting]]:
    """:return: B, V, K and the setting, made only once for all K"""
    for batch in sizes.batches:
        for vocab in sizes.vocabs:
            setting = Setting.make(
                num_labels=vocab,
                batch=batch,
                num_frames=sizes.num_frames,
                seq_len=sizes.seq_len(vocab),
                sizes=sizes.decoder,
            )
            for beam in sizes.beams:
                yield batch, vocab, beam, setting


def _right(labels: Tensor, lengths: Tensor, setting: Setting) -> str:
    """:return: how much of what the posteriors say was found"""
    found = statistics.mean(lengths[:, 0].tolist())
    return f"{found:.0f} of {setting.labels.shape[1]} labels"


EXPERIMENTS: dict[str, tuple[str, Callable[[Sizes], Iterator[Row]]]] = {
    "prefix": ("CTC prefix scores of the full vocabulary, one step", prefix_scores),
    "labelsync": ("Label-synchronous search, per utterance, against its own decoder steps alone", label_sync),
    "timesync": ("Time-synchronous search, per utterance", time_sync),
    "recombination": ("Recombination by rolling hash", recombination),
    "step": ("Decoder step, all hypotheses of a batch", decoder_step),
    "growth": ("Growth: time per frame or label, relative to the smallest", growth),
    "syncs": ("Copies to the host in the step loops (as on a GPU)", syncs),
}
"""Name -> title, function"""
