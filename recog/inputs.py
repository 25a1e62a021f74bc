"""
What searches, forced scoring and rescoring need of a batch: CTC log-probs and label scorers, from the models' outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import returnn.frontend as rf
import torch
from returnn.tensor import Dim, batch_dim
from returnn.tensor import Tensor as RfTensor

from rf_models.aed_ctc import AedCtcModel, EncoderOutput
from rf_models.combined import CombinedModel
from rf_models.encoder import SAMPLE_RATE
from rf_models.ilm import MiniLstmIlm

from .core.posteriors import CtcPosteriors, prepare_ctc_log_probs
from .options import CtcOptions, GreedyOptions, IlmType, LabelSyncOptions, SearchOptions
from .scorers.attention import make_attention_scorer
from .scorers.base import LabelScorer
from .scorers.combined import ScorerSet
from .scorers.ilm import MiniLstmIlmScorer, average_encoder, make_fixed_context_ilm_scorer
from .scorers.lm import make_lm_scorer

__all__ = [
    "NO_DATA",
    "Amp",
    "Encoded",
    "ScoreData",
    "SearchInputs",
    "ctc_posteriors",
    "encode",
    "make_scorers",
    "search_inputs",
    "signed_scales",
]


_WINDOW = round(0.025 * SAMPLE_RATE)
"""Samples of one window of the features."""


Amp = Literal["off", "bfloat16", "float16"]
"""Mixed precision of the encoder."""


@dataclass(frozen=True)
class ScoreData:
    """What scores need beside models and options."""

    log_prior: torch.Tensor | None = None
    """[V+1] natural log, of the CTC head that is used"""
    ilm_type: IlmType | None = None
    """Which estimate of the internal LM. None: what ``model.ilm`` is"""
    amp: Amp = "off"
    """Of the encoder, see :func:`encode`"""


NO_DATA = ScoreData()


@dataclass
class Encoded:
    """Encoder outputs of a batch."""

    asr: EncoderOutput
    ctc: EncoderOutput | None = None  # of ``model.ctc_model``, if CTC scores shall come from there

    def lengths(self) -> torch.Tensor:
        """:return: [B] int64 encoder frames, on the device of the encoder states"""
        lengths = self.asr.enc_spatial_dim.get_size_tensor().raw_tensor
        return lengths.to(device=self.asr.enc.raw_tensor.device, dtype=torch.int64)


def encode(model: AedCtcModel, audio: RfTensor, *, in_spatial_dim: Dim, amp: Amp = "off") -> Encoded:
    """
    :param model:
    :param audio: {batch, in_spatial_dim[, 1]} samples. What is shorter than one window of the features is filled up
        with zeros to that length, and so gets one frame.
    :param in_spatial_dim:
    :param amp: with mixed precision in the encoder. Features, and all that follows the encoder, are float32 in any
        case: CTC log-probs and their sums, decoder, language models, scores of the search.
    """
    audio, in_spatial_dim = _at_least_one_frame(audio, in_spatial_dim)
    if amp == "off":
        return _encode(model, audio, in_spatial_dim)
    with torch.autocast(audio.raw_tensor.device.type, dtype=getattr(torch, amp)):
        encoded = _encode(model, audio, in_spatial_dim)
    for output in (encoded.asr, encoded.ctc):
        if output is not None:
            output.enc = rf.cast(output.enc, "float32")
            output.layers = {layer: rf.cast(states, "float32") for layer, states in output.layers.items()}
    return encoded


def _encode(model: AedCtcModel, audio: RfTensor, in_spatial_dim: Dim) -> Encoded:
    asr = model.encode(audio, in_spatial_dim=in_spatial_dim)
    ctc = model.encode_for_ctc(audio, in_spatial_dim=in_spatial_dim) if isinstance(model, CombinedModel) else None
    return Encoded(asr=asr, ctc=ctc)


def _at_least_one_frame(audio: RfTensor, time_dim: Dim) -> tuple[RfTensor, Dim]:
    """:return: the same if all are long enough; otherwise the short ones filled up with zeros, and a new time dim"""
    lengths = time_dim.get_size_tensor().raw_tensor  # on the host
    if int(lengths.min()) >= _WINDOW:
        return audio, time_dim
    dims = [batch_dim, time_dim, *audio.remaining_dims([batch_dim, time_dim])]
    raw = audio.copy_transpose(dims).raw_tensor.clone()
    outside = torch.arange(raw.shape[1], device=raw.device) >= lengths.to(raw.device)[:, None]
    raw[outside] = 0.0
    missing = max(0, _WINDOW - raw.shape[1])
    raw = torch.cat((raw, raw.new_zeros((raw.shape[0], missing, *raw.shape[2:]))), dim=1)
    sizes = RfTensor("lengths", dims=[batch_dim], dtype="int32", raw_tensor=lengths.int().clamp(min=_WINDOW))
    new_dim = Dim(sizes, name="time")
    return RfTensor("audio", dims=[batch_dim, new_dim, *dims[2:]], dtype=audio.dtype, raw_tensor=raw), new_dim


def signed_scales(opts: SearchOptions | GreedyOptions, ctc_opts: CtcOptions) -> dict[str, float]:
    """:return: scale of each component that has one, with its sign, but that of "ctc" """
    if isinstance(opts, GreedyOptions):
        return {}
    scales = {"att": opts.att_scale, "lm": opts.lm_scale, "ilm": -opts.ilm_scale, "length": opts.length_reward}
    if ctc_opts.prior_type == "label":
        scales["prior"] = -ctc_opts.prior_scale
    return {name: scale for name, scale in scales.items() if scale}


def ctc_posteriors(
    model: AedCtcModel,
    encoder_output: EncoderOutput,
    ctc_opts: CtcOptions,
    *,
    log_prior: torch.Tensor | None = None,
    merge_prior: bool = True,
) -> CtcPosteriors:
    """
    :param model: with a CTC head
    :param encoder_output: of a batch
    :param ctc_opts:
    :param log_prior: [V+1] natural log
    :param merge_prior: see :func:`prepare_ctc_log_probs`
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
        merge_prior=merge_prior,
        blank_penalty=ctc_opts.blank_penalty,
        soft_collapse_threshold=ctc_opts.soft_collapse_threshold,
        blank_collapse_threshold=ctc_opts.blank_collapse_threshold,
    )


