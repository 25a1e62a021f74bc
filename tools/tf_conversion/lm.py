"""
Names and sizes of the language models of RETURNN's TensorFlow backend: LSTM, Transformer; and which parameter of our
models each variable becomes.
"""

from __future__ import annotations

import re
from typing import Any

from .transforms import NATIVE_LSTM_BIAS, NATIVE_LSTM_WEIGHT, TRANSPOSE
from .variables import COPY, Assignment, ConversionError, Variables

__all__ = ["has_lstm_lm", "has_transformer_lm", "map_lstm_lm", "map_transformer_lm"]


def has_lstm_lm(variables: Variables) -> bool:
    """Whether there is an LSTM language model."""
    return "lstm0/rec/W_re" in variables and "input/W" in variables


def has_transformer_lm(variables: Variables) -> bool:
    """Whether there is a Transformer language model."""
    return "dec_0_self_att_att/QKV" in variables


def _layer_numbers(variables: Variables, pattern: str, what: str) -> list[int]:
    """:return: 0 ... n-1, the numbers of the layers whose variables match"""
    numbers = sorted({int(match[1]) for name in variables.names if (match := re.match(pattern, name))})
    if numbers != list(range(len(numbers))):
        raise ConversionError(f"{variables.reader.prefix} has the {what} {numbers}: some are missing")
    return numbers


def map_lstm_lm(variables: Variables, *, transposed: bool | None) -> tuple[dict[str, Any], int, list[Assignment]]:
    """
    :param variables:
    :param transposed: whether the output matrix is stored as [labels, LSTM]. None: as its shape says
    :return: options of :class:`rf_models.lm_options.LstmLmOptions`, number of labels, all parameters
    :raises ConversionError: it is something else, or the shape of the output matrix does not say
    """
    if not has_lstm_lm(variables):
        raise ConversionError(f"{variables.reader.prefix} has no LSTM language model (input/W, lstm0/rec/W_re)")
    numbers = _layer_numbers(variables, r"lstm(\d+)/rec/", "LSTM layers")
    num_labels, embed_dim = variables.shape("input/W", ndim=2)
    lstm_dim = variables.shape("lstm0/rec/W_re", ndim=2)[0]
    out_shape = variables.shape("output/W", ndim=2)
    if transposed is None:
        if num_labels == lstm_dim:
            raise ConversionError(
                f"output/W of {variables.reader.prefix} is square {list(out_shape)}: say whether it is stored"
                " transposed, with --set transposed=True or False"
            )
        transposed = out_shape == (num_labels, lstm_dim)
    expected = (num_labels, lstm_dim) if transposed else (lstm_dim, num_labels)
    if out_shape != expected:
        raise ConversionError(
            f"output/W of {variables.reader.prefix} has the shape {list(out_shape)}, but {num_labels} labels (input/W)"
            f" and {lstm_dim} LSTM cells need {list(expected)}"
        )
    assignments = [Assignment("input.weight", "input/W"), Assignment("input_bias", "input/b")]
    for i in numbers:
        for target, source in {"ff_weight": "W", "rec_weight": "W_re"}.items():
            assignments.append(Assignment(f"layers.{i}.{target}", f"lstm{i}/rec/{source}", NATIVE_LSTM_WEIGHT))
        assignments.append(Assignment(f"layers.{i}.bias", f"lstm{i}/rec/b", NATIVE_LSTM_BIAS))
    assignments.append(Assignment("output.weight", "output/W", TRANSPOSE if transposed else COPY))
    assignments.append(Assignment("output.bias", "output/b"))
    return {"num_layers": len(numbers), "embed_dim": embed_dim, "lstm_dim": lstm_dim}, num_labels, assignments


def map_transformer_lm(variables: Variables) -> tuple[dict[str, Any], int, list[Assignment]]:
    """
    :param variables:
    :return: options of :class:`rf_models.lm_options.TransformerLmOptions` that the checkpoint determines (not the
        number of heads, the activation, the positions), number of labels, all parameters
    :raises ConversionError: it is something else
    """
    if not has_transformer_lm(variables):
        raise ConversionError(
            f"{variables.reader.prefix} has no Transformer language model (no variable dec_0_self_att_att/QKV)"
        )
    numbers = _layer_numbers(variables, r"dec_(\d+)_", "Transformer layers")
    num_labels, embed_dim = variables.shape("target_embed_raw/W", ndim=2)
    model_dim, qkv_dim = variables.shape("dec_0_self_att_att/QKV", ndim=2)
    att_dim = variables.shape("dec_0_self_att_lin/W", ndim=2)[0]
    if qkv_dim != 3 * att_dim:
        raise ConversionError(
            f"{variables.reader.prefix}: dec_0_self_att_att/QKV has {qkv_dim} columns and dec_0_self_att_lin/W"
            f" {att_dim} rows, but keys and values of different size are not supported"
        )
    assignments = [
        Assignment("input_embedding.weight", "target_embed_raw/W"),
        Assignment("input_embedding_proj.weight", "target_embed_lin/W"),
        Assignment("final_layer_norm.scale", "decoder/scale"),
        Assignment("final_layer_norm.bias", "decoder/bias"),
        Assignment("logits.weight", "output/W"),
        Assignment("logits.bias", "output/b"),
    ]
    for i in numbers:
        for target, source in {
            "ff.linear_ff.weight": "ff_conv1/W",
            "ff.linear_ff.bias": "ff_conv1/b",
            "ff.linear_out.weight": "ff_conv2/W",
            "ff.linear_out.bias": "ff_conv2/b",
            "ff_layer_norm.scale": "ff_laynorm/scale",
            "ff_layer_norm.bias": "ff_laynorm/bias",
            "self_att_layer_norm.scale": "self_att_laynorm/scale",
            "self_att_layer_norm.bias": "self_att_laynorm/bias",
            "self_att.qkv.weight": "self_att_att/QKV",
            "self_att.proj.weight": "self_att_lin/W",
        }.items():
            assignments.append(Assignment(f"layers.{i}.{target}", f"dec_{i}_{source}"))
    options = {
        "num_layers": len(numbers),
        "embed_dim": embed_dim,
        "model_dim": model_dim,
        "att_dim": att_dim,
        "ff_dim": variables.shape("dec_0_ff_conv1/W", ndim=2)[1],
    }
    return options, num_labels, assignments
