#!/usr/bin/env python3
"""
Outputs of a RETURNN TensorFlow network, as a reference for tools/convert_tf_checkpoint.py --verify.

  python tools/export_tf_reference.py tf.config average.index ref.npz --audio a.flac b.flac --labels labels.txt
  python tools/export_tf_reference.py tf.config average.index ref.npz --random 6
  python tools/export_tf_reference.py lm.config network.023.index lm_ref.npz --random 4
  python tools/export_tf_reference.py ilm.config average.index ilm_ref.npz --random 4 \\
      --stage ilm_log_probs=output/output_prob

Needs TensorFlow and RETURNN, but not PyTorch: an environment of its own, for example (TensorFlow 2.15 needs Python 3.10
or 3.11, and numpy < 2):

  python3.11 -m venv tfenv
  tfenv/bin/pip install tensorflow-cpu==2.15.1 'numpy<2' returnn soundfile

CONFIG is the config of the training or of a recognition, with the network as it was trained. CHECKPOINT is PREFIX.index
or PREFIX. Each utterance is computed alone, since TensorFlow's outputs depend on the padding of a batch. The network is
built for evaluation (no dropout, no search): labels are fed. Language models are those with the data "delayed", or with
--lm. Batch normalisation must not update its statistics in evaluation (update_sample_only_in_training).

--labels has one line of label indices for each utterance, without EOS. Without it, the labels are random: also with
them, equal outputs prove the conversion. Random audio is noise with a changing spectrum; six utterances have lengths of
all remainders modulo 6 frames.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from typing import Any

import numpy as np

__all__ = ["main"]

SAMPLE_RATE = 16_000
FRAME_SHIFT = 160  # samples

ASR_STAGES = {
    "log_mel": "log_mel_features",
    "encoder": "encoder",
    "ctc_log_probs": "ctc",
    "dec_log_probs": "output/output_prob",
}
ILM_STAGES = {"ilm_log_probs": "output/output_prob"}
LM_STAGES = {"log_probs": "output"}


class ExportError(Exception):
    """The message is for the user."""


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: command line without the program; None: of this process
    :return: exit code
    """
    args = _parse_args(argv)
    os.environ.setdefault("DISABLE_CUDA", "1")  # else RETURNN compiles GPU code wherever it finds nvcc
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    result: list[int] = []

    def _run() -> None:
        try:
            _export(args)
            result.append(0)
        except ExportError as exc:
            print(f"error: {exc}", file=sys.stderr)

    # RETURNN builds networks recursively: twelve Conformer blocks need a large stack.
    threading.stack_size(512 * 2**20)
    sys.setrecursionlimit(100_000)
    thread = threading.Thread(target=_run)
    thread.start()
    thread.join()
    return result[0] if result else 1


def _parse_args(argv: list[str] | None) -> argparse.Namespace:
    summary, _, epilog = __doc__.strip().partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", help="RETURNN config with the TensorFlow network")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="PREFIX.index or PREFIX")
    parser.add_argument("out", metavar="OUT.npz")
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument("--audio", metavar="FILE", nargs="+", help="16 kHz, one channel; scaled to a maximum of 1")
    inputs.add_argument("--random", metavar="N", type=int, help="N utterances of random audio and labels")
    parser.add_argument("--labels", metavar="FILE", help="label indices, a line for each utterance, without EOS")
    parser.add_argument("--lm", action="store_true", help="the network is a language model")
    parser.add_argument("--eos-index", metavar="N", type=int, default=0, help="label of EOS = BOS (%(default)s)")
    parser.add_argument(
        "--stage",
        metavar="NAME=LAYER",
        action="append",
        default=[],
        help="layer of a stage, if it is not the usual one: log_mel=log_mel_features, encoder=encoder,"
        " ctc_log_probs=ctc, dec_log_probs=output/output_prob; for language models log_probs=output; for the"
        " Mini-LSTM internal language model give ilm_log_probs=output/output_prob. NAME= leaves a stage out",
    )
    parser.add_argument("--target-key", metavar="KEY", help="extern_data key of the labels (default: target of CONFIG)")
    parser.add_argument("--seed", type=int, default=1, help="of random inputs (%(default)s)")
    args = parser.parse_args(argv)
    if args.random is not None and args.random < 1:
        parser.error("--random: at least 1")
    if not args.out.endswith(".npz"):
        parser.error(f"OUT = {args.out}: the name should end with .npz")
    return args


