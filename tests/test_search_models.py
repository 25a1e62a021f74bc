"""Searches with real (small, random) models: encoder, decoder, LMs, internal LMs, CTC of a second encoder."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import returnn.frontend as rf
import torch
from brute_force import NEG_INF, assert_same_nbest, nbest
from tiny_models import AED, LSTM_LM, MINI_ILM, TRANSFORMER_AED, TRANSFORMER_LM, audio_batch, make_model, randomise

from recog.core.result import combine_components, length_divisor
from recog.forced_score import forced_scores
from recog.forward import run_search
from recog.inputs import ScoreData, encode, search_inputs
from recog.options import CtcOptions, GreedyOptions, LabelSyncOptions, TimeSyncOptions
from recog.rescore import GivenHypotheses, score_given
from rf_models.combined import CombinedModel
from rf_models.options import AedCtcOptions

V = 7
SECONDS = [0.45, 0.2, 0.95, 0.33, 0.7]
ALL = dict(att_scale=0.6, ctc_scale=0.4, lm_scale=0.3, ilm_scale=0.2)


@dataclass
class Case:
    """A search with its models."""

    opts: LabelSyncOptions | TimeSyncOptions | GreedyOptions
    lm: str | None = None
    ilm: str | None = None
    second_ctc: bool = False
    ctc_opts: CtcOptions = field(default_factory=CtcOptions)
    exponent: float = 0.0
    asr: AedCtcOptions = AED


CASES = {
    "greedy": Case(GreedyOptions(), ctc_opts=CtcOptions(soft_collapse_threshold=0.3)),
    "label-sync, Transformer LM, Mini-LSTM": Case(LabelSyncOptions(**ALL, beam_size=4), "transformer", "mini_lstm"),
    "label-sync, LSTM LM, average context, in beam": Case(
        LabelSyncOptions(**ALL, beam_size=5, ended_hyps="in_beam", length_norm_exponent=1.0),
        "lstm",
        "avg",
        exponent=1.0,
    ),
    "label-sync, coverage and monotonicity, second CTC": Case(
        LabelSyncOptions(att_scale=0.6, ctc_scale=0.4, coverage_scale=0.3, monotonicity_scale=0.1, beam_size=4),
        second_ctc=True,
    ),
    "label-sync, CTC and LM only": Case(LabelSyncOptions(att_scale=0.0, ctc_scale=1.0, lm_scale=0.4), "transformer"),
    "time-sync, Transformer LM, density ratio": Case(
        TimeSyncOptions(**ALL, beam_size=4, ilm_eos=False), "transformer", "density_ratio"
    ),
    "time-sync, LSTM LM, zero context, second CTC, sum": Case(
        TimeSyncOptions(**ALL, beam_size=5, recombination="sum", blank_scale="ctc", repeat_scale="ctc", exact_ctc=True),
        "lstm",
        "zero",
        second_ctc=True,
    ),
    "time-sync, CTC and LM only, collapsed": Case(
        TimeSyncOptions(att_scale=0.0, ctc_scale=1.0, lm_scale=0.4, beam_size=4, max_len_ratio=0.4, min_len_ratio=0.1),
        "transformer",
        ctc_opts=CtcOptions(soft_collapse_threshold=0.3, blank_collapse_threshold=0.5, blank_penalty=0.2),
    ),
    "time-sync, published": Case(TimeSyncOptions(**ALL, beam_size=4, published_scoring=True), "lstm", "mini_lstm"),
    "Transformer decoder, label-sync, coverage and monotonicity, average context, second CTC": Case(
        LabelSyncOptions(
            att_scale=0.6, ctc_scale=0.4, ilm_scale=0.2, coverage_scale=0.3, monotonicity_scale=0.1, beam_size=4
        ),
        ilm="avg",
        second_ctc=True,
        asr=TRANSFORMER_AED,
    ),
    "Transformer decoder, time-sync, Transformer LM, zero context": Case(
        TimeSyncOptions(**ALL, beam_size=4), "transformer", "zero", asr=TRANSFORMER_AED
    ),
    "Transformer decoder, time-sync, second CTC, sum": Case(
        TimeSyncOptions(att_scale=0.7, ctc_scale=0.3, beam_size=5, recombination="sum", exact_ctc=True),
        second_ctc=True,
        asr=TRANSFORMER_AED,
    ),
}


@pytest.fixture(scope="module")
def models():
    rf.select_backend_torch()
    second = replace(AED, enc_frontend_time_strides=(1, 2, 2), with_decoder=False)
    return {
        "lstm": make_model(LSTM_LM, num_labels=V, seed=3, std=0.8),
        "transformer": make_model(TRANSFORMER_LM, num_labels=V, seed=4),
        "mini_lstm": make_model(MINI_ILM, num_labels=V, seed=5, std=0.6),
        "density_ratio": make_model(LSTM_LM, num_labels=V, seed=6, std=0.8),
        "second": make_model(second, num_labels=V, seed=7, std=0.5),
    }


def combined(models, case):
    model = CombinedModel(
        case.asr,
        num_labels=V,
        eos_index=0,
        lm=models[case.lm] if case.lm else None,
        ilm=models.get(case.ilm),
        ctc_model=models["second"] if case.second_ctc else None,
    )
    randomise(model.features, 1), randomise(model.encoder, 8, 0.5)
    # (pre-norm layers and a softmax that is the embedding make much sharper distributions of the same parameters)
    randomise(model.ctc_heads, 9, 0.9), randomise(model.decoder, 10, 0.6 if case.asr.dec_kind == "lstm" else 0.3)
    rf.init_forward_step_run_ctx(step=0, epoch=1)
    return model


def search(model, case, seconds):
    with torch.no_grad():
        audio, time_dim = audio_batch(seconds)
        encoded = encode(model, audio, in_spatial_dim=time_dim)
        data = ScoreData(ilm_type=case.ilm)
        return run_search(model, encoded, case.opts, case.ctc_opts, data=data), encoded, data


@pytest.mark.parametrize("name", CASES)
def test_batch_order_and_padding_change_nothing(models, name):
    """N-best lists of utterances of different length: in a batch, alone, in another order, with a longer one."""
    case = CASES[name]
    model = combined(models, case)
    together, _, _ = search(model, case, SECONDS)
    assert not together.scores.isnan().any()
    reversed_, _, _ = search(model, case, SECONDS[::-1])
    padded, _, _ = search(model, case, [*SECONDS, 1.6])
    lengths = set()
    for utt, seconds in enumerate(SECONDS):
        expected = nbest(together, utt)
        assert expected
        lengths |= {len(labels) for labels, _ in expected}
        assert_same_nbest(nbest(reversed_, len(SECONDS) - 1 - utt), expected)
        assert_same_nbest(nbest(padded, utt), expected)
        if utt < 2:
            alone, _, _ = search(model, case, [seconds])
            assert_same_nbest(nbest(alone, 0), expected)
    assert len(lengths) > 1  # the models are not so that all results are trivial


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not isinstance(case.opts, GreedyOptions)])
def test_totals_components_and_forced_scores_agree(models, name):
    """Total = sum of scale times component = forced score. In a pruned time-sync search, the CTC part can be less."""
    case = CASES[name]
    model = combined(models, case)
    result, encoded, data = search(model, case, SECONDS)
    total = combine_components(result.components, result.scales)
    total = total / length_divisor(result.label_lengths, exponent=case.exponent, offset=1)
    exists = result.scores > NEG_INF
    torch.testing.assert_close(total[exists], result.scores[exists], atol=1e-4, rtol=0)
    with torch.no_grad():
        inputs = search_inputs(model, encoded, case.opts, case.ctc_opts, data=data)
        forced = forced_scores(
            scorers=inputs.scorers,
            ctc=inputs.ctc,
            labels=result.labels,
            label_lengths=result.label_lengths,
            opts=case.opts,
            frame_lengths=inputs.frame_lengths,
        )
    assert forced.scales == result.scales
    pruned = isinstance(case.opts, TimeSyncOptions) and not case.opts.exact_ctc
    for key, value in result.components.items():
        if key == "ctc" and pruned:
            assert (value[exists] <= forced.components[key][exists] + 1e-4).all()
        else:
            torch.testing.assert_close(forced.components[key][exists], value[exists], atol=1e-4, rtol=0)


@pytest.mark.parametrize("asr", [AED, TRANSFORMER_AED])
def test_label_sync_and_time_sync_agree_with_models(models, asr):
    """Full sum, all frames scaled alike, unlimited beam: the same n-best from both searches, and when rescored."""
    ilm = "mini_lstm" if asr is AED else "avg"
    by_label = Case(LabelSyncOptions(**ALL, beam_size=3000, early_stop=False), "lstm", ilm, asr=asr)
    opts = TimeSyncOptions(**ALL, beam_size=3000, recombination="sum", blank_scale="ctc", repeat_scale="ctc")
    model = combined(models, by_label)
    seconds = [0.2, 0.3]  # 3 and 5 frames
    first, encoded, data = search(model, by_label, seconds)
    second, _, _ = search(model, replace(by_label, opts=opts), seconds)
    assert encoded.lengths().tolist() == [3, 5]
    for utt in range(2):
        # Everything that is possible: more than 6^3 sequences in the second utterance
        found = nbest(second, utt)
        assert_same_nbest(nbest(first, utt)[:300], found[:300])
    given = GivenHypotheses(
        labels=second.labels[:, :50].flip(1),
        lengths=second.label_lengths[:, :50].flip(1),
        exists=torch.ones(2, 50, dtype=torch.bool),
        scores=second.scores[:, :50].flip(1),
    )
    with torch.no_grad():
        again = score_given(model, encoded, given, by_label.opts, CtcOptions(), data=data, n_best=20)
        doubled = score_given(
            model, encoded, given, by_label.opts, CtcOptions(), data=data, first_pass_scale=1.0, n_best=20
        )
    for utt in range(2):
        assert_same_nbest(nbest(again, utt), nbest(second, utt)[:20])
        assert_same_nbest(nbest(doubled, utt), [(labels, 2 * score) for labels, score in nbest(second, utt)[:20]])


def test_length_limits(models):
    """At most and at least so many labels per encoder frame, in both searches."""
    for cls in (LabelSyncOptions, TimeSyncOptions):
        opts = dict(att_scale=0.5, ctc_scale=0.5, beam_size=20)
        case = Case(cls(**opts, max_len_ratio=0.2, min_len_ratio=0.15))
        model = combined(models, case)
        result, encoded, _ = search(model, case, SECONDS)
        free = search(model, replace(case, opts=cls(**opts)), SECONDS)[0]
        limited = 0
        for utt, frames in enumerate(encoded.lengths().tolist()):
            shortest, longest = int(0.15 * frames), max(1, int(0.2 * frames))
            found = nbest(result, utt)
            assert found and all(shortest <= len(labels) <= longest for labels, _ in found)
            limited += sum(len(labels) > longest for labels, _ in nbest(free, utt))
            limited += sum(len(labels) < shortest for labels, _ in nbest(free, utt))
        assert limited > 5


@pytest.mark.parametrize("name", CASES)
def test_shorter_than_one_window(models, name):
    """10 ms of audio are no frame, and one or no sample neither: still defined, and the same in any batch."""
    case = replace(CASES[name])
    model = combined(models, case)
    together, encoded, _ = search(model, case, [0.01, 0.5, 1 / 16_000])
    assert encoded.lengths().tolist() == [1, 8, 1]
    assert not together.scores.isnan().any()
    alone, _, _ = search(model, case, [0.01])
    assert nbest(alone, 0)
    assert_same_nbest(nbest(together, 0), nbest(alone, 0))
    assert all(len(labels) <= 1 for labels, _ in nbest(together, 2))


def test_scorers_that_have_no_scale_are_not_run(models, monkeypatch):
    """CTC and LM only: no decoder step, not even the encoder's part of the attention."""
    case = CASES["label-sync, CTC and LM only"]
    model = combined(models, case)
    monkeypatch.setattr(model, "attention_memory", lambda *_: pytest.fail("the decoder is not needed"))
    search(model, case, SECONDS[:2])
    search(model, CASES["time-sync, CTC and LM only, collapsed"], SECONDS[:2])


