"""
Comparison of a converted model with outputs of the TensorFlow network that it comes from.

References are .npz files as tools/export_tf_reference.py writes them. For each utterance N = 0, 1, ...:

- ASR models: ``seqN_audio`` [samples] float32 at 16 kHz, ``seqN_targets`` [labels] with EOS at the end, and of the
  network's outputs for this utterance alone any of ``seqN_log_mel`` [1, frames, filters], ``seqN_encoder`` [1, T, D],
  ``seqN_ctc_log_probs`` [1, T, V + 1], ``seqN_dec_log_probs`` [1, labels, V];
- language models: ``inputs`` [B, S] (BOS first), ``lens`` [B], ``log_probs`` [B, S, V];
- internal language model: ``targets`` [B, S] (EOS at the end), ``target_lens`` [B], ``ilm_log_probs`` [B, S, V].

Every utterance is computed alone, and all of them in one batch: TensorFlow did not mask padding, our models do, so the
references must be of single utterances (language models are causal: there, padding does not matter).
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import returnn.frontend as rf
import torch
from returnn.tensor import Dim, Tensor

from rf_models.checkpoint import ModelInfo, build_model, load_state_dict, read_model_info

from .variables import ConversionError

__all__ = ["TOLERANCE", "StageResult", "load_converted", "model_outputs", "read_reference", "verify"]

TOLERANCE = 2e-4
"""Largest absolute difference of a right conversion in float32; wrong ones differ by 1e-3 and more."""

_ASR_STAGES = ("log_mel", "encoder", "ctc_log_probs", "dec_log_probs")
Outputs = list[dict[str, np.ndarray]]
"""For each utterance: stage -> [time or labels, features]."""


@dataclass(frozen=True)
class StageResult:
    """Largest absolute differences of one stage."""

    stage: str
    alone: float
    in_batch: float
    num_seqs: int
    note: str = ""

    @property
    def worst(self) -> float:
        """The larger one; NaN if an output is NaN."""
        return float(np.maximum(self.alone, self.in_batch))

    def agrees(self, tolerance: float = TOLERANCE) -> bool:
        """Whether the difference is within the tolerance (NaN is not)."""
        return self.worst <= tolerance


@dataclass(frozen=True)
class Reference:
    """Inputs and expected outputs."""

    inputs: list[dict[str, np.ndarray]]
    """For each utterance: "audio", "targets" (ASR), "inputs" (LM), "targets" (ILM)."""
    outputs: Outputs


def load_converted(filename: str) -> tuple[ModelInfo, rf.Module]:
    """
    :param filename: converted checkpoint
    :return: what it is, the model with its parameters
    :raises ConversionError: it is no converted checkpoint
    """
    try:
        info = read_model_info(filename)
        state, _ = load_state_dict(filename)
    except ValueError as exc:
        raise ConversionError(str(exc)) from None
    if info is None:
        raise ConversionError(f"{filename} does not say which model it holds: it is no converted checkpoint")
    with rf.set_default_device_ctx("meta"):
        model = build_model(info)
    params = dict(model.named_parameters())
    shapes = {name: tuple(dim.dimension for dim in param.dims) for name, param in params.items()}
    if shapes != {name: tuple(value.shape) for name, value in state.items()}:
        raise ConversionError(f"{filename}: its parameters are not those of the model that it says it holds")
    for name, param in params.items():
        param.raw_tensor = torch.nn.Parameter(state[name], requires_grad=False)
    return info, model


def read_reference(filename: str, kind: str) -> Reference:
    """
    :param filename: .npz
    :param kind: of the model in the converted checkpoint
    :raises ConversionError: not such a file, or not for this kind of model
    """
    try:
        with np.load(filename, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except OSError as exc:
        raise ConversionError(f"{filename} cannot be read: {exc.strerror or exc}") from None
    except (ValueError, zipfile.BadZipFile, EOFError) as exc:
        raise ConversionError(f"{filename} is no .npz file of arrays: {exc}") from None
    except Exception as exc:  # AttributeError of .npy files and the like
        raise ConversionError(f"{filename} is no .npz file: {exc}") from None
    reference = _asr_reference(arrays, filename) if kind == "aed_ctc" else _lm_reference(arrays, kind)
    if not any(reference.outputs):
        raise ConversionError(
            f"{filename} has no reference for a model of the kind {kind}: it has {', '.join(list(arrays)[:8])} ..."
        )
    return reference


def _asr_reference(arrays: dict[str, np.ndarray], filename: str) -> Reference:
    inputs, outputs = [], []
    while (prefix := f"seq{len(inputs)}_") + "audio" in arrays:
        seq = {"audio": arrays[f"{prefix}audio"].reshape(-1)}
        if f"{prefix}targets" in arrays:
            seq["targets"] = arrays[f"{prefix}targets"].reshape(-1)
        elif f"{prefix}dec_log_probs" in arrays:
            raise ConversionError(f"{filename} has {prefix}dec_log_probs, but not the labels {prefix}targets")
        inputs.append(seq)
        found = {stage: arrays[prefix + stage] for stage in _ASR_STAGES if prefix + stage in arrays}
        outputs.append({stage: value.reshape(value.shape[-2:]) for stage, value in found.items() if value.ndim >= 2})
    return Reference(inputs, outputs)


def _lm_reference(arrays: dict[str, np.ndarray], kind: str) -> Reference:
    is_ilm = kind == "mini_lstm_ilm"
    in_name, len_name, out_name = (
        ("targets", "target_lens", "ilm_log_probs") if is_ilm else ("inputs", "lens", "log_probs")
    )
    if not {in_name, len_name, out_name} <= set(arrays):
        return Reference([], [])
    inputs, outputs = [], []
    for labels, length, log_probs in zip(arrays[in_name], arrays[len_name], arrays[out_name], strict=True):
        inputs.append({in_name: labels[:length]})
        outputs.append({"log_probs": log_probs[:length]})
    return Reference(inputs, outputs)


def verify(filename: str, reference_file: str) -> tuple[list[StageResult], list[str]]:
    """
    Uses the current behavior version and RETURNN's PyTorch backend.

    :param filename: converted checkpoint
    :param reference_file: see the module docstring
    :return: differences by stage, stages of the reference that the model does not have (no decoder, no CTC head)
    :raises ConversionError: wrong files
    """
    info, model = load_converted(filename)
    reference = read_reference(reference_file, info.kind)
    for seq in reference.inputs:
        for name in ("targets", "inputs"):
            labels = seq.get(name, np.zeros(1, np.int32))
            if labels.size and not 0 <= labels.min() <= labels.max() < info.num_labels:
                raise ConversionError(
                    f"{reference_file} has the label {labels.max()}, but {filename} only {info.num_labels} labels:"
                    " they are not of the same model"
                )
    alone = [model_outputs(model, [seq])[0] for seq in reference.inputs]
    in_batch = model_outputs(model, reference.inputs)
    results, skipped = [], []
    for stage in [s for s in (*_ASR_STAGES, "log_probs") if any(s in seq for seq in reference.outputs)]:
        if any(stage not in seq for seq in alone):
            skipped.append(stage)
            continue
        results.append(_compare(stage, reference.outputs, alone, in_batch, stage, reference_file))
        if stage == "log_mel" and "log_mel_raw" in alone[0]:
            # The reference may be from before or after the normalisation.
            before = _compare(stage, reference.outputs, alone, in_batch, "log_mel_raw", reference_file)
            if before.worst < results[-1].worst:
                results[-1] = StageResult(
                    stage, before.alone, before.in_batch, before.num_seqs, note="reference before normalisation"
                )
    if not results:
        raise ConversionError(f"{filename} has none of the stages of {reference_file}: {', '.join(skipped)}")
    return results, skipped


def _compare(
    stage: str, expected: Outputs, alone: Outputs, in_batch: Outputs, own_stage: str, reference_file: str
) -> StageResult:
    """:return: differences of all utterances that have the stage"""
    differences: dict[str, list[float]] = {"alone": [], "in_batch": []}
    for i, seq in enumerate(expected):
        if stage not in seq:
            continue
        for name, found in (("alone", alone), ("in_batch", in_batch)):
            value = found[i][own_stage]
            if value.shape != seq[stage].shape:
                raise ConversionError(
                    f"{stage} of utterance {i} has the shape {list(value.shape)}, but {list(seq[stage].shape)} in"
                    f" {reference_file}: not the same model"
                )
            differences[name].append(float(np.abs(value - seq[stage]).max(initial=0.0)))
    return StageResult(
        stage, float(np.max(differences["alone"])), float(np.max(differences["in_batch"])), len(differences["alone"])
    )


def model_outputs(model: rf.Module, seqs: Sequence[dict[str, np.ndarray]], *, padding_value: float = 0.0) -> Outputs:
    """
    :param model: in recognition mode
    :param seqs: see :attr:`Reference.inputs`, in one batch
    :param padding_value: audio behind the end of an utterance
    :return: all stages that the inputs allow
    """
    rf.init_forward_step_run_ctx(step=0, epoch=1)
    with torch.no_grad():
        if model.kind == "aed_ctc":
            return _asr_outputs(model, seqs, padding_value)
        return _lm_outputs(model, seqs)


def _batch_dim(size: int) -> Dim:
    """:return: of dynamic size, as in RETURNN: one of static size 1 would be taken for the single feature of audio"""
    return Dim(Tensor("batch", [], dtype="int32", raw_tensor=torch.tensor(size, dtype=torch.int32)), name="batch")


def _batch(
    arrays: Sequence[np.ndarray], name: str, *, batch_dim: Dim, padding_value: float = 0, sparse_dim: Dim | None = None
) -> tuple[Tensor, Dim]:
    """:return: {batch_dim, name} with the arrays as rows, the new dim"""
    lengths = torch.tensor([len(array) for array in arrays], dtype=torch.int32)
    rows = np.full((len(arrays), int(lengths.max())), padding_value, dtype=arrays[0].dtype)
    for row, array in zip(rows, arrays, strict=True):
        row[: len(array)] = array
    dim = Dim(Tensor("lengths", [batch_dim], dtype="int32", raw_tensor=lengths), name=name)
    raw = torch.from_numpy(rows)
    return Tensor(name, [batch_dim, dim], dtype=str(rows.dtype), raw_tensor=raw, sparse_dim=sparse_dim), dim


def _unbatch(value: Tensor, dim: Dim, feature_dim: Dim) -> list[np.ndarray]:
    """:return: rows [dim, features] without padding"""
    (batch_dim,) = value.remaining_dims([dim, feature_dim])
    raw = value.copy_transpose([batch_dim, dim, feature_dim]).raw_tensor.cpu().numpy()
    lengths = dim.get_size_tensor().raw_tensor.tolist()
    return [row[:length] for row, length in zip(raw, lengths, strict=True)]


def _asr_outputs(model: rf.Module, seqs: Sequence[dict[str, np.ndarray]], padding_value: float) -> Outputs:
    outputs: Outputs = [{} for _ in seqs]

    def _add(stage: str, value: Tensor, dim: Dim, feature_dim: Dim) -> None:
        for seq, row in zip(outputs, _unbatch(value, dim, feature_dim), strict=True):
            seq[stage] = row

    batch_dim = _batch_dim(len(seqs))
    audio = [seq["audio"].astype(np.float32) for seq in seqs]
    audio, time_dim = _batch(audio, "audio", batch_dim=batch_dim, padding_value=padding_value)
    log_mel, frames_dim = model.features(audio, in_spatial_dim=time_dim)
    _add("log_mel", log_mel, frames_dim, model.features.out_dim)
    if model.features.mean is not None:
        raw = log_mel * model.features.stddev + model.features.mean
        _add("log_mel_raw", raw, frames_dim, model.features.out_dim)
    encoded = model.encode(audio, in_spatial_dim=time_dim)
    _add("encoder", encoded.enc, encoded.enc_spatial_dim, model.enc_dim)
    if model.opts.ctc_layers:
        log_probs = model.ctc_log_probs(encoded)
        _add("ctc_log_probs", log_probs, encoded.enc_spatial_dim, model.target_dim_with_blank)
    if model.decoder is not None and all("targets" in seq for seq in seqs):
        labels = [seq["targets"].astype(np.int32) for seq in seqs]
        targets, labels_dim = _batch(labels, "labels", batch_dim=batch_dim, sparse_dim=model.target_dim)
        logits, _ = model.decoder.teacher_forcing(
            targets, spatial_dim=labels_dim, memory=model.attention_memory(encoded)
        )
        log_probs = rf.log_softmax(logits, axis=model.target_dim)
        _add("dec_log_probs", log_probs, labels_dim, model.target_dim)
    return outputs


def _lm_outputs(model: rf.Module, seqs: Sequence[dict[str, np.ndarray]]) -> Outputs:
    batch_dim = _batch_dim(len(seqs))
    name = "targets" if model.kind == "mini_lstm_ilm" else "inputs"
    labels = [seq[name].astype(np.int32) for seq in seqs]
    labels, dim = _batch(labels, "labels", batch_dim=batch_dim, sparse_dim=model.target_dim)
    if model.kind == "mini_lstm_ilm":
        logits = model(labels, spatial_dim=dim)
    else:
        logits, _ = model(labels, spatial_dim=dim, state=model.default_initial_state(batch_dims=[batch_dim]))
    log_probs = rf.log_softmax(logits, axis=model.target_dim)
    return [{"log_probs": row} for row in _unbatch(log_probs, dim, model.target_dim)]
