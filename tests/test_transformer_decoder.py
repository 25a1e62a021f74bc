"""The Transformer decoder: training and search see the same numbers; options; auxiliary losses on lower layers."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import returnn.frontend as rf
import torch
from brute_force import assert_same_nbest, log_sum, nbest, path_scores
from returnn.tensor import Dim, Tensor, batch_dim
from tiny_models import TRANSFORMER_AED, audio_batch, make_model

from configs.base.options import OptionError
from configs.base.train import check_decoder_options
from recog.forward import run_search
from recog.inputs import encode, search_inputs
from recog.options import CtcOptions, LabelSyncOptions, TimeSyncOptions
from recog.scorers.attention import make_attention_scorer
from recog.scorers.base import select_rows, write_rows
from recog.scorers.ilm import average_encoder, make_fixed_context_ilm_scorer
from rf_models.checkpoint import check_checkpoint
from rf_models.options import AedCtcOptions

V = 7
SECONDS = [0.45, 0.2, 0.95]
VARIANTS = {
    "rotary and absolute, RMS norm, gated, tied": {},
    "absolute": {"dec_rotary_pos": False},
    "rotary, layer norm, relu, not tied": {
        "dec_absolute_pos": False,
        "dec_ff": "relu",
        "dec_norm": "layer_norm",
        "dec_share_embedding": False,
    },
    "no positions": {"dec_absolute_pos": False, "dec_rotary_pos": False, "dec_num_layers": 3, "dec_aux_layers": (2, 1)},
}


def make(num_labels=V, **options):
    return make_model(replace(TRANSFORMER_AED, **options), num_labels=num_labels, std=0.3)


def encoded_batch(model, seconds=SECONDS):
    audio, time_dim = audio_batch(seconds)
    return encode(model, audio, in_spatial_dim=time_dim)


def rf_labels(model, labels, lengths):
    """:return: {batch, labels}, labels dim"""
    sizes = Tensor("n", dims=[batch_dim], dtype="int32", raw_tensor=torch.tensor(lengths, dtype=torch.int32))
    dim = Dim(sizes, name="labels")
    dims = [batch_dim, dim]
    return Tensor("y", dims=dims, dtype="int64", sparse_dim=model.target_dim, raw_tensor=labels), dim


def teacher_forced(model, memory, labels, lengths):
    """:return: [batch, labels, V] log-probs of the labels, by the module on whole sequences"""
    targets, dim = rf_labels(model, labels, lengths)
    logits, _ = model.decoder.teacher_forcing(targets, spatial_dim=dim, memory=memory)
    log_probs = rf.log_softmax(logits, axis=model.target_dim)
    return log_probs.copy_transpose([batch_dim, dim, model.target_dim]).raw_tensor


@pytest.mark.parametrize("track", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_steps_equal_whole_sequences(name, track):
    """Rows in any order, several of one utterance and none of another, histories of different length in one state."""
    model = make(**VARIANTS[name])
    labels = torch.randint(1, V, (3, 6), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        encoded = encoded_batch(model)
        memory = model.attention_memory(encoded.asr)
        expected = teacher_forced(model, memory, labels, [6, 6, 6])
        shorter = teacher_forced(model, memory, labels, [6, 4, 2])  # padding of the labels does not matter
        torch.testing.assert_close(shorter[1, :4], expected[1, :4], atol=1e-5, rtol=0)
        torch.testing.assert_close(shorter[2, :2], expected[2, :2], atol=1e-5, rtol=0)

        scorer = make_attention_scorer(model.decoder, memory, encoded.lengths(), track=track)
        zero = torch.zeros(1, dtype=torch.int64)
        log_probs, state = scorer.step(zero.expand(3), scorer.initial_state(3), torch.arange(3))
        torch.testing.assert_close(log_probs, expected[:, 0], atol=1e-5, rtol=0)
        for i in range(2):  # utterance 2 is two labels ahead
            log_probs, new = scorer.step(labels[2:, i], select_rows(state, zero + 2), zero + 2)
            torch.testing.assert_close(log_probs, expected[2:, i + 1], atol=1e-5, rtol=0)
            state = write_rows(state, zero + 2, new)
        utt = torch.tensor([2, 0, 2, 0, 2])
        state = select_rows(state, utt)
        read = torch.tensor([2, 0, 2, 0, 2])
        for i in range(3):
            log_probs, state = scorer.step(labels[utt, read + i], state, utt)
            torch.testing.assert_close(log_probs, expected[utt, read + i + 1], atol=1e-5, rtol=0)
        if track:
            sums = scorer.row_scores(state)["attention_sums"]
            torch.testing.assert_close(sums.sum(1), (read + 4).float(), atol=1e-4, rtol=0)
            assert (sums[utt == 0][:, encoded.lengths()[0] :] == 0).all()
            assert (sums > 0).sum(1).tolist() == encoded.lengths()[utt].tolist()
        else:
            assert not scorer.row_scores(state)
        none = torch.zeros(0, dtype=torch.int64)
        assert scorer.step(none, select_rows(state, none), none)[0].shape == (0, V)


def test_decoder_sees_the_audio_and_the_labels_before():
    model = make()
    labels = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4], [1, 5, 3, 4]])
    with torch.no_grad():
        encoded = encoded_batch(model, [0.45, 0.5, 0.5])
        found = teacher_forced(model, model.attention_memory(encoded.asr), labels, [4, 4, 4])
    assert (found[0] - found[1]).abs().amax(-1).min() > 1e-3  # other audio
    torch.testing.assert_close(found[1, :2], found[2, :2], atol=1e-5, rtol=0)  # the label itself is not seen
    assert (found[1, 2:] - found[2, 2:]).abs().amax(-1).min() > 1e-3


def test_packed_logits_are_those_without_padding():
    model = make(dec_num_layers=3, dec_aux_layers=(1, 2))
    lengths = [4, 1, 3]
    targets, dim = rf_labels(model, torch.randint(1, V, (3, 4)), lengths)
    with torch.no_grad():
        memory = model.attention_memory(encoded_batch(model).asr)
        padded, _ = model.decoder.teacher_forcing_layers(targets, spatial_dim=dim, memory=memory)
        packed, labels = model.decoder.teacher_forcing_layers(targets, spatial_dim=dim, memory=memory, pack=True)
    assert list(packed) == [1, 2, 3]
    inside = torch.arange(4) < torch.tensor(lengths)[:, None]
    assert torch.equal(labels.raw_tensor, targets.raw_tensor[inside])
    for layer, logits in packed.items():
        expected = padded[layer].copy_transpose([batch_dim, dim, model.target_dim]).raw_tensor[inside]
        torch.testing.assert_close(logits.raw_tensor, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(packed[1].raw_tensor, packed[3].raw_tensor, atol=1e-2)


def test_nothing_is_compiled_on_a_cpu(monkeypatch):
    """RETURNN's kernel for rotary positions would take half a minute in each process."""
    compiled = []
    monkeypatch.setattr(torch._dynamo.convert_frame.ConvertFrame, "__call__", lambda *_, **__: compiled.append(1))
    model = make()
    targets, dim = rf_labels(model, torch.randint(1, V, (3, 4)), [4, 1, 3])
    memory = model.attention_memory(encoded_batch(model).asr)
    logits, _ = model.decoder.teacher_forcing(targets, spatial_dim=dim, memory=memory)
    logits.raw_tensor.sum().backward()
    assert not compiled


