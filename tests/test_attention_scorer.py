"""The decoder step in plain torch is the step of the frontend module, for any rows."""

import pytest
import returnn.frontend as rf
import torch
from returnn.tensor import Dim, Tensor

from recog.scorers.attention import AttentionScorer
from recog.scorers.base import select_rows
from rf_models.aed_ctc import AedCtcModel
from rf_models.options import AedCtcOptions

SIZES = dict(enc_num_layers=1, enc_dim=16, enc_ff_dim=16, enc_num_heads=2, ctc_layers=(1,), dec_embed_dim=12)
SIZES.update(dec_lstm_dim=20, dec_att_dim=24, dec_readout_dim=18)
LENGTHS = [11, 7, 9]
batch_dim = Dim(3, name="batch")
NUM_LABELS = 13


def make(**kwargs):
    rf.select_backend_torch()
    rf.set_random_seed(3)
    model = AedCtcModel(AedCtcOptions(**SIZES, **kwargs), num_labels=NUM_LABELS, eos_index=0)
    for param in model.parameters():
        if not param.auxiliary:
            torch.nn.init.normal_(param.raw_tensor, std=0.5)
    torch.manual_seed(0)
    lengths = Tensor("lengths", dims=[batch_dim], dtype="int32", raw_tensor=torch.tensor(LENGTHS, dtype=torch.int32))
    time_dim = Dim(lengths, name="enc-time")
    raw = torch.randn(len(LENGTHS), max(LENGTHS), 16)
    enc = Tensor("enc", dims=[batch_dim, time_dim, model.enc_dim], dtype="float32", raw_tensor=raw)
    rf.init_forward_step_run_ctx(step=0, epoch=1)
    return model, model.decoder.transform_encoder(enc, axis=time_dim)


@pytest.mark.parametrize("use_zoneout_output", [True, False])
@pytest.mark.parametrize("chunk_rows", [1, 2, 100])
def test_equals_frontend_step(use_zoneout_output, chunk_rows):
    model, memory = make(dec_use_zoneout_output=use_zoneout_output)
    labels = torch.randint(0, NUM_LABELS, (3, 5))
    with torch.no_grad():
        state = model.decoder.default_initial_state(batch_dims=[batch_dim], memory=memory)
        embed = rf.zeros([batch_dim, model.decoder.embed_dim], feature_dim=model.decoder.embed_dim)
        expected = []
        for i in range(6):
            logits, state = model.decoder.step(embed, memory=memory, state=state)
            log_probs = rf.log_softmax(logits, axis=model.target_dim)
            expected.append(log_probs.copy_transpose([batch_dim, model.target_dim]).raw_tensor)
            if i < 5:
                label = Tensor(
                    "label", dims=[batch_dim], dtype="int64", sparse_dim=model.target_dim, raw_tensor=labels[:, i]
                )
                embed = model.decoder.embed(label)

        scorer = AttentionScorer(model.decoder, memory, torch.tensor(LENGTHS))
        scorer.chunk_rows = chunk_rows
        utt = torch.tensor([2, 0, 0, 1])  # any rows, not sorted
        state = select_rows(scorer.initial_state(3), utt)
        prev = torch.zeros(4, dtype=torch.int64)
        for i in range(6):
            log_probs, state = scorer.step(prev, state, utt)
            torch.testing.assert_close(log_probs, expected[i][utt], atol=1e-5, rtol=0)
            if i < 5:
                prev = labels[utt, i]


def test_teacher_forcing_equals_steps():
    model, memory = make()
    labels = torch.randint(1, NUM_LABELS, (3, 6))
    lengths = torch.tensor([6, 4, 2], dtype=torch.int32)
    labels_dim = Dim(Tensor("n", dims=[batch_dim], dtype="int32", raw_tensor=lengths), name="labels")
    targets = Tensor("y", dims=[batch_dim, labels_dim], dtype="int64", sparse_dim=model.target_dim, raw_tensor=labels)
    with torch.no_grad():
        logits, _ = model.decoder.teacher_forcing(targets, spatial_dim=labels_dim, memory=memory)
        log_probs = rf.log_softmax(logits, axis=model.target_dim)
        expected = log_probs.copy_transpose([batch_dim, labels_dim, model.target_dim]).raw_tensor
        scorer = AttentionScorer(model.decoder, memory, torch.tensor(LENGTHS))
        utt, state = torch.arange(3), scorer.initial_state(3)
        prev = torch.zeros(3, dtype=torch.int64)
        for i in range(6):
            found, state = scorer.step(prev, state, utt)
            inside = i < lengths
            torch.testing.assert_close(found[inside], expected[inside, i], atol=1e-5, rtol=0)
            prev = labels[:, i]
