"""
Language models and internal language models on label sequences: scores, and training steps.
"""

from __future__ import annotations

import returnn.frontend as rf
from returnn.tensor import Dim, Tensor, TensorDict

from .ilm import MiniLstmIlm
from .lm import LstmLm, TransformerLm
from .sequences import append_eos, spatial_dim_of

__all__ = ["LanguageModel", "lm_log_probs", "lm_train_step"]

LanguageModel = LstmLm | TransformerLm | MiniLstmIlm
"""What gives the probability of a label sequence without audio."""


def lm_log_probs(model: LanguageModel, labels: Tensor, *, spatial_dim: Dim) -> Tensor:
    """
    :param model:
    :param labels: {batch..., spatial_dim} -> target_dim, EOS at the end
    :param spatial_dim:
    :return: {batch..., spatial_dim, target_dim} log p(. | labels before)
    """
    if isinstance(model, MiniLstmIlm):
        logits = model(labels, spatial_dim=spatial_dim)
    else:
        prev_labels = rf.shift_right(labels, axis=spatial_dim, pad_value=model.eos_index)
        state = model.default_initial_state(batch_dims=labels.remaining_dims(spatial_dim))
        logits, _ = model(prev_labels, spatial_dim=spatial_dim, state=state)
    return rf.log_softmax(logits, axis=model.target_dim)


def lm_train_step(*, model: LanguageModel, extern_data: TensorDict) -> None:
    """
    Marks the loss ``ce`` (per label, EOS included) and the error ``fer`` (labels that are not the most probable).
    An internal language model runs in evaluation mode: it is made of frozen parts of the ASR model, whose zoneout would
    be noise, and of a small LSTM that has no dropout. Without label smoothing: it is to give probabilities.

    :param model:
    :param extern_data: "data" {batch, labels} without EOS
    """
    labels = extern_data["data"]
    labels, spatial_dim = append_eos(
        labels, spatial_dim_of(labels), eos_index=model.eos_index, target_dim=model.target_dim
    )
    if isinstance(model, MiniLstmIlm):
        with rf.get_run_ctx().train_flag_ctx(False):
            log_probs = lm_log_probs(model, labels, spatial_dim=spatial_dim)
    else:
        log_probs = lm_log_probs(model, labels, spatial_dim=spatial_dim)
    loss = rf.cross_entropy(estimated=log_probs, estimated_type="log-probs", target=labels, axis=model.target_dim)
    loss.mark_as_loss("ce", use_normalized_loss=True)
    (rf.reduce_argmax(log_probs, axis=model.target_dim) != labels).mark_as_loss("fer", as_error=True)
