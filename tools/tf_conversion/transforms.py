"""
Transforms of values between RETURNN's TensorFlow layers and the modules of its frontend.

Linear weights are (in, out) on both sides, convolutions are correlations on both sides, the columns of the
self-attention matrix are ordered [head][query|key|value][dim] on both sides. LSTM gates: i input, f forget, o output,
j cell input.
"""

from __future__ import annotations

import numpy as np

from .variables import Transform

__all__ = [
    "CONV",
    "NATIVE_LSTM_BIAS",
    "NATIVE_LSTM_WEIGHT",
    "SQUEEZE",
    "TRANSPOSE",
    "ZONEOUT_BIAS",
    "zoneout_input_weight",
    "zoneout_recurrent_weight",
]


def _permute_gates(value: np.ndarray, source: str, target: str) -> np.ndarray:
    """
    :param value: gates in the last axis
    :param source: their order, for example "ijfo"
    :param target: wanted order
    """
    if value.ndim == 0 or value.shape[-1] % 4:
        raise ValueError(f"the last axis of the shape {list(value.shape)} does not consist of four LSTM gates")
    parts = dict(zip(source, np.split(value, 4, axis=-1), strict=True))
    return np.concatenate([parts[gate] for gate in target], axis=-1)


def _zoneout_bias(value: np.ndarray) -> np.ndarray:
    i, j, f, o = np.split(_permute_gates(value, "ijfo", "ijfo"), 4)
    return np.concatenate([j, i, f + 1.0, o])


CONV = Transform(
    "axes (spatial..., in, out) to (out, in, spatial...)",
    lambda value: np.transpose(value, (value.ndim - 1, value.ndim - 2, *range(value.ndim - 2))),
)
SQUEEZE = Transform("(1, 1, C) to (C)", lambda value: value.reshape(-1))
TRANSPOSE = Transform("transposed", np.transpose)
# RETURNN's NativeLstm: gates j i f o, no hidden forget bias; rf.LSTM: i f j o, as in PyTorch.
NATIVE_LSTM_WEIGHT = Transform("gates jifo to ifjo, transposed", lambda value: _permute_gates(value, "jifo", "ifjo").T)
NATIVE_LSTM_BIAS = Transform("gates jifo to ifjo", lambda value: _permute_gates(value, "jifo", "ifjo"))
# TensorFlow's LSTMCell, below RETURNN's zoneout: gates i j f o, adds 1 to the forget gate when it runs.
ZONEOUT_BIAS = Transform("gates ijfo to jifo, +1 on f", _zoneout_bias)


def zoneout_input_weight(in_size: int) -> Transform:
    """The rows of the kernel for the input, which come first."""
    return Transform(
        f"rows [:{in_size}], gates ijfo to jifo, transposed",
        lambda value: _permute_gates(value[:in_size], "ijfo", "jifo").T,
    )


def zoneout_recurrent_weight(in_size: int) -> Transform:
    """The rows of the kernel for the previous output, which come last."""
    return Transform(
        f"rows [{in_size}:], gates ijfo to jifo, transposed",
        lambda value: _permute_gates(value[in_size:], "ijfo", "jifo").T,
    )
