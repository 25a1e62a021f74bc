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

from rf_models.aed_ctc import AedCtcModel, EncoderOutput, spatial_dim_of
from rf_models.encoder import SAMPLE_RATE

from .core.posteriors import CtcPosteriors, prepare_ctc_log_probs
from .core.result import SearchResult
from .ctc_greedy import ctc_greedy_search
from .label_sync import label_sync_search
from .nbest import NBestHeader
from .options import CtcOptions, GreedyOptions, LabelSyncOptions, SearchOptions, TimeSyncOptions
from .scorers.attention import AttentionScorer
from .scorers.combined import ScorerSet
from .time_sync import time_sync_search

__all__ = ["ctc_posteriors", "make_forward_step", "make_scorers", "nbest_header", "run_search", "signed_scales"]

_SEARCH_NAMES = {GreedyOptions: "ctc_greedy", LabelSyncOptions: "label_sync", TimeSyncOptions: "time_sync"}


def signed_scales(opts: SearchOptions | GreedyOptions, ctc_opts: CtcOptions) -> dict[str, float]:
    """:return: scale of each component that has one, with its sign, but that of "ctc" """
    if isinstance(opts, GreedyOptions):
        return {}
    scales = {"att": opts.att_scale, "lm": opts.lm_scale, "ilm": -opts.ilm_scale, "length": opts.length_reward}
    if ctc_opts.prior_type == "label":
        scales["prior"] = -ctc_opts.prior_scale
    return {name: scale for name, scale in scales.items() if scale}


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


def ctc_posteriors(
    model: AedCtcModel, encoder_output: EncoderOutput, ctc_opts: CtcOptions, *, log_prior: torch.Tensor | None = None
) -> CtcPosteriors:
    """
    :param model: with a CTC head
    :param encoder_output: of a batch
    :param ctc_opts:
    :param log_prior: [V+1] natural log
    :return: what a search sees of the CTC head
    """
    log_probs = model.ctc_log_probs(encoder_output, layer=ctc_opts.ctc_layer)
    spatial_dim = encoder_output.enc_spatial_dim
    log_probs = log_probs.copy_transpose([batch_dim, spatial_dim, model.target_dim_with_blank]).raw_tensor
    return prepare_ctc_log_probs(
        log_probs,
        spatial_dim.get_size_tensor().raw_tensor,
        eos_index=model.eos_index,
        eos=ctc_opts.ctc_eos,
        log_prior=log_prior,
        prior_scale=ctc_opts.prior_scale,
        prior_type=ctc_opts.prior_type,
        soft_collapse_threshold=ctc_opts.soft_collapse_threshold,
        blank_collapse_threshold=ctc_opts.blank_collapse_threshold,
    )


def make_scorers(
    model: AedCtcModel,
    encoder_output: EncoderOutput,
    opts: SearchOptions,
    ctc_opts: CtcOptions,
    *,
    label_log_prior: torch.Tensor | None = None,
) -> ScorerSet:
    """
    :param model:
    :param encoder_output: of a batch
    :param opts: which scales are not 0 decides what is run
    :param ctc_opts:
    :param label_log_prior: [V], for ``prior_type = "label"``
    """
    scorers = {}
    if opts.att_scale:
        scorers["att"] = AttentionScorer(
            model.decoder,
            model.attention_memory(encoder_output),
            encoder_output.enc_spatial_dim.get_size_tensor().raw_tensor,
            track=isinstance(opts, LabelSyncOptions) and bool(opts.coverage_scale or opts.monotonicity_scale),
        )
    return ScorerSet(
        scorers,
        signed_scales(opts, ctc_opts),
        num_labels=model.target_dim.dimension,
        eos_index=model.eos_index,
        ilm_eos=opts.ilm_eos,
        label_log_prior=label_log_prior,
        device=encoder_output.enc.raw_tensor.device,
    )


def run_search(
    model: AedCtcModel,
    encoder_output: EncoderOutput,
    opts: SearchOptions | GreedyOptions,
    ctc_opts: CtcOptions,
    *,
    log_prior: torch.Tensor | None = None,
) -> SearchResult:
    """
    :param model:
    :param encoder_output: of a batch
    :param opts: their class says which search
    :param ctc_opts:
    :param log_prior: [V+1] natural log
    :return: n-best of each utterance, in the order of the batch
    """
    ctc = None
    if not isinstance(opts, LabelSyncOptions) or opts.ctc_scale:
        ctc = ctc_posteriors(model, encoder_output, ctc_opts, log_prior=log_prior)
    if isinstance(opts, GreedyOptions):
        return ctc_greedy_search(ctc, eos_index=model.eos_index)
    scorers = make_scorers(model, encoder_output, opts, ctc_opts, label_log_prior=ctc and ctc.label_log_prior)
    if isinstance(opts, TimeSyncOptions):
        return time_sync_search(scorers=scorers, ctc=ctc, opts=opts)
    frame_lengths = encoder_output.enc_spatial_dim.get_size_tensor().raw_tensor
    frame_lengths = frame_lengths.to(device=encoder_output.enc.raw_tensor.device, dtype=torch.int64)
    return label_sync_search(scorers=scorers, ctc=ctc, frame_lengths=frame_lengths, opts=opts)


def make_forward_step(
    opts: SearchOptions | GreedyOptions, ctc_opts: CtcOptions, *, log_prior: torch.Tensor | None = None
) -> Callable[..., None]:
    """
    :param opts: their class says which search
    :param ctc_opts:
    :param log_prior: [V+1] natural log
    :return: RETURNN's ``forward_step``; its outputs are what :class:`recog.callback.RecogCallback` reads
    """

    def forward_step(*, model: AedCtcModel, extern_data: TensorDict, **_kwargs: Any) -> None:
        audio = extern_data["data"]
        audio_dim = spatial_dim_of(audio)
        device = audio.raw_tensor.device
        with torch.no_grad():
            start = _now(device)
            encoder_output = model.encode(audio, in_spatial_dim=audio_dim)
            encoded = _now(device)
            result = run_search(model, encoder_output, opts, ctc_opts, log_prior=log_prior)
            end = _now(device)
        durations = audio_dim.get_size_tensor().raw_tensor.double() / SAMPLE_RATE
        share = durations / durations.sum().clamp(min=1e-9)
        outputs = {
            "enc_len": encoder_output.enc_spatial_dim.get_size_tensor().raw_tensor.int(),
            "duration": durations.float(),
            "encoder_time": (share * (encoded - start)).float(),
            "search_time": (share * (end - encoded)).float(),
        }
        _mark_outputs(result, outputs)
        if "orth" in extern_data.data:
            rf.get_run_ctx().mark_as_output(extern_data["orth"], "ref", dims=extern_data["orth"].dims)

    return forward_step


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
    outputs = {
        "labels": (labels.int(), [hyps_dim, labels_dim]),
        "label_lengths": (result.label_lengths.int(), [hyps_dim]),
        "scores": (result.scores.float(), [hyps_dim]),
        **{f"score_{name}": (value.float(), [hyps_dim]) for name, value in result.components.items()},
        **{name: (value, []) for name, value in per_utterance.items()},
    }
    for name, (value, dims) in outputs.items():
        value = value.cpu()
        tensor = RfTensor(name, dims=[batch_dim, *dims], dtype=str(value.dtype).split(".")[-1], raw_tensor=value)
        rf.get_run_ctx().mark_as_output(tensor, name, dims=tensor.dims)
