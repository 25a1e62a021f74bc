"""
RETURNN's forward task as recognition: encode a batch, search, hand the n-best to the callback.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import returnn.frontend as rf
import torch
from returnn.tensor import Dim, TensorDict, batch_dim
from returnn.tensor import Tensor as RfTensor

from rf_models.aed_ctc import AedCtcModel, spatial_dim_of
from rf_models.encoder import SAMPLE_RATE

from .core.result import SearchResult
from .ctc_greedy import ctc_greedy_search
from .inputs import NO_DATA, Amp, Encoded, ScoreData, encode, search_inputs, signed_scales
from .label_sync import label_sync_search
from .memory import memory_problem
from .nbest import NBestHeader
from .options import CtcOptions, GreedyOptions, LabelSyncOptions, SearchOptions, TimeSyncOptions
from .out_of_memory import first_line, is_out_of_memory, splits_when_out_of_memory
from .time_sync import time_sync_search
from .utterance_info import mark_info

__all__ = ["forward_step_of", "make_forward_step", "nbest_header", "run_search"]

_SEARCH_NAMES = {GreedyOptions: "ctc_greedy", LabelSyncOptions: "label_sync", TimeSyncOptions: "time_sync"}


def nbest_header(
    opts: SearchOptions | GreedyOptions, ctc_opts: CtcOptions, *, options: dict[str, Any], vocab: dict[str, Any]
) -> NBestHeader:
    """
    :param opts: their class says which search
    :param ctc_opts:
    :param options: all options of the run, for the record
    :param vocab: its description
    """
    scales = signed_scales(opts, ctc_opts)
    exponent, offset = 0.0, 1
    if isinstance(opts, GreedyOptions):
        scales["ctc"] = 1.0
    else:
        if isinstance(opts, TimeSyncOptions):
            scales["ctc"] = opts.ctc_scale or 1.0  # blanks may have a scale although labels have none
        elif opts.ctc_scale:
            scales["ctc"] = opts.ctc_scale
        for name in ("coverage", "monotonicity"):
            if getattr(opts, f"{name}_scale", 0.0):
                scales[name] = getattr(opts, f"{name}_scale")
        exponent = opts.length_norm_exponent
        offset = 0 if isinstance(opts, LabelSyncOptions) and opts.published_scoring else 1
    return NBestHeader(
        search=_SEARCH_NAMES[type(opts)],
        scales=scales,
        length_norm_exponent=exponent,
        length_norm_offset=offset,
        options=options,
        vocab=vocab,
    )


def run_search(
    model: AedCtcModel,
    encoded: Encoded,
    opts: SearchOptions | GreedyOptions,
    ctc_opts: CtcOptions,
    *,
    data: ScoreData = NO_DATA,
) -> SearchResult:
    """
    :param model:
    :param encoded: of a batch
    :param opts: their class says which search
    :param ctc_opts:
    :param data:
    :return: n-best of each utterance, in the order of the batch
    """
    inputs = search_inputs(model, encoded, opts, ctc_opts, data=data)
    if isinstance(opts, GreedyOptions):
        return ctc_greedy_search(inputs.ctc, eos_index=model.eos_index)
    search = time_sync_search if isinstance(opts, TimeSyncOptions) else label_sync_search
    return search(scorers=inputs.scorers, ctc=inputs.ctc, frame_lengths=inputs.frame_lengths, opts=opts)


Search = Callable[[AedCtcModel, Encoded, TensorDict], SearchResult]
"""From a batch to n-best lists."""


def make_forward_step(
    opts: SearchOptions | GreedyOptions, ctc_opts: CtcOptions, *, data: ScoreData = NO_DATA
) -> Callable[..., None]:
    """
    :param opts: their class says which search
    :param ctc_opts:
    :param data:
    :return: RETURNN's ``forward_step``; its outputs are what :class:`recog.callback.RecogCallback` reads
    """
    return forward_step_of(
        lambda model, encoded, _: run_search(model, encoded, opts, ctc_opts, data=data), amp=data.amp
    )


def forward_step_of(search: Search, *, amp: Amp = "off") -> Callable[..., None]:
    """
    :param search:
    :param amp: see :func:`recog.inputs.encode`
    :return: RETURNN's ``forward_step``: encode, search, and outputs for :class:`recog.callback.RecogCallback`. A batch
        that does not fit into the memory is split by RETURNN; a single utterance that does not gets an error.
    """

    @splits_when_out_of_memory
    def forward_step(*, model: AedCtcModel, extern_data: TensorDict, **_kwargs: Any) -> None:
        audio = extern_data["data"]
        audio_dim = spatial_dim_of(audio)
        durations = audio_dim.get_size_tensor().raw_tensor.double() / SAMPLE_RATE
        per_utterance = {"duration": durations.float()}
        samples = audio_dim.get_size_tensor().raw_tensor
        if len(samples) == 1 and (problem := memory_problem(model.opts, int(samples[0]), audio.raw_tensor.device)):
            _mark_failure(problem, per_utterance)
            _mark_texts(extern_data)
            return
        try:
            result, enc_lengths, seconds = _encode_and_search(model, audio, audio_dim, extern_data)
        except (RuntimeError, MemoryError) as exc:
            if len(durations) > 1 or not is_out_of_memory(exc):
                raise
            _mark_failure(f"not enough memory for this utterance: {first_line(exc)}", per_utterance)
        else:
            share = durations / durations.sum().clamp(min=1e-9)
            per_utterance["enc_len"] = enc_lengths
            per_utterance |= {f"{name}_time": (share * value).float() for name, value in seconds.items()}
            _mark_outputs(result, per_utterance)
        _mark_texts(extern_data)

    def _encode_and_search(
        model: AedCtcModel, audio: RfTensor, audio_dim: Dim, extern_data: TensorDict
    ) -> tuple[SearchResult, torch.Tensor, dict[str, float]]:
        """:return: n-best lists; [B] encoder frames; seconds of computing time of encoder and search"""
        device = audio.raw_tensor.device
        with torch.no_grad():
            start = _now(device)
            encoded = encode(model, audio, in_spatial_dim=audio_dim, amp=amp)
            encoder_end = _now(device)
            result = search(model, encoded, extern_data)
            end = _now(device)
        return result, encoded.lengths().int(), {"encoder": encoder_end - start, "search": end - encoder_end}

    return forward_step


def _mark_texts(extern_data: TensorDict) -> None:
    """Marks what the data say of the utterances."""
    if "orth" in extern_data.data:
        rf.get_run_ctx().mark_as_output(extern_data["orth"], "ref", dims=extern_data["orth"].dims)
    mark_info(extern_data)


def _now(device: torch.device) -> float:
    """:return: seconds, after all that was started on the device"""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _mark_outputs(result: SearchResult, per_utterance: dict[str, torch.Tensor]) -> None:
    """Marks the outputs of a batch, on the host: one copy per batch instead of one per utterance."""
    max_len = int(result.label_lengths.masked_fill(result.scores == float("-inf"), 0).max())
    labels = result.labels[:, :, :max_len]
    hyps_dim = Dim(labels.shape[1], name="hyps")
    labels_dim = Dim(labels.shape[2], name="hyp-labels")
    mark_outputs(
        {
            "labels": (labels.int(), [hyps_dim, labels_dim]),
            "label_lengths": (result.label_lengths.int(), [hyps_dim]),
            "scores": (result.scores.float(), [hyps_dim]),
            **{f"score_{name}": (value.float(), [hyps_dim]) for name, value in result.components.items()},
            **{name: (value, []) for name, value in per_utterance.items()},
        }
    )


def _mark_failure(error: str, per_utterance: dict[str, torch.Tensor]) -> None:
    """Marks the outputs of a batch of one utterance that was not recognised."""
    message = torch.tensor(list(error.encode()), dtype=torch.uint8)[None]
    hyps_dim, no_labels = Dim(1, name="hyps"), Dim(0, name="hyp-labels")
    zero = torch.zeros(1)
    mark_outputs(
        {
            "error": (message, [Dim(message.shape[1], name="error-bytes")]),
            "labels": (zero.int()[:, None, None][:, :, :0], [hyps_dim, no_labels]),
            "label_lengths": (zero.int()[:, None], [hyps_dim]),
            "scores": (torch.full((1, 1), float("-inf")), [hyps_dim]),
            **{name: (zero, []) for name in ("enc_len", "encoder_time", "search_time")},
            **{name: (value, []) for name, value in per_utterance.items()},
        }
    )


def mark_outputs(outputs: dict[str, tuple[torch.Tensor, list[Dim]]]) -> None:
    """
    Marks outputs of a forward step, on the host.

    :param outputs: name -> [B, ...], dims without that of the batch
    """
    for name, (value, dims) in outputs.items():
        value = value.cpu()
        tensor = RfTensor(name, dims=[batch_dim, *dims], dtype=str(value.dtype).split(".")[-1], raw_tensor=value)
        rf.get_run_ctx().mark_as_output(tensor, name, dims=tensor.dims)
