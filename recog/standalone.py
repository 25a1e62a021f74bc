"""
Models outside of RETURNN's tasks: from a checkpoint to a model, from waveforms to a batch. For tools that look at a few
utterances; runs over a corpus are configs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import returnn.frontend as rf
import torch
from returnn.tensor import Dim, Tensor, batch_dim

from rf_models.checkpoint import build_model, check_checkpoint, load_state_dict, read_model_info

__all__ = ["audio_batch", "label_batch", "load_model", "use_returnn"]


def use_returnn(behavior_version: int) -> None:
    """
    Prepares RETURNN's frontend for models outside of its tasks: PyTorch, no training.

    :param behavior_version: of RETURNN, that of the configs
    """
    from returnn.util.basic import BehaviorVersion

    rf.select_backend_torch()
    if BehaviorVersion.get() < behavior_version:
        BehaviorVersion.set(behavior_version)
    rf.init_forward_step_run_ctx(step=0, epoch=1)


def load_model(
    checkpoint: str, *, behavior_version: int, device: str | torch.device = "cpu", kind: str = "aed_ctc"
) -> rf.Module:
    """
    :param checkpoint: that says what model it holds
    :param behavior_version: of RETURNN, that of the configs
    :param device:
    :param kind: of model that is wanted
    :return: model for recognition (no dropout)
    :raises ValueError: not a checkpoint, it does not say what it holds, or holds another kind of model
    """
    from returnn.torch.frontend.bridge import rf_module_to_pt_module

    use_returnn(behavior_version)
    info = read_model_info(checkpoint)
    if info is None:
        raise ValueError(f"{checkpoint} does not say what model it holds (no model_info.json beside it)")
    if info.kind != kind:
        raise ValueError(f"{checkpoint} holds a model of the kind {info.kind}, expected {kind}")
    model = build_model(info)
    check_checkpoint(checkpoint, model)
    module = rf_module_to_pt_module(model)
    # Not strict: BatchNorm statistics that are not in use may be missing; all else has been checked.
    module.load_state_dict(load_state_dict(checkpoint)[0], strict=False)
    module.to(device)
    module.eval()
    return model


def audio_batch(waveforms: Sequence[np.ndarray], *, device: str | torch.device = "cpu") -> tuple[Tensor, Dim]:
    """
    :param waveforms: [samples] each, at the sample rate of the model, as the training data was scaled
    :param device:
    :return: {batch, time} float32 with zeros as padding; the time dim. Only the last batch that was made can be used:
        RETURNN has one batch dim.
    """
    return _batch("audio", waveforms, dtype="float32", device=device)


def label_batch(
    sequences: Sequence[Sequence[int]], *, labels_dim: Dim, device: str | torch.device = "cpu"
) -> tuple[Tensor, Dim]:
    """
    :param sequences: labels of each sequence
    :param labels_dim: of the labels
    :param device:
    :return: {batch, labels} -> labels_dim, int32; the dim of the sequences. Only the last batch can
        be used, see :func:`audio_batch`.
    """
    labels, spatial_dim = _batch("labels", sequences, dtype="int32", device=device)
    labels.sparse_dim = labels_dim
    return labels, spatial_dim


def _batch(
    name: str, sequences: Sequence[Sequence[int] | np.ndarray], *, dtype: str, device: str | torch.device
) -> tuple[Tensor, Dim]:
    """:return: sequences with zeros as padding, their dim"""
    lengths = [len(sequence) for sequence in sequences]
    raw = torch.zeros(len(sequences), max(lengths), dtype=getattr(torch, dtype))
    for row, sequence in zip(raw, sequences, strict=True):
        row[: len(sequence)] = torch.from_numpy(np.asarray(sequence, dtype=dtype))
    batch_dim.reset_eager()
    size = torch.tensor(len(sequences), dtype=torch.int32)
    batch_dim.dyn_size_ext = Tensor("batch", dims=[], dtype="int32", raw_tensor=size)
    sizes = Tensor("lengths", dims=[batch_dim], dtype="int32", raw_tensor=torch.tensor(lengths, dtype=torch.int32))
    spatial_dim = Dim(sizes, name=name)
    return Tensor(name, dims=[batch_dim, spatial_dim], dtype=dtype, raw_tensor=raw.to(device)), spatial_dim