@pytest.mark.parametrize("sync", ["label", "time, max", "time, sum"])
def test_search_finds_what_enumeration_finds(sync):
    """All label sequences, scored by the module on whole sequences and by all CTC alignments."""
    num_labels, att, ctc = 4, 0.7, 0.3
    model = make(num_labels)
    opts = dict(att_scale=att, ctc_scale=ctc, beam_size=500)
    if sync == "label":
        search_opts = LabelSyncOptions(**opts, early_stop=False, max_len_ratio=1.0)
    else:
        scales = dict(blank_scale="ctc", repeat_scale="ctc")
        search_opts = TimeSyncOptions(**opts, **scales, recombination="max" if sync == "time, max" else "sum")
    seconds = [0.3, 0.2]
    with torch.no_grad():
        encoded = encoded_batch(model, seconds)
        num_frames = encoded.lengths().tolist()
        assert num_frames == [5, 3]
        result = run_search(model, encoded, search_opts, CtcOptions())
        posteriors = search_inputs(model, encoded, search_opts, CtcOptions()).ctc.log_probs
        for utt, length in enumerate(num_frames):
            paths = path_scores(posteriors[utt, :length].tolist())
            one = encoded_batch(model, [seconds[utt]])
            memory = model.attention_memory(one.asr)
            expected = []
            for labels, scores in paths.items():
                target = torch.tensor([[*labels, 0]])
                log_probs = teacher_forced(model, memory, target, [len(labels) + 1])[0]
                att_score = log_probs.gather(1, target.T).sum().item()
                ctc_score = max(scores) if sync == "time, max" else log_sum(scores)
                if ctc_score > float("-inf"):
                    expected.append((labels, att * att_score + ctc * ctc_score))
            expected.sort(key=lambda pair: -pair[1])
            # An utterance of few frames has fewer hypotheses than the beam has room for.
            assert_same_nbest(nbest(result, utt), expected)
            assert len(expected) > 10