@pytest.mark.parametrize("cls", [LabelSyncOptions, TimeSyncOptions])
def test_ctc_of_a_second_model_is_that_of_the_model_alone(models, cls):
    """CTC only: what the second model finds beside another ASR model is what it finds by itself."""
    case = Case(cls(att_scale=0.0, ctc_scale=1.0, beam_size=6), second_ctc=True)
    beside, encoded, _ = search(combined(models, case), case, SECONDS)
    assert (encoded.ctc.enc_spatial_dim.get_size_tensor().raw_tensor > encoded.lengths()).all()  # another frame rate
    alone, _, _ = search(models["second"], case, SECONDS)
    first, _, _ = search(combined(models, replace(case, second_ctc=False)), replace(case, second_ctc=False), SECONDS)
    different = 0
    for utt in range(len(SECONDS)):
        # Label-sync search counts labels per frame of the first encoder: the limit must not matter here.
        assert_same_nbest(nbest(beside, utt), nbest(alone, utt))
        different += nbest(beside, utt)[0] != nbest(first, utt)[0]
    assert different


def test_ctc_layer():
    """Each head is used by its number; by default the top-most."""
    rf.select_backend_torch()
    opts = replace(AED, enc_num_layers=2, ctc_layers=(1, 2))
    model = make_model(opts, num_labels=V, seed=11, std=0.6)
    results = {}
    for layer in (1, 2, None):
        case = Case(GreedyOptions(), ctc_opts=CtcOptions(ctc_layer=layer))
        result, encoded, _ = search(model, case, SECONDS)
        results[layer] = result.scores
        head = model.ctc_log_probs(encoded.asr, layer=layer or 2).raw_tensor
        merged = torch.logaddexp(head[..., -1], head[..., 0])
        best = torch.cat((head[..., 1:-1], merged[..., None]), dim=-1).amax(-1)
        best = best.masked_fill(torch.arange(best.shape[1]) >= encoded.lengths()[:, None], 0.0)
        torch.testing.assert_close(result.scores[:, 0].float(), best.sum(1), atol=1e-4, rtol=0)
    assert torch.equal(results[2], results[None]) and not torch.allclose(results[1], results[2])
