"""Label sequences: their dims, and EOS at their end."""

from __future__ import annotations

import returnn.frontend as rf
from returnn.tensor import Dim, Tensor, batch_dim

__all__ = ["append_eos", "spatial_dim_of"]


def spatial_dim_of(x: Tensor) -> Dim:
    """:return: the one dim of dynamic size of x beside the batch dim (time, labels)"""
    (dim,) = [d for d in x.dims if d.is_dynamic() and d != batch_dim]
    return dim


def append_eos(labels: Tensor, spatial_dim: Dim, *, eos_index: int, target_dim: Dim) -> tuple[Tensor, Dim]:
    """
    :param labels: {batch, spatial_dim} without EOS
    :param spatial_dim:
    :param eos_index:
    :param target_dim: of the model, becomes the sparse dim
    :return: {batch, labels} with EOS at the end of each sequence, their dim
    """
    labels = rf.copy(labels)
    labels.sparse_dim = target_dim
    labels, (spatial_dim,) = rf.pad(
        labels, axes=[spatial_dim], padding=[(0, 1)], value=eos_index, handle_dynamic_dims=True
    )
    return labels, spatial_dim