def make_scorers(
    model: AedCtcModel,
    encoded: Encoded,
    opts: SearchOptions,
    ctc_opts: CtcOptions,
    *,
    label_log_prior: torch.Tensor | None = None,
    data: ScoreData = NO_DATA,
) -> ScorerSet:
    """
    :param model: language models are those of a :class:`CombinedModel`
    :param encoded: of a batch
    :param opts: which scales are not 0 decides what is run
    :param ctc_opts:
    :param label_log_prior: [V], for ``prior_type = "label"``
    :param data:
    """
    scorers: dict[str, LabelScorer] = {}
    if opts.att_scale:
        scorers["att"] = make_attention_scorer(
            model.decoder,
            model.attention_memory(encoded.asr),
            encoded.lengths(),
            track=isinstance(opts, LabelSyncOptions) and bool(opts.coverage_scale or opts.monotonicity_scale),
        )
    if opts.lm_scale and getattr(model, "lm", None) is not None:
        scorers["lm"] = make_lm_scorer(model.lm)
    if opts.ilm_scale:
        scorers["ilm"] = _make_ilm_scorer(model, encoded, data)
    return ScorerSet(
        scorers,
        signed_scales(opts, ctc_opts),
        num_labels=model.target_dim.dimension,
        eos_index=model.eos_index,
        ilm_eos=opts.ilm_eos,
        label_log_prior=label_log_prior,
        device=encoded.asr.enc.raw_tensor.device,
    )


def _make_ilm_scorer(model: AedCtcModel, encoded: Encoded, data: ScoreData) -> LabelScorer:
    """
    :return: internal LM for a batch
    :raises ValueError: there is no such model
    """
    if data.ilm_type in ("zero", "avg"):
        if model.decoder is None:
            raise ValueError(
                f"ilm_type = {data.ilm_type!r}: this model has no attention decoder, and so no internal LM"
            )
        context = None
        if data.ilm_type == "avg":
            dims = [batch_dim, encoded.asr.enc_spatial_dim, model.enc_dim]
            context = average_encoder(encoded.asr.enc.copy_transpose(dims).raw_tensor, encoded.lengths())
        return make_fixed_context_ilm_scorer(model.decoder, context, batch_size=len(encoded.lengths()))
    ilm = getattr(model, "ilm", None)
    if ilm is None:
        raise ValueError("ilm_scale > 0, but there is no internal LM")
    return MiniLstmIlmScorer(ilm) if isinstance(ilm, MiniLstmIlm) else make_lm_scorer(ilm)


@dataclass
class SearchInputs:
    """See the module."""

    scorers: ScorerSet
    ctc: CtcPosteriors | None  # None: no CTC score is needed
    frame_lengths: torch.Tensor  # [B] int64 encoder frames


def search_inputs(
    model: AedCtcModel,
    encoded: Encoded,
    opts: SearchOptions | GreedyOptions,
    ctc_opts: CtcOptions,
    *,
    data: ScoreData = NO_DATA,
) -> SearchInputs:
    """
    :param model:
    :param encoded: of a batch
    :param opts: their class says which search
    :param ctc_opts:
    :param data:
    """
    ctc = None
    if not isinstance(opts, LabelSyncOptions) or opts.ctc_scale or ctc_opts.uses_label_prior:
        ctc_model, ctc_encoded = (model, encoded.asr) if encoded.ctc is None else (model.ctc_model, encoded.ctc)
        published = isinstance(opts, SearchOptions) and opts.published_scoring
        ctc = ctc_posteriors(ctc_model, ctc_encoded, ctc_opts, log_prior=data.log_prior, merge_prior=not published)
    if isinstance(opts, GreedyOptions):
        scorers = ScorerSet({}, {}, num_labels=model.target_dim.dimension, eos_index=model.eos_index)
    else:
        label_log_prior = ctc and ctc.label_log_prior
        scorers = make_scorers(model, encoded, opts, ctc_opts, label_log_prior=label_log_prior, data=data)
    return SearchInputs(scorers=scorers, ctc=ctc, frame_lengths=encoded.lengths())
