"""Language models and internal language models as label scorers: equal to the frontend modules, for any rows."""

import pytest
import returnn.frontend as rf
import torch
from returnn.tensor import Dim, Tensor
from tiny_models import AED, LSTM_LM, MINI_ILM, TRANSFORMER_LM, make_model

from recog.scorers.base import Growing, expand_rows, select_rows, write_rows
from recog.scorers.ilm import FixedContextIlmScorer, MiniLstmIlmScorer, average_encoder
from recog.scorers.lm import TransformerLmScorer, make_lm_scorer

V = 11
HISTORIES = torch.tensor([[3, 1, 7, 2, 2], [5, 5, 1, 9, 4], [10, 2, 8, 6, 3]])
rows_dim, steps_dim = Dim(3, name="rows"), Dim(6, name="steps")


def rf_labels(raw, model):
    return Tensor("labels", dims=[rows_dim, steps_dim], dtype="int64", sparse_dim=model.target_dim, raw_tensor=raw)


def log_softmax_of(logits, model):
    return logits.copy_transpose([rows_dim, steps_dim, model.target_dim]).raw_tensor.log_softmax(-1)


def lm_reference(model):
    """[rows, 6, V] log-probs with BOS and 5 labels read, by the module on whole sequences"""
    prev = torch.nn.functional.pad(HISTORIES, (1, 0), value=model.eos_index)
    state = model.default_initial_state(batch_dims=[rows_dim])
    logits, _ = model(rf_labels(prev, model), spatial_dim=steps_dim, state=state)
    return log_softmax_of(logits, model)


def ilm_reference(model):
    """The same for an internal LM, which predicts the labels that it is called with"""
    return log_softmax_of(
        model(rf_labels(torch.nn.functional.pad(HISTORIES, (0, 1)), model), spatial_dim=steps_dim), model
    )


def fixed_context_reference(decoder, context):
    """Steps of the frontend's LSTM and readout, with a context vector [enc] or [rows, enc] for all labels"""
    if context.dim() == 1:
        context = context.expand(3, -1)
    att = Tensor("c", dims=[rows_dim, decoder.enc_dim], dtype="float32", raw_tensor=context, feature_dim_axis=1)
    w_embed, w_context = decoder.s.split_weights()
    state = decoder.s.default_initial_state(batch_dims=[rows_dim])
    embed = rf.zeros([rows_dim, decoder.embed_dim], feature_dim=decoder.embed_dim)
    prev_att, res = att * 0.0, []
    for i in range(6):
        s, state = decoder.s.step_from_parts(decoder.s.embed_part(embed, w_embed), prev_att, w_context, state=state)
        s.feature_dim = decoder.lstm_dim
        logits = decoder.readout(s, embed, att)
        res.append(logits.copy_transpose([rows_dim, decoder.target_dim]).raw_tensor.log_softmax(-1))
        prev_att = att
        if i < 5:
            label = Tensor(
                "y", dims=[rows_dim], dtype="int64", sparse_dim=decoder.target_dim, raw_tensor=HISTORIES[:, i]
            )
            embed = decoder.embed(label)
    return torch.stack(res, dim=1)


def scorers_and_references():
    for opts in (LSTM_LM, TRANSFORMER_LM):
        model = make_model(opts, num_labels=V)
        yield type(opts).__name__, make_lm_scorer(model), lm_reference(model)
    model = make_model(MINI_ILM, num_labels=V)
    yield "mini_lstm", MiniLstmIlmScorer(model), ilm_reference(model)
    decoder = make_model(AED, num_labels=V).decoder
    vector = torch.randn(16, generator=torch.Generator().manual_seed(1))
    own = torch.randn(3, 16, generator=torch.Generator().manual_seed(2))
    zero = torch.zeros(16)
    yield "zero", FixedContextIlmScorer(decoder), fixed_context_reference(decoder, zero)
    yield "one context vector", FixedContextIlmScorer(decoder, vector), fixed_context_reference(decoder, vector)
    yield "avg", FixedContextIlmScorer(decoder, own), fixed_context_reference(decoder, own)


def test_scorers_equal_the_frontend_modules():
    """Rows in any order, and rows whose histories have different lengths, as in time-synchronous search."""
    with torch.no_grad():
        found = list(scorers_and_references())
        for name, scorer, expected in found:
            assert scorer.num_labels == V
            # Row r has read r labels before the common steps begin; all in one state that is written row by row.
            utt = torch.arange(3)
            log_probs, state = scorer.step(torch.zeros(3, dtype=torch.int64), scorer.initial_state(3), utt)
            torch.testing.assert_close(log_probs, expected[:, 0], atol=1e-5, rtol=0, msg=name)
            state = expand_rows(state, 2)  # rows 2 r and 2 r + 1
            for row, num_read in ((1, 1), (2, 2)):
                for i in range(num_read):
                    index, one = torch.tensor([2 * row]), torch.tensor([row])
                    log_probs, new = scorer.step(HISTORIES[row, i : i + 1], select_rows(state, index), one)
                    torch.testing.assert_close(log_probs[0], expected[row, i + 1], atol=1e-5, rtol=0, msg=name)
                    state = write_rows(state, index, new)
            read = torch.tensor([0, 1, 2])
            order = torch.tensor([2, 0, 1])
            state = select_rows(state, 2 * order)
            for i in range(3):
                labels = HISTORIES[order, read[order] + i]
                log_probs, state = scorer.step(labels, state, order)
                want = expected[order, read[order] + i + 1]
                torch.testing.assert_close(log_probs, want, atol=1e-5, rtol=0, msg=name)
        names = [name for name, _, _ in found]
        for i, (_, _, a) in enumerate(found):  # they are all different models
            for j in range(i):
                assert not torch.allclose(a, found[j][2], atol=1e-3), (names[i], names[j])


def test_room_for_histories_grows_with_the_longest_one():
    """A step must not add to the unused room of the state that it comes from."""
    scorer = TransformerLmScorer(make_model(TRANSFORMER_LM, num_labels=V))
    with torch.no_grad():
        zeros = torch.zeros(1, dtype=torch.int64)
        _, state = scorer.step(torch.zeros(4, dtype=torch.int64), scorer.initial_state(4), torch.arange(4))
        for _ in range(20):
            _, new = scorer.step(zeros + 1, select_rows(state, zeros), zeros)
            state = write_rows(state, zeros + 2, new)
            state = write_rows(state, zeros, new)
        assert isinstance(state, Growing)
        assert state.lengths.tolist() == [21, 1, 21, 1]
        assert state.max_length == 21 and state.data.shape[1] <= 42


def test_average_of_the_encoder_ignores_padding():
    enc = torch.randn(2, 5, 3)
    found = average_encoder(enc, torch.tensor([5, 2]))
    torch.testing.assert_close(found, torch.stack((enc[0].mean(0), enc[1, :2].mean(0))))
    enc[1, 2:] = float("nan")
    assert average_encoder(enc, torch.tensor([5, 2])).isfinite().all()
    assert average_encoder(enc, torch.tensor([5, 0]))[1].tolist() == [0, 0, 0]


def test_context_vector_of_another_size_is_refused():
    with pytest.raises(ValueError, match="the context vector has 3 values, the encoder states 16"):
        FixedContextIlmScorer(make_model(AED, num_labels=V).decoder, torch.zeros(3))
