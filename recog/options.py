"""
Options of all searches, as frozen dataclasses with checked values.

Every field can be set in a config as a plain variable and overridden on the command line (``++beam_size 32``).
The meaning of each scale, with formulas, is in ``recog/README.md``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

__all__ = [
    "CtcOptions",
    "ExternalModelOptions",
    "ForcedOptions",
    "GreedyOptions",
    "IlmType",
    "LabelSyncOptions",
    "RescoreOptions",
    "SearchOptions",
    "TimeSyncOptions",
]

IlmType = Literal["mini_lstm", "zero", "avg", "density_ratio"]


def _check_finite(opts: object) -> None:
    """:raises ValueError: if a float option is NaN or infinite"""
    for field in fields(opts):
        value = getattr(opts, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field.name} = {value}: expected a finite number")


def _check(ok: bool, name: str, value: object, expected: str) -> None:
    """:raises ValueError: if not ok"""
    if not ok:
        raise ValueError(f"{name} = {value!r}: expected {expected}")


@dataclass(frozen=True)
class CtcOptions:
    """
    How the CTC log-probs that a search sees are made from the model's posteriors. Applied once, in this order:
    EOS handling, prior, blank penalty, collapse (see :func:`recog.core.posteriors.prepare_ctc_log_probs`).
    """

    ctc_layer: int | None = None
    """Which CTC head: number of the encoder layer (1-based) below it. None: the top-most head of the model."""
    ctc_eos: Literal["merge", "keep"] = "merge"
    """"merge": p(blank) += p(EOS), p(EOS) = 0 (right for models with EOS in the CTC targets, harmless for others).
    "keep": leave the posteriors as they are; an EOS frame label can then be hypothesised by greedy CTC only."""
    prior_scale: float = 0.0
    """Scale of the CTC label prior (log domain)."""
    prior_file: str | None = None
    """Prior file with a header that says log or linear, see :mod:`recog.prior`. Needed if prior_scale != 0."""
    prior_type: Literal["frame", "label"] = "frame"
    """"frame": log p_t(k) -= prior_scale log p(k) for all k incl. blank, then renormalised per frame.
    "label": blank removed from the prior, which is renormalised and subtracted once per new label."""
    blank_penalty: float = 0.0
    """Subtracted from log p_t(blank) in all frames, after the prior, without renormalisation (as in icefall)."""
    soft_collapse_threshold: float | None = None
    """Merge runs of frames with the same arg max, all with a probability >= this (about 0.8), into one. None: off."""
    blank_collapse_threshold: float | None = None
    """Drop all but one frame of each run of frames whose blank probability is > this (e.g. 0.99). None: off."""

    def __post_init__(self):
        _check_finite(self)
        _check(self.ctc_layer is None or self.ctc_layer >= 1, "ctc_layer", self.ctc_layer, "a layer number >= 1")
        _check(self.ctc_eos in ("merge", "keep"), "ctc_eos", self.ctc_eos, "merge or keep")
        _check(self.prior_type in ("frame", "label"), "prior_type", self.prior_type, "frame or label")
        for name in ("soft_collapse_threshold", "blank_collapse_threshold"):
            value = getattr(self, name)
            _check(value is None or 0.0 < value <= 1.0, name, value, "a probability in (0, 1], or None")
        if self.prior_scale and not self.prior_file:
            raise ValueError(f"prior_scale = {self.prior_scale} needs prior_file (made by configs/*_prior.config)")

    @property
    def uses_label_prior(self) -> bool:
        """:return: whether there is a prior that counts label by label"""
        return bool(self.prior_scale) and self.prior_type == "label"


@dataclass(frozen=True)
class ExternalModelOptions:
    """
    Models beside the ASR model of ``load``. A checkpoint is a file, or the output folder of a training (its last
    checkpoint is taken). What kind of model it holds, and its sizes, are read from it.
    """

    lm_checkpoint: str | None = None
    """External language model (LSTM or Transformer), needed for lm_scale."""
    ilm_type: IlmType | None = None
    """Estimate of the internal language model, for ilm_scale. "zero", "avg": the ASR model's own decoder with the
    context vector zero, or the mean of the encoder states of the utterance. "mini_lstm": ``ilm_checkpoint`` is a
    Mini-LSTM, or the decoder with a constant context vector (average over the training data). "density_ratio":
    ``ilm_checkpoint`` is a language model of the training transcripts. None: as ilm_checkpoint says. See
    :mod:`recog.scorers.ilm`."""
    ilm_checkpoint: str | None = None
    ctc_checkpoint: str | None = None
    """CTC scores come from this model instead ("system combination"); ``ctc_layer`` and ``prior_file`` are of it, too.
    Its encoder may have another frame rate. Its decoder is not loaded."""

    def __post_init__(self):
        kinds = get_args(IlmType)
        _check(self.ilm_type is None or self.ilm_type in kinds, "ilm_type", self.ilm_type, " or ".join(kinds))
        if self.ilm_type in ("mini_lstm", "density_ratio") and not self.ilm_checkpoint:
            raise ValueError(f'ilm_type = "{self.ilm_type}" needs ilm_checkpoint')
        if self.ilm_type in ("zero", "avg") and self.ilm_checkpoint:
            raise ValueError(f'ilm_checkpoint is given, but ilm_type = "{self.ilm_type}" has no use for it')


@dataclass(frozen=True)
class SearchOptions:
    """
    What all searches with a beam share. Score of a label sequence y (a hypothesis), all in natural log::

        S(y) = att_scale log p_att + ctc_scale log p_ctc + lm_scale log p_lm - ilm_scale log p_ilm
               + length_reward |y|  [- prior_scale log prior(y), prior_type "label"]

    divided by (|y| + 1)^length_norm_exponent at the end. Components with scale 0 are not evaluated.
    """

    beam_size: int = 12
    n_best: int | None = None
    """Number of hypotheses to return. None: beam_size. Only a label-synchronous search that collects ended hypotheses
    beside its beam can have more than that."""
    att_scale: float = 1.0
    ctc_scale: float = 0.0
    lm_scale: float = 0.0
    ilm_scale: float = 0.0
    """Scale of the internal LM, which is *subtracted*: a positive value."""
    ilm_eos: bool = True
    """Whether the internal LM is subtracted also for EOS."""
    length_reward: float = 0.0
    length_norm_exponent: float = 0.0
    max_len_ratio: float = 1.0
    """Maximum number of labels, as a fraction of the encoder frames of the utterance (at least 1 label)."""
    min_len_ratio: float = 0.0
    """EOS is not allowed before this many labels per encoder frame."""
    published_scoring: bool = False
    """Score as the original recipes did, see recog/README.md, so that published scales can be used."""

    def __post_init__(self):
        _check_finite(self)
        _check(self.beam_size >= 1, "beam_size", self.beam_size, "at least 1")
        _check(self.n_best is None or self.n_best >= 1, "n_best", self.n_best, "at least 1, or None")
        for name in ("att_scale", "ctc_scale", "lm_scale", "ilm_scale"):
            _check(getattr(self, name) >= 0.0, name, getattr(self, name), "a scale >= 0")
        _check(self.max_len_ratio > 0, "max_len_ratio", self.max_len_ratio, "a ratio > 0")
        _check(
            0 <= self.min_len_ratio <= self.max_len_ratio, "min_len_ratio", self.min_len_ratio, "0 ... max_len_ratio"
        )
        if not (self.att_scale or self.ctc_scale or self.lm_scale):
            raise ValueError("att_scale, ctc_scale and lm_scale are all 0: nothing to search with")

    def _check_n_best(self) -> None:
        """:raises ValueError: more hypotheses are wanted than this search keeps"""
        if self.n_best is not None and self.n_best > self.beam_size:
            raise ValueError(
                f"n_best = {self.n_best}, but beam_size = {self.beam_size}: this search ends with no more hypotheses"
                " than its beam has"
            )


@dataclass(frozen=True)
class GreedyOptions:
    """CTC greedy search has no options beyond :class:`CtcOptions`."""


@dataclass(frozen=True)
class LabelSyncOptions(SearchOptions):
    """Label-synchronous one-pass search ("opls")."""

    ended_hyps: Literal["separate", "in_beam"] = "separate"
    """"separate": ended hypotheses are collected beside the beam (ESPnet). "in_beam": they keep competing for places in
    the beam, normalised by their length (RETURNN, the original recipes)."""
    early_stop: bool = True
    """Stop an utterance when no active hypothesis can still get into the n-best of the ended ones, under the assumption
    that scores only fall with more labels. That is exact without ILM, coverage, label prior and positive length_reward,
    otherwise a heuristic. False: go on to the maximum length. (No effect on ended_hyps "in_beam", which ends with its
    last active hypothesis.)"""
    coverage_scale: float = 0.0
    """Reward per encoder frame whose accumulated attention exceeds coverage_threshold (Chorowski & Jaitly 2016)."""
    coverage_threshold: float = 0.5
    monotonicity_scale: float = 0.0
    """Penalty on attention that moves back in time, see recog/README.md."""

    def __post_init__(self):
        super().__post_init__()
        _check(self.ended_hyps in ("separate", "in_beam"), "ended_hyps", self.ended_hyps, "separate or in_beam")
        if self.ended_hyps == "in_beam":
            self._check_n_best()
        if (self.coverage_scale or self.monotonicity_scale) and not self.att_scale:
            raise ValueError("coverage_scale and monotonicity_scale need att_scale > 0")


@dataclass(frozen=True)
class TimeSyncOptions(SearchOptions):
    """Time-synchronous one-pass prefix search ("optsr")."""

    recombination: Literal["max", "sum"] = "max"
    """How the alignments of one label sequence are combined: best one (Viterbi) or all (full sum)."""
    blank_scale: float | Literal["ctc"] = 1.0
    """Scale of log p_t(blank) in blank frames; ctc_scale is that of frames with a new label. The published recipes use
    1.0. "ctc": as ctc_scale, i.e. the CTC score is ctc_scale log P_ctc(y|x), as in label-synchronous search."""
    repeat_scale: float | Literal["ctc"] = 1.0
    """The same for frames that repeat the last label."""
    one_minus_term: bool = False
    """New labels also get log(1 - p_t(blank) - p_t(last label if repeated)), as an option of the published recipes."""
    eos_at_end: bool = True
    """Add the EOS scores of the label scorers at each utterance's own last frame."""
    pruning_threshold: float | None = None
    """Drop hypotheses worse than the best of the frame by more than this (score beam). None: off."""
    num_candidates: int | None = None
    """Consider only this many best CTC labels per frame as new labels (inexact, fast). None: all labels."""
    exact_ctc: bool = False
    """Recompute the CTC score of the final n-best exactly (paths pruned during the search are added again)."""

    def __post_init__(self):
        super().__post_init__()
        self._check_n_best()
        _check(self.recombination in ("max", "sum"), "recombination", self.recombination, "max or sum")
        for name in ("blank_scale", "repeat_scale"):
            value = getattr(self, name)
            _check(
                value == "ctc" or (isinstance(value, (int, float)) and value >= 0), name, value, "ctc or a scale >= 0"
            )
        if self.published_scoring:
            if (self.blank_scale, self.repeat_scale, self.recombination) != (1.0, 1.0, "max"):
                raise ValueError(
                    "published_scoring: the original time-synchronous recipes have blank_scale 1, repeat_scale 1 and"
                    ' recombination "max"; leave these options out'
                )
            if self.length_norm_exponent:
                raise ValueError(
                    f"length_norm_exponent = {self.length_norm_exponent}: the original time-synchronous recipes"
                    " normalised by the number of frames, which changes no result; use 0 with published_scoring"
                )
        value = self.pruning_threshold
        _check(value is None or value > 0, "pruning_threshold", value, "a positive score difference, or None")
        value = self.num_candidates
        _check(value is None or value >= 1, "num_candidates", value, "at least 1, or None")


