"""
Scores of hypotheses that are given: references, or n-best lists of an earlier run. Forced scoring by the definition of
a search (for search errors), and the second pass of a two-pass recognition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from returnn.tensor import TensorDict, batch_dim

from rf_models.aed_ctc import AedCtcModel, spatial_dim_of

from .callback import RecogError
from .core.result import SearchResult, combine_components, length_divisor, sort_hypotheses
from .forced_score import forced_scores
from .forward import forward_step_of
from .inputs import NO_DATA, Encoded, ScoreData, search_inputs
from .nbest import Utterance, load_nbest
from .options import CtcOptions, LabelSyncOptions, RescoreOptions, SearchOptions, TimeSyncOptions
from .vocab import Vocab, vocab_differences

__all__ = ["GivenHypotheses", "load_hypotheses", "make_forced_step", "make_rescore_step"]

NEG_INF = float("-inf")


@dataclass
class GivenHypotheses:
    """N-best lists of a batch."""

    labels: torch.Tensor  # [B, N, L] int64, zeros behind the end
    lengths: torch.Tensor  # [B, N] int64
    exists: torch.Tensor  # [B, N] bool
    scores: torch.Tensor  # [B, N] float64 total score that they came with, 0 where there is none


def load_hypotheses(filename: str, *, vocab: Vocab) -> dict[str, Utterance]:
    """
    :param filename: n-best file
    :param vocab: of this run
    :return: utterances by sequence tag
    :raises OSError: cannot be read
    :raises ValueError: not a valid n-best file, or of another vocabulary
    """
    header, utterances = load_nbest(filename)
    if different := vocab_differences(vocab.describe(), header.vocab):
        raise ValueError(
            f"{filename} has labels of another vocabulary ({', '.join(different)}); choose the right one with ++vocab"
        )
    return {utt.seq_tag: utt for utt in utterances}


def given_hypotheses(utterances: dict[str, Utterance], seq_tags: list[str], *, device: torch.device) -> GivenHypotheses:
    """
    :param utterances: of :func:`load_hypotheses`
    :param seq_tags: of a batch
    :param device: for the result
    :raises RecogError: an utterance is not there
    """
    for tag in seq_tags:
        if tag not in utterances:
            raise RecogError(
                f"utterance {tag!r} is not in the n-best file, which has {len(utterances)} others: expected the n-best"
                " lists of the parts that are read here (++recog_parts)"
            )
    lists = [utterances[tag].hyps for tag in seq_tags]
    num_hyps = max(1, max(map(len, lists)))
    max_len = max((len(hyp.labels) for hyps in lists for hyp in hyps), default=0)
    labels, lengths, exists, scores = [], [], [], []
    for hyps in lists:
        missing = num_hyps - len(hyps)
        labels.append([hyp.labels + [0] * (max_len - len(hyp.labels)) for hyp in hyps] + [[0] * max_len] * missing)
        lengths.append([len(hyp.labels) for hyp in hyps] + [0] * missing)
        exists.append([True] * len(hyps) + [False] * missing)
        scores.append([hyp.score for hyp in hyps] + [0.0] * missing)
    shape = (len(lists), num_hyps, max_len)
    return GivenHypotheses(
        labels=torch.tensor(labels, dtype=torch.int64, device=device).view(shape),
        lengths=torch.tensor(lengths, dtype=torch.int64, device=device),
        exists=torch.tensor(exists, device=device),
        scores=torch.tensor(scores, dtype=torch.float64, device=device),
    )


def _references(extern_data: TensorDict, *, device: torch.device) -> GivenHypotheses:
    """:return: the transcripts of a batch, in the canonical segmentation of the vocabulary"""
    classes = extern_data["classes"]
    labels_dim = spatial_dim_of(classes)
    labels = classes.copy_transpose([batch_dim, labels_dim]).raw_tensor.to(device=device, dtype=torch.int64)
    lengths = labels_dim.get_size_tensor().raw_tensor.to(device=device, dtype=torch.int64)
    outside = torch.arange(labels.shape[1], device=device) >= lengths[:, None]
    lengths = lengths[:, None]
    return GivenHypotheses(
        labels=labels.masked_fill(outside, 0)[:, None],
        lengths=lengths,
        exists=torch.ones_like(lengths, dtype=torch.bool),
        scores=torch.zeros_like(lengths, dtype=torch.float64),
    )


def score_given(
    model: AedCtcModel,
    encoded: Encoded,
    given: GivenHypotheses,
    opts: LabelSyncOptions | TimeSyncOptions,
    ctc_opts: CtcOptions,
    *,
    data: ScoreData = NO_DATA,
    first_pass_scale: float = 0.0,
    n_best: int | None = None,
) -> SearchResult:
    """
    :param model:
    :param encoded: of a batch
    :param given: of the same batch
    :param opts: of the search whose definition of the score counts
    :param ctc_opts:
    :param data:
    :param first_pass_scale: of the component "first_pass", the score that a hypothesis came with
    :param n_best: None: all
    :return: the hypotheses with their new scores, best first; what is impossible (score -inf) is last
    """
    inputs = search_inputs(model, encoded, opts, ctc_opts, data=data)
    result = forced_scores(
        scorers=inputs.scorers,
        ctc=inputs.ctc,
        labels=given.labels,
        label_lengths=given.lengths,
        opts=opts,
        frame_lengths=inputs.frame_lengths,
    )
    if first_pass_scale:
        result.components["first_pass"] = given.scores
        result.scales["first_pass"] = first_pass_scale
        offset = 0 if isinstance(opts, LabelSyncOptions) and opts.published_scoring else 1
        divisor = length_divisor(given.lengths, exponent=opts.length_norm_exponent, offset=offset)
        result.scores = combine_components(result.components, result.scales) / divisor
    result.scores = result.scores.masked_fill(~given.exists, NEG_INF)
    return sort_hypotheses(result, n_best=n_best or given.labels.shape[1])


def make_forced_step(
    opts: SearchOptions,
    ctc_opts: CtcOptions,
    *,
    data: ScoreData = NO_DATA,
    utterances: dict[str, Utterance] | None = None,
) -> Callable[..., None]:
    """
    :param opts: of the search whose definition of the score counts
    :param ctc_opts:
    :param data:
    :param utterances: n-best lists to score. None: the references
    :return: RETURNN's ``forward_step``
    """

    def score(model: AedCtcModel, encoded: Encoded, extern_data: TensorDict) -> SearchResult:
        given = _given(utterances, encoded, extern_data)
        return score_given(model, encoded, given, opts, ctc_opts, data=data)

    return forward_step_of(score, amp=data.amp)


def make_rescore_step(
    opts: RescoreOptions, ctc_opts: CtcOptions, *, data: ScoreData = NO_DATA, utterances: dict[str, Utterance]
) -> Callable[..., None]:
    """
    :param opts:
    :param ctc_opts:
    :param data:
    :param utterances: n-best lists of the first pass
    :return: RETURNN's ``forward_step``
    """

    def score(model: AedCtcModel, encoded: Encoded, extern_data: TensorDict) -> SearchResult:
        return score_given(
            model,
            encoded,
            _given(utterances, encoded, extern_data),
            opts.scoring(),
            ctc_opts,
            data=data,
            first_pass_scale=opts.first_pass_scale,
            n_best=opts.n_best,
        )

    return forward_step_of(score, amp=data.amp)


def _given(utterances: dict[str, Utterance] | None, encoded: Encoded, extern_data: TensorDict) -> GivenHypotheses:
    """:return: hypotheses for a batch; the references if there are no n-best lists"""
    device = encoded.asr.enc.raw_tensor.device
    if utterances is None:
        return _references(extern_data, device=device)
    tags: Any = extern_data["seq_tag"].raw_tensor
    return given_hypotheses(utterances, [str(tag) for tag in tags], device=device)
