"""
RETURNN TensorFlow configs of small networks with the layer names of the published ones. For the environment with
TensorFlow (``make test-tf``): no import from this project.

They stand for users' own configs: tools/export_tf_reference.py reads them as files. So each config is a text, with the
network as a plain dict.
"""

from __future__ import annotations

import pprint


def features(*, num_mel: int, mean: list | None = None, stddev: list | None = None) -> dict:
    net = {
        "stft": {"class": "stft", "frame_shift": 160, "frame_size": 400, "fft_size": 512, "from": "data:data"},
        "abs": {"class": "activation", "activation": "abs", "from": "stft"},
        "power": {"class": "eval", "eval": "source(0) ** 2", "from": "abs"},
        "mel_filterbank": {
            "class": "mel_filterbank",
            "from": "power",
            "fft_size": 512,
            "nr_of_filters": num_mel,
            "n_out": num_mel,
        },
        "log": {"class": "activation", "activation": "safe_log", "opts": {"eps": 1e-10}, "from": "mel_filterbank"},
        "log10": {"class": "eval", "eval": "source(0) / 2.3026", "from": "log"},
        "log_mel_features": {"class": "copy", "from": "log10"},
    }
    if mean:
        net["log_mel_features"] = {
            "class": "eval",
            "from": "log10",
            "eval": f"(source(0) - tf.constant({mean}, tf.float32)) / tf.constant({stddev}, tf.float32)",
        }
    return net


def conformer(
    *, num_layers: int, dim: int, ff: int, heads: int, channels: tuple, kernel: int, clipping: int, bn_version: int = 0
) -> dict:
    """:param bn_version: how BatchNorm names its parameters, 0 to 2"""
    conv = {"class": "conv", "padding": "same", "filter_size": (3, 3), "activation": "relu", "with_bias": True}
    net = {
        "source0": {"class": "split_dims", "axis": "F", "dims": (-1, 1), "from": "log_mel_features"},
        "conv0": {**conv, "from": "source0", "n_out": channels[0]},
        "conv0p": {"class": "pool", "from": "conv0", "pool_size": (1, 2), "mode": "max", "padding": "same"},
        "subsample_conv0": {**conv, "from": "conv0p", "n_out": channels[1], "strides": (3, 1)},
        "subsample_conv1": {**conv, "from": "subsample_conv0", "n_out": channels[2], "strides": (2, 1)},
        "conv_merged": {"class": "merge_dims", "from": "subsample_conv1", "axes": "static"},
        "source_linear": {
            "class": "linear",
            "activation": None,
            "with_bias": False,
            "from": "conv_merged",
            "n_out": dim,
        },
    }
    last = "source_linear"
    for i in range(1, num_layers + 1):
        last = _conformer_block(
            net,
            f"conformer_block_{i:02}",
            last,
            dim=dim,
            ff=ff,
            heads=heads,
            kernel=kernel,
            clipping=clipping,
            bn_version=bn_version,
        )
    net["encoder"] = {"class": "copy", "from": last, "is_output_layer": True}
    return net