@dataclass(frozen=True)
class ForcedOptions:
    """Forced scoring: the score of given label sequences under the definition of a search (with its options)."""

    nbest_file: str | None = None
    """N-best file whose hypotheses are scored. None: the references."""


@dataclass(frozen=True)
class RescoreOptions:
    """
    Second pass of a two-pass recognition: the n-best lists of any search, scored anew with other components or models,
    at scales of their own::

        S(y) = first_pass_scale S_first(y) + att_scale log p_att + ctc_scale log P_ctc + lm_scale log p_lm
               - ilm_scale log p_ilm + length_reward |y|  [- prior_scale log prior(y), prior_type "label"]

    divided by (|y| + 1)^length_norm_exponent, with log P_ctc the full sum over all alignments.
    """

    nbest_file: str | None = None
    """N-best file of the first pass."""
    first_pass_scale: float = 0.0
    """Scale of the total score of the first pass."""
    n_best: int | None = None
    """Number of hypotheses to keep. None: all."""
    att_scale: float = 0.0
    ctc_scale: float = 0.0
    lm_scale: float = 0.0
    ilm_scale: float = 0.0
    """Scale of the internal LM, which is *subtracted*: a positive value."""
    ilm_eos: bool = True
    length_reward: float = 0.0
    length_norm_exponent: float = 0.0
    coverage_scale: float = 0.0
    coverage_threshold: float = 0.5
    monotonicity_scale: float = 0.0

    def __post_init__(self):
        _check_finite(self)
        _check(self.n_best is None or self.n_best >= 1, "n_best", self.n_best, "at least 1, or None")
        if not (self.att_scale or self.ctc_scale or self.lm_scale):
            raise ValueError("att_scale, ctc_scale and lm_scale are all 0: nothing to rescore with")
        self.scoring()

    def scoring(self) -> LabelSyncOptions:
        """:return: the definition of the score, but for the first pass"""
        common = {field.name for field in fields(LabelSyncOptions)} & {field.name for field in fields(self)}
        return LabelSyncOptions(**{name: getattr(self, name) for name in common})