def _export(args: argparse.Namespace) -> None:
    for name in (args.config, *(args.audio or ()), *([args.labels] if args.labels else ())):
        if not os.path.isfile(name):
            raise ExportError(f"{name} does not exist")
    prefix = args.checkpoint[: -len(".index")] if args.checkpoint.endswith(".index") else args.checkpoint
    if not os.path.isfile(prefix + ".index"):
        raise ExportError(f"{prefix}.index does not exist")
    try:
        import tensorflow  # noqa: F401
        from returnn.tf.util.basic import setup_tf_thread_pools  # noqa: F401
    except ImportError as exc:
        raise ExportError(f"this needs TensorFlow and RETURNN ({exc}); see --help for an environment") from None
    network = _Network(args, prefix)
    seqs = _inputs(args, network)
    arrays: dict[str, np.ndarray] = {}
    outputs = []
    for i, seq in enumerate(seqs):
        found = network.outputs(seq)
        outputs.append(found)
        shapes = ", ".join(f"{stage} {'x'.join(map(str, value.shape))}" for stage, value in found.items())
        print(f"utterance {i + 1} of {len(seqs)}: {shapes}", flush=True)
    if network.is_lm or "ilm_log_probs" in network.layers:
        _add_padded(arrays, seqs, outputs, is_lm=network.is_lm)
    else:
        for i, (seq, found) in enumerate(zip(seqs, outputs, strict=True)):
            arrays[f"seq{i}_audio"], arrays[f"seq{i}_targets"] = seq["audio"], seq["targets"]
            arrays.update({f"seq{i}_{stage}": value[None] for stage, value in found.items()})
    temporary = f"{args.out}.{os.getpid()}.tmp.npz"
    try:
        np.savez_compressed(temporary, **arrays)
        os.replace(temporary, args.out)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
    print(f"{args.out}: {len(seqs)} utterances, {', '.join(network.layers)}")


def _add_padded(arrays: dict[str, np.ndarray], seqs: list, outputs: list, *, is_lm: bool) -> None:
    """Inputs and outputs of label sequences, padded with zeros."""
    lens = np.array([len(seq["targets"]) for seq in seqs], np.int32)

    def _pad(values: list[np.ndarray]) -> np.ndarray:
        res = np.zeros((len(values), lens.max(), *values[0].shape[1:]), values[0].dtype)
        for row, value in zip(res, values, strict=True):
            row[: len(value)] = value
        return res

    arrays["lens" if is_lm else "target_lens"] = lens
    for name in ("inputs", "targets") if is_lm else ("targets",):
        arrays[name] = _pad([seq[name] for seq in seqs])
    for stage in outputs[0]:
        arrays[stage] = _pad([found[stage] for found in outputs])


