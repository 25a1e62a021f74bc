"""
Names and sizes of the ASR networks of RETURNN's TensorFlow backend: Conformer encoder, CTC softmax, attention decoder,
Mini-LSTM internal language model; and which parameter of our models each variable becomes.
"""

from __future__ import annotations

import re
from typing import Any

from .transforms import (
    CONV,
    NATIVE_LSTM_BIAS,
    NATIVE_LSTM_WEIGHT,
    SQUEEZE,
    ZONEOUT_BIAS,
    zoneout_input_weight,
    zoneout_recurrent_weight,
)
from .variables import COPY, Assignment, ConversionError, Variables

__all__ = ["ENCODER", "has_decoder", "has_encoder", "has_mini_lstm", "map_asr", "map_mini_lstm_ilm"]

ENCODER = r"(conv0|subsample_conv\d+|source_linear|conformer_block_\d+_\w+)/.*"
"""Pattern of the names of the encoder's variables."""
_DECODER = (
    r"(enc_ctx|inv_fertility|target_embed0?|weight_feedback|s_transformed|energy|readout_in|output_prob|s/rec)/.*"
)
_ATTENTION = r"(enc_ctx|inv_fertility|weight_feedback|s_transformed|energy)/.*"
_MINI_LSTM = r"(att_lstm/rec|att)/.*"
_CTC = r"ctc/.*"


def has_encoder(variables: Variables) -> bool:
    """Whether there is a Conformer."""
    return "source_linear/W" in variables


def has_decoder(variables: Variables) -> bool:
    """Whether there is an attention decoder."""
    return "s/rec/lstm_cell/kernel" in variables


def has_mini_lstm(variables: Variables) -> bool:
    """Whether there is the Mini-LSTM of an internal language model."""
    return "att_lstm/rec/W_re" in variables


# The layers of one Conformer block: name behind conformer_block_NN_ -> name behind encoder.layers.N.
_BLOCK_LAYER_NORMS = {
    "ffmod_1_ln": "ffn1_layer_norm",
    "ffmod_2_ln": "ffn2_layer_norm",
    "conv_mod_ln": "conv_layer_norm",
    "self_att_ln": "self_att_layer_norm",
    "ln": "final_layer_norm",
}
_BLOCK_LINEARS = {
    "ffmod_1_ff1": "ffn1.linear_ff",
    "ffmod_1_ff2": "ffn1.linear_out",
    "ffmod_2_ff1": "ffn2.linear_ff",
    "ffmod_2_ff2": "ffn2.linear_out",
    "conv_mod_pointwise_conv1": "conv_block.positionwise_conv1",
    "conv_mod_pointwise_conv2": "conv_block.positionwise_conv2",
}


def _linear(source: str, target: str, *, bias: bool = True, **kwargs: Any) -> list[Assignment]:
    result = [Assignment(f"{target}.weight", f"{source}/W", **kwargs)]
    if bias:
        result.append(Assignment(f"{target}.bias", f"{source}/b", **kwargs))
    return result


