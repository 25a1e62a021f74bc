"""
Options of the language models and of the internal language model, as frozen dataclasses with checked values.

Defaults are the published sizes of LibriSpeech (Irie et al. 2019, https://arxiv.org/abs/1905.04226; Zeineldeen et al.
2021, https://arxiv.org/abs/2104.05544).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

__all__ = ["LstmLmOptions", "MiniLstmIlmOptions", "TransformerLmOptions"]


def _check_sizes(opts: Any) -> None:
    """:raises ValueError: a size is not positive, or a dropout is no probability"""
    for field in fields(opts):
        value = getattr(opts, field.name)
        if field.type == "int" and value < 1:
            raise ValueError(f"{field.name} = {value}: expected at least 1")
        if field.type == "float" and not 0.0 <= value < 1.0:
            raise ValueError(f"{field.name} = {value}: expected 0 <= {field.name} < 1")


@dataclass(frozen=True)
class LstmLmOptions:
    """Sizes of :class:`rf_models.lm.LstmLm`."""

    num_layers: int = 4
    embed_dim: int = 128
    lstm_dim: int = 2048
    dropout: float = 0.0
    """On the input of each LSTM layer and of the softmax."""

    def __post_init__(self):
        _check_sizes(self)


@dataclass(frozen=True)
class TransformerLmOptions:
    """Sizes of :class:`rf_models.lm.TransformerLm`."""

    num_layers: int = 24
    embed_dim: int = 128
    model_dim: int = 1024
    ff_dim: int = 4096
    num_heads: int = 8
    att_dim: int = 1024
    """Of keys, and of values, of all heads together."""
    activation: Literal["relu", "gelu", "gelu_tanh"] = "relu"
    """"gelu" is x Phi(x); "gelu_tanh" its approximation (Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415),
    which RETURNN used with TensorFlow before 2.4."""
    positional_encoding: bool = True
    """Absolute and sinusoidal, added to the embedding."""
    dropout: float = 0.1
    att_dropout: float = 0.1

    def __post_init__(self):
        _check_sizes(self)
        if self.activation not in ("relu", "gelu", "gelu_tanh"):
            raise ValueError(f"activation = {self.activation!r}: expected relu, gelu or gelu_tanh")
        if self.att_dim % self.num_heads:
            raise ValueError(f"att_dim = {self.att_dim} is not divisible by num_heads = {self.num_heads}")
        if self.positional_encoding and self.embed_dim % 2:
            raise ValueError(f"embed_dim = {self.embed_dim}: the positional encoding needs an even number")


@dataclass(frozen=True)
class MiniLstmIlmOptions:
    """Sizes of :class:`rf_models.ilm.MiniLstmIlm`; those that start with ``dec_`` are of the ASR model's decoder."""

    mini_lstm_dim: int = 50
    enc_dim: int = 512
    dec_embed_dim: int = 640
    dec_lstm_dim: int = 1024
    dec_readout_dim: int = 1024
    dec_zoneout_cell: float = 0.15
    dec_zoneout_output: float = 0.05
    dec_use_zoneout_output: bool = True

    def __post_init__(self):
        _check_sizes(self)
        if self.dec_readout_dim % 2:
            raise ValueError(f"dec_readout_dim = {self.dec_readout_dim}: the max-out over pairs needs an even number")