def _conformer_block(
    net: dict, name: str, last: str, *, dim: int, ff: int, heads: int, kernel: int, clipping: int, bn_version: int
) -> str:
    def _add(part: str, **opts) -> str:
        net[f"{name}_{part}"] = opts
        return f"{name}_{part}"

    def _linear(part: str, source: str, n_out: int, *, bias: bool = True) -> str:
        opts = {"class": "linear", "activation": None, "with_bias": bias, "from": source, "n_out": n_out}
        return _add(part, **opts)

    def _add_half(part: str, residual: str, source: str) -> str:
        return _add(part, **{"class": "eval", "eval": "source(0) + 0.5 * source(1)", "from": [residual, source]})

    def _ff(part: str, source: str) -> str:
        x = _add(f"{part}_ln", **{"class": "layer_norm", "from": source})
        x = _linear(f"{part}_ff1", x, ff)
        x = _add(f"{part}_relu_square", **{"class": "eval", "eval": "tf.nn.relu(source(0)) ** 2", "from": x})
        return _add_half(f"{part}_res", source, _linear(f"{part}_ff2", x, dim))

    last = _ff("ffmod_1", last)
    x = _add("self_att_ln", **{"class": "layer_norm", "from": last})
    pos = {"class": "relative_positional_encoding", "from": x, "n_out": dim // heads, "clipping": clipping}
    pos = _add("self_att_ln_rel_pos_enc", **pos)
    att = {"class": "self_attention", "from": x, "n_out": dim, "num_heads": heads, "total_key_dim": dim}
    x = _add("self_att", **att, key_shift=pos)
    x = _linear("self_att_linear", x, dim, bias=False)
    last = _add("self_att_res", **{"class": "combine", "kind": "add", "from": [last, x], "n_out": dim})
    x = _add("conv_mod_ln", **{"class": "layer_norm", "from": last})
    x = _linear("conv_mod_pointwise_conv1", x, 2 * dim)
    x = _add("conv_mod_glu", **{"class": "gating", "activation": "identity", "from": x})
    conv = {"class": "conv", "filter_size": (kernel,), "padding": "same", "groups": dim, "n_out": dim}
    x = _add("conv_mod_depthwise_conv2", **conv, activation=None, with_bias=True, **{"from": x})
    # As in the published setups; without the last two, RETURNN updates the statistics in recognition as well.
    bn = {"momentum": 0.1, "epsilon": 1e-3, "update_sample_only_in_training": True, "delay_sample_update": True}
    bn["param_version"] = bn_version
    x = _add("conv_mod_bn", **{"class": "batch_norm", "from": x, **bn})
    x = _add("conv_mod_swish", **{"class": "activation", "activation": "swish", "from": x})
    x = _linear("conv_mod_pointwise_conv2", x, dim)
    last = _add("conv_mod_res", **{"class": "combine", "kind": "add", "from": [last, x], "n_out": dim})
    last = _ff("ffmod_2", last)
    return _add("ln", **{"class": "layer_norm", "from": last})


def ctc(*, num_labels: int, source: str = "encoder") -> dict:
    return {"ctc": {"class": "softmax", "from": source, "n_out": num_labels + 1, "is_output_layer": True}}


def decoder(
    *,
    num_labels: int,
    embed: int,
    lstm: int,
    att_dim: int,
    readout: int,
    use_zoneout_output: bool,
    mini_lstm: int | None = None,
    enc_dim: int,
) -> dict:
    """:param mini_lstm: the internal language model instead of attention"""
    net = {
        "enc_ctx": {"class": "linear", "activation": None, "with_bias": True, "from": "encoder", "n_out": att_dim},
        "enc_value": {"class": "split_dims", "axis": "F", "dims": (1, -1), "from": "encoder"},
        "inv_fertility": {
            "class": "linear",
            "activation": "sigmoid",
            "with_bias": False,
            "from": "encoder",
            "n_out": 1,
        },
    }
    linear = {"class": "linear", "activation": None, "with_bias": False}
    unit = {
        "output": {
            "class": "choice",
            "target": "bpe_labels",
            "beam_size": 1,
            "from": "output_prob",
            "initial_output": 0,
        },
        "end": {"class": "compare", "from": "output", "value": 0},
        "target_embed0": {**linear, "from": "output", "n_out": embed, "initial_output": 0},
        "target_embed": {"class": "copy", "from": "target_embed0", "initial_output": 0},
        "s": {
            "class": "rnn_cell",
            "unit": "zoneoutlstm",
            "unit_opts": {
                "zoneout_factor_cell": 0.15,
                "zoneout_factor_output": 0.05,
                "use_zoneout_output": use_zoneout_output,
            },
            "from": ["prev:target_embed", "prev:att"],
            "n_out": lstm,
        },
        "readout_in": {**linear, "with_bias": True, "from": ["s", "prev:target_embed", "att"], "n_out": readout},
        "readout": {"class": "reduce_out", "mode": "max", "num_pieces": 2, "from": "readout_in"},
        "output_prob": {
            "class": "softmax",
            "from": "readout",
            "target": "bpe_labels",
            "loss": "ce",
            "is_output_layer": True,
        },
    }
    if mini_lstm:
        unit["att_lstm"] = {"class": "rec", "unit": "nativelstm2", "from": "prev:target_embed", "n_out": mini_lstm}
        unit["att"] = {**linear, "with_bias": True, "from": "att_lstm", "n_out": enc_dim}
    else:
        unit |= {
            "s_transformed": {**linear, "from": "s", "n_out": att_dim},
            "weight_feedback": {**linear, "from": "prev:accum_att_weights", "n_out": att_dim},
            "energy_in": {
                "class": "combine",
                "kind": "add",
                "from": ["base:enc_ctx", "weight_feedback", "s_transformed"],
                "n_out": att_dim,
            },
            "energy_tanh": {"class": "activation", "activation": "tanh", "from": "energy_in"},
            "energy": {**linear, "from": "energy_tanh", "n_out": 1},
            "att_weights": {"class": "softmax_over_spatial", "from": "energy"},
            "accum_att_weights": {
                "class": "eval",
                "eval": "source(0) + source(1) * source(2) * 0.5",
                "from": ["prev:accum_att_weights", "att_weights", "base:inv_fertility"],
                "out_type": {"dim": 1, "shape": (None, 1)},
            },
            "att0": {"class": "generic_attention", "weights": "att_weights", "base": "base:enc_value"},
            "att": {"class": "merge_dims", "axes": "except_batch", "from": "att0"},
        }
    net["output"] = {
        "class": "rec",
        "from": [],
        "target": "bpe_labels",
        "max_seq_len": 20,
        "unit": unit,
    }
    return net


def lstm_lm(*, num_labels: int, embed: int, lstm: int, num_layers: int, transposed: bool) -> dict:
    linear = {"class": "linear", "activation": "identity"}
    net = {"input": {**linear, "from": "data:delayed", "n_out": embed}}
    last = "input"
    for i in range(num_layers):
        net[f"lstm{i}"] = {"class": "rec", "unit": "nativelstm2", "direction": 1, "from": last, "n_out": lstm}
        last = f"lstm{i}"
    net["output"] = {"class": "softmax", "from": last, "target": "data", "loss": "ce"}
    if transposed:
        net["output"]["use_transposed_weights"] = True
    return net


def transformer_lm(
    *,
    num_labels: int,
    embed: int,
    dim: int,
    ff: int,
    heads: int,
    num_layers: int,
    activation: str,
    positions: bool,
) -> dict:
    linear = {"class": "linear", "activation": None}
    unit = {"target_embed_raw": {**linear, "with_bias": False, "from": "data:source", "n_out": embed}}
    last = "target_embed_raw"
    if positions:
        unit["target_embed_with_pos"] = {"class": "positional_encoding", "add_to_input": True, "from": last}
        last = "target_embed_with_pos"
    unit["target_embed_lin"] = {**linear, "with_bias": False, "from": last, "n_out": dim}
    last = "target_embed_lin"
    for i in range(num_layers):
        name = f"dec_{i}"
        unit |= {
            f"{name}_self_att_laynorm": {"class": "layer_norm", "from": last},
            f"{name}_self_att_att": {
                "class": "self_attention",
                "num_heads": heads,
                "total_key_dim": dim,
                "n_out": dim,
                "from": f"{name}_self_att_laynorm",
                "attention_left_only": True,
            },
            f"{name}_self_att_lin": {**linear, "with_bias": False, "from": f"{name}_self_att_att", "n_out": dim},
            f"{name}_att_out": {
                "class": "combine",
                "kind": "add",
                "from": [last, f"{name}_self_att_lin"],
                "n_out": dim,
            },
            f"{name}_ff_laynorm": {"class": "layer_norm", "from": f"{name}_att_out"},
            f"{name}_ff_conv1": {
                **linear,
                "activation": activation,
                "with_bias": True,
                "from": f"{name}_ff_laynorm",
                "n_out": ff,
            },
            f"{name}_ff_conv2": {**linear, "with_bias": True, "from": f"{name}_ff_conv1", "n_out": dim},
            name: {"class": "combine", "kind": "add", "from": [f"{name}_att_out", f"{name}_ff_conv2"], "n_out": dim},
        }
        last = name
    unit["decoder"] = {"class": "layer_norm", "from": last}
    unit["output"] = {"class": "softmax", "from": "decoder", "target": "data", "loss": "ce", "is_output_layer": True}
    return {"output": {"class": "rec", "from": "data:delayed", "target": "data", "unit": unit}}


def asr_config(network: dict, *, num_labels: int) -> str:
    """:return: text of a RETURNN config"""
    extern_data = {
        "data": {"dim": 1, "shape": (None, 1)},
        "bpe_labels": {"dim": num_labels, "shape": (None,), "sparse": True},
    }
    return _config(network, extern_data, target="bpe_labels")


def lm_config(network: dict, *, num_labels: int) -> str:
    """:return: text of a RETURNN config"""
    labels = {"dim": num_labels, "shape": (None,), "sparse": True}
    extern_data = {"data": labels, "delayed": labels}
    return _config(network, extern_data, target="data")


def _config(network: dict, extern_data: dict, *, target: str) -> str:
    lines = [
        "#!rnn.py",
        "use_tensorflow = True",
        "task = 'search'",
        f"target = {target!r}",
        f"extern_data = {pprint.pformat(extern_data)}",
        f"network = {pprint.pformat(network, sort_dicts=False)}",
    ]
    return "\n".join(lines) + "\n"