def _map_encoder(variables: Variables) -> tuple[dict[str, Any], list[Assignment]]:
    """:return: options of the encoder as far as they are visible, its parameters"""
    if not has_encoder(variables):
        raise ConversionError(f"{variables.reader.prefix} has no Conformer encoder (no variable source_linear/W)")
    conv_names = ["conv0"]
    while f"subsample_conv{len(conv_names) - 1}/W" in variables:
        conv_names.append(f"subsample_conv{len(conv_names) - 1}")
    assignments, channels = [], []
    for i, name in enumerate(conv_names):
        *filter_size, _, out_channels = variables.shape(f"{name}/W", ndim=4)
        if filter_size != [3, 3]:
            raise ConversionError(
                f"{name}/W is a filter of {filter_size}: the frontend of our models has 3 x 3 filters"
            )
        channels.append(out_channels)
        target = f"encoder.input_layer.conv_layers.{i}"
        assignments.append(Assignment(f"{target}.filter", f"{name}/W", CONV))
        assignments.append(Assignment(f"{target}.bias", f"{name}/bias"))
    assignments += _linear("source_linear", "encoder.input_projection", bias=False)

    numbers = sorted({int(m[1]) for name in variables.names if (m := re.match(r"conformer_block_(\d+)_", name))})
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        raise ConversionError(f"{variables.reader.prefix} has the Conformer blocks {numbers}: some are missing")
    digits = {len(m[1]) for name in variables.names if (m := re.match(r"conformer_block_(\d+)_", name))}
    for number in numbers:
        block = f"conformer_block_{number:0{min(digits)}d}"
        layer = f"encoder.layers.{number - 1}"
        for source, target in _BLOCK_LAYER_NORMS.items():
            for param in ("scale", "bias"):
                assignments.append(Assignment(f"{layer}.{target}.{param}", f"{block}_{source}/{param}"))
        for source, target in _BLOCK_LINEARS.items():
            assignments += _linear(f"{block}_{source}", f"{layer}.{target}")
        conv, conv_target = f"{block}_conv_mod_depthwise_conv2", f"{layer}.conv_block.depthwise_conv"
        assignments.append(Assignment(f"{conv_target}.filter", f"{conv}/W", CONV))
        assignments.append(Assignment(f"{conv_target}.bias", f"{conv}/bias"))
        for source, target in {
            "mean": "running_mean",
            "variance": "running_variance",
            "gamma": "gamma",
            "beta": "beta",
        }.items():
            assignments.append(
                Assignment(f"{layer}.conv_block.norm.{target}", f"{block}_conv_mod_bn/batch_norm/{source}", SQUEEZE)
            )
        assignments.append(Assignment(f"{layer}.self_att.qkv.weight", f"{block}_self_att/QKV"))
        assignments += _linear(f"{block}_self_att_linear", f"{layer}.self_att.proj", bias=False)
        assignments.append(
            Assignment(f"{layer}.self_att.learned_pos_emb.pos_emb", f"{block}_self_att_ln_rel_pos_enc/encoding_matrix")
        )

    block = f"conformer_block_{1:0{min(digits)}d}"
    merged_dim, enc_dim = variables.shape("source_linear/W", ndim=2)
    num_positions, head_dim = variables.shape(f"{block}_self_att_ln_rel_pos_enc/encoding_matrix", ndim=2)
    if merged_dim % channels[-1] or enc_dim % head_dim or num_positions % 2 == 0:
        raise ConversionError(
            f"source_linear/W {[merged_dim, enc_dim]}, the {channels[-1]} channels below it and the positions"
            f" {[num_positions, head_dim]} of {variables.reader.prefix} do not fit each other"
        )
    options = {
        # One pooling by 2 over frequency. An odd number of filters would look the same.
        "num_mel_filters": 2 * (merged_dim // channels[-1]),
        "enc_num_layers": len(numbers),
        "enc_dim": enc_dim,
        "enc_ff_dim": variables.shape(f"{block}_ffmod_1_ff1/W", ndim=2)[1],
        "enc_num_heads": enc_dim // head_dim,
        "enc_conv_kernel_size": variables.shape(f"{block}_conv_mod_depthwise_conv2/W", ndim=3)[0],
        "enc_frontend_channels": tuple(channels),
        "enc_frontend_padding": "tf_same",
        "enc_rel_pos_clipping": (num_positions - 1) // 2,
    }
    return options, assignments


def _zoneout_lstm(variables: Variables, target: str, *, in_dim: int, **kwargs: Any) -> list[Assignment]:
    """:return: parameters of the decoder's LSTM"""
    kernel = "s/rec/lstm_cell/kernel"
    rows, columns = variables.shape(kernel, ndim=2)
    if columns != 4 * (rows - in_dim):
        raise ConversionError(
            f"{variables.names[kernel]} in {variables.reader.prefix} has the shape {[rows, columns]}, but with an input"
            f" (embedding, context) of {in_dim} it should be {[rows, 4 * (rows - in_dim)]}"
        )
    return [
        Assignment(f"{target}.ff_weight", kernel, zoneout_input_weight(in_dim), **kwargs),
        Assignment(f"{target}.rec_weight", kernel, zoneout_recurrent_weight(in_dim), **kwargs),
        Assignment(f"{target}.bias", "s/rec/lstm_cell/bias", ZONEOUT_BIAS, **kwargs),
    ]


def _embedding(variables: Variables) -> str:
    return "target_embed0/W" if "target_embed0/W" in variables else "target_embed/W"


def _decoder_options(variables: Variables) -> tuple[dict[str, Any], int]:
    """:return: options of the decoder without its attention, number of labels"""
    num_labels, embed_dim = variables.shape(_embedding(variables), ndim=2)
    out_labels = variables.shape("output_prob/W", ndim=2)[1]
    if num_labels != out_labels:
        raise ConversionError(
            f"{variables.reader.prefix}: the embedding has {num_labels} labels, but output_prob/W has {out_labels}"
        )
    options = {
        "dec_embed_dim": embed_dim,
        "dec_lstm_dim": variables.shape("s/rec/lstm_cell/kernel", ndim=2)[1] // 4,
        "dec_readout_dim": variables.shape("readout_in/W", ndim=2)[1],
    }
    return options, num_labels


def _ctc_output(variables: Variables, *, with_decoder: bool) -> str | None:
    """:return: name of the softmax over labels and blank; without decoder, it may be the layer "output" """
    names = ["ctc"] if with_decoder else ["ctc", "output", "enc_logits"]
    return next((name for name in names if f"{name}/W" in variables), None)


def map_asr(variables: Variables, *, with_decoder: bool) -> tuple[dict[str, Any], int, list[Assignment]]:
    """
    :param variables:
    :param with_decoder: False: CTC-only
    :return: options of :class:`rf_models.options.AedCtcOptions` that the checkpoint determines (``ctc_layers`` on the
        last layer), number of labels, all parameters but those of the features
    :raises ConversionError: it is something else
    """
    options, assignments = _map_encoder(variables)
    options["with_decoder"] = with_decoder
    ctc = _ctc_output(variables, with_decoder=with_decoder)
    num_labels = None
    if with_decoder:
        if not has_decoder(variables):
            raise ConversionError(
                f"{variables.reader.prefix} has no attention decoder (no LSTM s): for CTC alone, use --model ctc"
            )
        decoder_options, num_labels = _decoder_options(variables)
        options |= decoder_options
        options["dec_att_dim"] = variables.shape("enc_ctx/W", ndim=2)[1]
        for name, bias in {
            "enc_ctx": True,
            "inv_fertility": False,
            "weight_feedback": False,
            "s_transformed": False,
            "energy": False,
            "readout_in": True,
            "output_prob": True,
        }.items():
            assignments += _linear(name, f"decoder.{name}", bias=bias)
        assignments.append(Assignment("decoder.target_embed.weight", _embedding(variables)))
        in_dim = options["dec_embed_dim"] + options["enc_dim"]
        assignments += _zoneout_lstm(variables, "decoder.s", in_dim=in_dim)
        variables.ignore(_MINI_LSTM, "internal language model, another kind of model (mini_lstm_ilm)")
    else:
        if ctc is None:
            raise ConversionError(f"{variables.reader.prefix} has no CTC softmax (ctc/W)")
        variables.ignore(_DECODER, "attention decoder, left out of a CTC-only model")
        variables.ignore(_MINI_LSTM, "internal language model, left out of a CTC-only model")
    options["ctc_layers"] = (options["enc_num_layers"],) if ctc else ()
    if ctc:
        num_outputs = variables.shape(f"{ctc}/W", ndim=2)[1]
        if num_labels is None:
            num_labels = num_outputs - 1
        elif num_outputs != num_labels + 1:
            raise ConversionError(
                f"{variables.reader.prefix}: {ctc}/W has {num_outputs} outputs, but the decoder has {num_labels}"
                f" labels, so {num_labels + 1} with blank were expected"
            )
        # The caller replaces the layer number if the user names another layer.
        assignments += _linear(ctc, "ctc_heads.layer{ctc_layer}")
    return options, num_labels, assignments


def map_mini_lstm_ilm(
    variables: Variables, asr_variables: Variables | None
) -> tuple[dict[str, Any], int, list[Assignment]]:
    """
    :param variables: of the training of the internal language model. They include frozen copies of the ASR model
    :param asr_variables: of the ASR model, whose decoder is used. None: the frozen copies
    :return: options of :class:`rf_models.lm_options.MiniLstmIlmOptions`, number of labels, all parameters
    :raises ConversionError: it is something else, or the two do not fit
    """
    if not has_mini_lstm(variables):
        raise ConversionError(f"{variables.reader.prefix} has no Mini-LSTM (no variable att_lstm/rec/W_re)")
    from_asr = asr_variables is not None
    decoder = asr_variables if from_asr else variables
    if not has_decoder(decoder):
        raise ConversionError(
            f"{decoder.reader.prefix} has no attention decoder (no LSTM s)"
            + ("" if from_asr else ": give the checkpoint of the ASR model with --asr-checkpoint")
        )
    options, num_labels = _decoder_options(decoder)
    options["mini_lstm_dim"] = variables.shape("att_lstm/rec/W_re", ndim=2)[0]
    options["enc_dim"] = variables.shape("att/W", ndim=2)[1]
    assignments = [
        Assignment("mini_att_lstm.ff_weight", "att_lstm/rec/W", NATIVE_LSTM_WEIGHT),
        Assignment("mini_att_lstm.rec_weight", "att_lstm/rec/W_re", NATIVE_LSTM_WEIGHT),
        Assignment("mini_att_lstm.bias", "att_lstm/rec/b", NATIVE_LSTM_BIAS),
        *_linear("att", "mini_att"),
        Assignment("target_embed.weight", _embedding(decoder), COPY, from_asr=from_asr),
        *_zoneout_lstm(decoder, "prior_s", in_dim=options["dec_embed_dim"] + options["enc_dim"], from_asr=from_asr),
        *_linear("readout_in", "prior_readout_in", from_asr=from_asr),
        *_linear("output_prob", "prior_output_prob", from_asr=from_asr),
    ]
    frozen = "frozen copy of the ASR model"
    for part in (variables, asr_variables) if from_asr else (variables,):
        own = {a.source for a in assignments if a.from_asr == (part is asr_variables)}
        reason = frozen if part is variables else "part of the ASR model that the internal language model does not have"
        for pattern in (ENCODER, _CTC, _ATTENTION, _DECODER):
            part.ignore(pattern, reason, keep=own)
        if part is asr_variables:
            part.ignore(_MINI_LSTM, "another internal language model", keep=set())
    return options, num_labels, assignments