class _Network:
    """The TensorFlow network in a session."""

    def __init__(self, args: argparse.Namespace, prefix: str):
        from returnn.config import Config, set_global_config
        from returnn.log import log
        from returnn.tf import compat as tf_compat
        from returnn.tf.network import ExternData, TFNetwork
        from returnn.util.basic import BehaviorVersion

        config = Config()
        config.load_file(args.config)
        set_global_config(config)
        log.initialize(verbosity=[2])
        version = config.int("behavior_version", 0)
        if version:
            BehaviorVersion.set(version)
        tf_compat.v1.disable_eager_execution()
        tf_compat.v1.disable_v2_tensorshape()
        net_dict = config.typed_value("network")
        if config.has("get_network"):
            net_dict = config.typed_value("get_network")(epoch=100_000)
        if not isinstance(net_dict, dict):
            raise ExportError(f"{args.config} has no network dict (neither network nor get_network)")
        extern_data_opts = config.typed_value("extern_data") or {}
        net_dict = {name: layer for name, layer in net_dict.items() if not name.startswith("#")}  # notes of pretraining
        self.is_lm = args.lm or "delayed" in extern_data_opts
        self.target_key = args.target_key or ("data" if self.is_lm else config.value("target", "classes"))
        if self.target_key not in extern_data_opts:
            raise ExportError(
                f"{args.config} has no data {self.target_key!r} in extern_data, only {', '.join(extern_data_opts)}:"
                " name the labels with --target-key"
            )
        self.eos_index = args.eos_index
        self.layers = self._stage_layers(args, net_dict)
        for layer in self.layers.values():  # else RETURNN may leave them inside of the loop, or out
            _sub_dict(net_dict, layer, args.config)["is_output_layer"] = True
        tf_compat.v1.set_random_seed(1)
        self.session = tf_compat.v1.Session()
        self.extern_data = ExternData()
        # available_for_inference: all data are fed here, and without it layers upon it silently do not exist
        self.extern_data.init_from_config(config, auto_create_placeholders=True)
        for data in self.extern_data.data.values():
            data.available_for_inference = True
        self.network = TFNetwork(config=config, extern_data=self.extern_data, train_flag=False, eval_flag=True)
        self.network.construct_from_dict(net_dict)
        try:
            self.network.load_params_from_file(prefix, self.session)
        except Exception as exc:  # of many kinds, some with long lists
            text = " ".join(str(exc).split())[:400]
            raise ExportError(f"the parameters of {prefix} do not fit the network of {args.config}: {text}") from None
        self.fetches = {stage: self._fetch(layer) for stage, layer in self.layers.items()}
        self.num_labels = self.extern_data.data[self.target_key].dim

    def _stage_layers(self, args: argparse.Namespace, net_dict: dict[str, Any]) -> dict[str, str]:
        """:return: stage -> layer"""
        given = {}
        for text in args.stage:
            stage, equals, layer = text.partition("=")
            if not equals or stage not in {**ASR_STAGES, **LM_STAGES, **ILM_STAGES}:
                raise ExportError(f"--stage {text}: expected NAME=LAYER with a NAME as in --help")
            given[stage] = layer
        if self.is_lm:
            usual = dict(LM_STAGES)
            if "unit" in net_dict.get("output", {}):  # Transformer: the softmax is in the recurrent layer
                usual["log_probs"] = "output/output"
        elif "ilm_log_probs" in given:
            usual = {}
        else:
            usual = {stage: layer for stage, layer in ASR_STAGES.items() if layer.split("/")[0] in net_dict}
        layers = {stage: layer for stage, layer in {**usual, **given}.items() if layer}
        if not layers:
            raise ExportError(f"{args.config} has no layers {', '.join(ASR_STAGES.values())}: name them with --stage")
        return layers

    def _fetch(self, layer_name: str) -> Any:
        """:return: tensor [batch, time, features], for a softmax its logarithm"""
        from returnn.tf import compat as tf_compat

        layer = self.network.get_layer(layer_name)
        output = layer.output.copy_as_batch_major()
        if layer.layer_class == "softmax" or getattr(layer, "output_before_activation", None) is not None:
            before = layer.output_before_activation
            if before is not None and layer.layer_class == "softmax":
                logits = layer.output.copy_template()
                logits.placeholder = before.x
                return tf_compat.v1.nn.log_softmax(logits.copy_as_batch_major().placeholder)
        return output.placeholder

    def outputs(self, seq: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """:return: stage -> [time or labels, features]"""
        feed = {}
        for key, data in self.extern_data.data.items():
            if self.is_lm:
                value = {"delayed": seq["inputs"]}.get(key, seq["targets"])
            elif key == self.target_key:
                value = seq["targets"]
            elif key == "data":
                value = seq["audio"]
            else:
                continue
            shape = (1, *value.shape, *(1 for _ in range(data.batch_ndim - 2)))
            feed[data.placeholder] = (
                value.reshape(shape) if data.batch_dim_axis == 0 else value.reshape(shape).swapaxes(0, 1)
            )
            for dim in data.dim_tags:
                if dim.is_dynamic_seq_length():
                    feed[dim.dyn_size] = np.array([len(value)], np.int32)
        found = self.session.run(self.fetches, feed_dict=feed)
        return {stage: np.asarray(value, np.float32)[0] for stage, value in found.items()}


def _sub_dict(net_dict: dict[str, Any], layer: str, config: str) -> dict[str, Any]:
    """:return: dict of a layer, also of one in a recurrent layer"""
    part: Any = {"unit": net_dict}
    for name in layer.split("/"):
        inner = part.get("unit", part.get("subnetwork")) if isinstance(part, dict) else None
        if not isinstance(inner, dict) or name not in inner:
            raise ExportError(f"the network of {config} has no layer {layer}: see --stage")
        part = inner[name]
    return part


def _inputs(args: argparse.Namespace, network: _Network) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(args.seed)
    num = args.random or len(args.audio)
    seqs: list[dict[str, np.ndarray]] = []
    labels = _read_labels(args.labels, num, network.num_labels) if args.labels else None
    for i in range(num):
        if labels:
            targets = labels[i]
        else:
            targets = rng.integers(0, network.num_labels - 1, size=rng.integers(3, 15))
            targets = targets + (targets >= network.eos_index)  # not EOS
        seq = {"targets": np.append(targets, network.eos_index).astype(np.int32)}
        seq["inputs"] = np.append(network.eos_index, seq["targets"][:-1]).astype(np.int32)
        if not network.is_lm:
            if args.audio:
                seq["audio"] = _read_audio(args.audio[i])
            else:
                seq["audio"] = _random_audio(rng, num_frames=int(rng.integers(4, 18)) * 6 + i % 6)
        seqs.append(seq)
    return seqs


def _read_labels(filename: str, num_seqs: int, num_labels: int) -> list[np.ndarray]:
    with open(filename, encoding="utf8") as file:
        lines = file.read().splitlines()
    if len(lines) != num_seqs:
        raise ExportError(f"{filename} has {len(lines)} lines, expected one for each of {num_seqs} utterances")
    try:
        labels = [np.array(line.split(), dtype=np.int64) for line in lines]
    except ValueError:
        raise ExportError(f"{filename}: expected label indices, separated by spaces") from None
    for row in labels:
        if row.size and not 0 <= row.min() <= row.max() < num_labels:
            raise ExportError(f"{filename}: a label is not in 0 ... {num_labels - 1}")
    return labels


def _read_audio(filename: str) -> np.ndarray:
    """:return: [samples] float32, largest amplitude 1"""
    import soundfile

    try:
        audio, rate = soundfile.read(filename, dtype="float32")
    except RuntimeError as exc:
        raise ExportError(f"{filename} cannot be read: {exc}") from None
    if rate != SAMPLE_RATE or audio.ndim != 1:
        raise ExportError(f"{filename}: expected {SAMPLE_RATE} Hz and one channel, got {rate} Hz, shape {audio.shape}")
    return audio / max(float(np.abs(audio).max(initial=0.0)), 1e-7)


def _random_audio(rng: np.random.Generator, *, num_frames: int) -> np.ndarray:
    """:return: [samples] float32: noise, every 0.1 s with another colour and loudness"""
    num_samples = (num_frames - 1) * FRAME_SHIFT + 400 + int(rng.integers(0, FRAME_SHIFT))
    parts = []
    while sum(map(len, parts)) < num_samples:
        kernel = rng.normal(size=rng.integers(1, 30))
        noise = np.convolve(rng.normal(size=1600), kernel, mode="same")
        parts.append(noise / np.abs(noise).max() * rng.uniform(0.02, 1.0))
    return np.concatenate(parts)[:num_samples].astype(np.float32)


if __name__ == "__main__":
    sys.exit(main())