def test_internal_lm_is_the_decoder_with_another_encoder_state():
    """Zero, and the mean over the frames: one encoder frame for the cross-attention."""
    model = make()
    labels = torch.randint(1, V, (3, 4), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        encoded = encoded_batch(model)
        enc = encoded.asr.enc.copy_transpose([batch_dim, encoded.asr.enc_spatial_dim, model.enc_dim]).raw_tensor
        mean = average_encoder(enc, encoded.lengths())
        assert not torch.allclose(mean[0], mean[2], atol=1e-3)
        found = {}
        for name, context in {"zero": None, "avg": mean}.items():
            scorer = make_fixed_context_ilm_scorer(model.decoder, context, batch_size=3)
            frame_dim = Dim(1, name="frame")
            raw = (torch.zeros_like(mean) if context is None else mean)[:, None]
            one = Tensor("enc", [batch_dim, frame_dim, model.enc_dim], "float32", raw_tensor=raw, feature_dim_axis=2)
            expected = teacher_forced(model, model.decoder.transform_encoder(one, axis=frame_dim), labels, [4, 4, 4])
            utt, state, prev = torch.tensor([2, 0, 1]), scorer.initial_state(3), torch.zeros(3, dtype=torch.int64)
            for i in range(4):
                log_probs, state = scorer.step(prev, state, utt)
                torch.testing.assert_close(log_probs, expected[utt, i], atol=1e-5, rtol=0)
                prev = labels[utt, i]
            found[name] = expected
    torch.testing.assert_close(found["zero"][0, 0], found["zero"][2, 0], atol=1e-5, rtol=0)  # whatever the audio
    assert not torch.allclose(found["avg"][0, 0], found["avg"][2, 0], atol=1e-4)


def test_auxiliary_loss_trains_the_layers_up_to_its_own():
    """And the encoder, by their cross-attention; not the layers above, nor the top's norm and softmax."""
    model = make(dec_num_layers=3, dec_aux_layers=(2,), dec_share_embedding=False)
    targets, dim = rf_labels(model, torch.randint(1, V, (3, 4)), [4, 2, 3])
    memory = model.attention_memory(encoded_batch(model).asr)
    logits, _ = model.decoder.teacher_forcing_layers(targets, spatial_dim=dim, memory=memory, pack=True)
    rf.log_softmax(logits[2], axis=model.target_dim).raw_tensor[:, 1].sum().backward()

    def is_trained(module):
        grads = [param.raw_tensor.grad for param in module.parameters() if not param.auxiliary]
        assert len({grad is None or not grad.any() for grad in grads}) == 1  # all or none of a module
        return grads[0] is not None

    decoder = model.decoder
    assert [is_trained(layer) for layer in decoder.layers] == [True, True, False]
    assert is_trained(decoder.input_embedding)
    assert is_trained(decoder.aux_norms) and is_trained(decoder.aux_logits)
    assert not is_trained(decoder.final_layer_norm) and not is_trained(decoder.logits)
    assert model.encoder.layers["0"].ffn1.linear_ff.weight.raw_tensor.grad.any()


def test_shared_embedding_is_one_parameter_and_two_names_in_a_checkpoint(tmp_path):
    from returnn.torch.frontend.bridge import rf_module_to_pt_module

    for share in (True, False):
        model = make(dec_share_embedding=share)
        assert (model.decoder.logits.weight is model.decoder.input_embedding.weight) == share
        state = rf_module_to_pt_module(model).state_dict()
        assert {"decoder.logits.weight", "decoder.input_embedding.weight"} <= set(state)
        torch.save({"model": state}, tmp_path / "model.pt")
        check_checkpoint(str(tmp_path / "model.pt"), model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dec_kind": "rnn"}, "dec_kind = 'rnn': expected lstm or transformer"),
        ({"dec_dim": 30}, "dec_dim = 30 is not divisible by dec_num_heads = 8"),
        ({"dec_dim": 24}, "dec_dim / dec_num_heads = 3: rotary positions need an even number"),
        ({"dec_aux_layers": (6,)}, "expected different layers below the top one, of 1 ... 5"),
        ({"dec_aux_layers": (2, 2)}, "expected different layers below the top one"),
        ({"dec_num_layers": 0}, "expected at least 1"),
        ({"dec_ff_dim": 0}, "dec_ff_dim = 0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        AedCtcOptions(**{"dec_kind": "transformer", **options})


@pytest.mark.parametrize(
    ("kind", "command_line", "in_config", "message"),
    [
        (
            "transformer",
            ["dec_lstm_dim"],
            [],
            "dec_lstm_dim: only the lstm decoder has this, but dec_kind =",
        ),
        ("lstm", ["dec_dim", "dec_ff"], [], "dec_dim, dec_ff: only the transformer decoder has this"),
        ("lstm", [], ["dec_num_layers"], "dec_num_layers: only the transformer"),
        ("lstm", ["dec_kind"], ["dec_num_layers"], None),  # the command line has turned away from the config's decoder
        ("lstm", ["dec_lstm_dim"], ["enc_dim"], None),
    ],
)
def test_options_of_the_other_decoder_are_refused(kind, command_line, in_config, message):
    if message is None:
        check_decoder_options(kind, command_line=command_line, in_config=in_config)
    else:
        with pytest.raises(OptionError, match=message):
            check_decoder_options(kind, command_line=command_line, in_config=in_config)


def test_every_decoder_option_belongs_to_one_kind():
    """A new option of a decoder must be assigned, so that it cannot be given in vain."""
    from dataclasses import fields

    from rf_models.options import DECODER_OPTIONS, AedCtcTrainOptions

    assigned = list(itertools.chain(*DECODER_OPTIONS.values()))
    names = {f.name for cls in (AedCtcOptions, AedCtcTrainOptions) for f in fields(cls) if f.name.startswith("dec_")}
    assert len(assigned) == len(set(assigned)) and set(assigned) | {"dec_kind", "dec_embed_init_stddev"} == names
