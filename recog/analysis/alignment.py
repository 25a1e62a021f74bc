"""
One utterance under the microscope: features, CTC posteriors, attention weights and the CTC alignment of a label
sequence, all in seconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from returnn.tensor import batch_dim

from rf_models.aed_ctc import AedCtcModel
from rf_models.encoder import SAMPLE_RATE

from ..core.ctc import ctc_viterbi
from ..core.posteriors import merge_eos_into_blank, prepare_ctc_log_probs
from ..ctc_greedy import ctc_greedy_search
from ..scorers.attention import make_attention_scorer
from ..standalone import audio_batch
from ..vocab import Vocab

__all__ = ["LabelSegment", "UtteranceView", "label_names", "label_segments", "view_utterance"]

FEATURE_SECONDS = 0.01
"""Step of the log-mel features."""


@dataclass(frozen=True)
class LabelSegment:
    """A label of the CTC alignment."""

    label: int
    begin: float
    """Seconds: begin of its first frame."""
    end: float
    """Seconds: end of its last frame. CTC peaks are short: the sound often goes on in the blanks behind."""


@dataclass(frozen=True)
class UtteranceView:
    """What :func:`view_utterance` saw. T encoder frames, L labels."""

    duration: float
    """Seconds."""
    log_mel: np.ndarray
    """[frames, filters], a frame every 10 ms"""
    frame_seconds: float
    """Of an encoder frame."""
    labels: list[int]
    """Without EOS."""
    ctc_probs: np.ndarray | None
    """[T, V+1] posteriors, EOS merged into blank, blank last. None: the model has no CTC head."""
    alignment: np.ndarray | None
    """[T] label or blank (V) of each frame on the best path of the labels. None: no CTC head, or impossible (too
    few frames)."""
    alignment_score: float | None
    """Natural log-prob of that path."""
    attention: np.ndarray | None
    """[L+1, T] weights, the last row is that of EOS; of a Transformer decoder those of its top layer, averaged over the
    heads. None: the model has no decoder."""

    @property
    def segments(self) -> list[LabelSegment]:
        """:return: labels of the alignment with times; none without alignment"""
        if self.alignment is None:
            return []
        return label_segments(self.alignment, blank=self.ctc_probs.shape[1] - 1, frame_seconds=self.frame_seconds)


def label_segments(alignment: np.ndarray, *, blank: int, frame_seconds: float) -> list[LabelSegment]:
    """
    :param alignment: [T] label or blank of each frame
    :param blank:
    :param frame_seconds:
    :return: one segment for each label: runs of equal frames
    """
    edges = np.flatnonzero(np.diff(alignment, prepend=-1, append=-1))
    return [
        LabelSegment(int(alignment[begin]), begin * frame_seconds, end * frame_seconds)
        for begin, end in itertools.pairwise(edges)
        if alignment[begin] != blank
    ]


def label_names(vocab: Vocab, labels: Sequence[int]) -> list[str]:
    """:return: the sub-words as the vocabulary writes them ("▁the", "th@@")"""
    return [vocab.label_name(label) for label in labels]


def view_utterance(
    model: AedCtcModel, waveform: np.ndarray, labels: Sequence[int] | None = None, *, ctc_layer: int | None = None
) -> UtteranceView:
    """
    :param model: see :func:`recog.standalone.load_model`
    :param waveform: [samples] at 16 kHz, scaled as the training data
    :param labels: of a hypothesis or the reference, without EOS. None: those of greedy CTC search
    :param ctc_layer: which CTC head. None: the top-most
    :raises ValueError: no labels, and no CTC head that could find some
    """
    with torch.no_grad():
        audio, time_dim = audio_batch([waveform])
        features, features_dim = model.features(audio, in_spatial_dim=time_dim)
        log_mel = features.copy_transpose([batch_dim, features_dim, model.features.out_dim]).raw_tensor[0]
        encoded = model.encode(audio, in_spatial_dim=time_dim)
        lengths = encoded.enc_spatial_dim.get_size_tensor().raw_tensor.long()
        log_probs = None
        if model.opts.ctc_layers:
            dims = [batch_dim, encoded.enc_spatial_dim, model.target_dim_with_blank]
            log_probs = model.ctc_log_probs(encoded, layer=ctc_layer).copy_transpose(dims).raw_tensor
        if labels is None:
            if log_probs is None:
                raise ValueError("this model has no CTC head: give the labels to look at")
            posteriors = prepare_ctc_log_probs(log_probs, lengths, eos_index=model.eos_index)
            found = ctc_greedy_search(posteriors, eos_index=model.eos_index)
            labels = found.labels[0, 0, : found.label_lengths[0, 0]].tolist()
        labels = [int(label) for label in labels]
        probs = alignment = score = attention = None
        if log_probs is not None:
            log_probs = merge_eos_into_blank(log_probs, eos_index=model.eos_index)
            probs = log_probs[0].exp().numpy()
            target = torch.tensor([labels], dtype=torch.int64).reshape(1, -1)
            scores, paths = ctc_viterbi(log_probs, lengths, target, torch.tensor([len(labels)]))
            if torch.isfinite(scores[0]):
                alignment, score = paths[0].numpy(), scores[0].item()
        if model.decoder is not None:
            attention = _attention_weights(model, encoded, lengths, labels)
    return UtteranceView(
        duration=len(waveform) / SAMPLE_RATE,
        log_mel=log_mel.numpy(),
        frame_seconds=model.opts.time_reduction * FEATURE_SECONDS,
        labels=labels,
        ctc_probs=probs,
        alignment=alignment,
        alignment_score=score,
        attention=attention,
    )


def _attention_weights(model: AedCtcModel, encoded, lengths: torch.Tensor, labels: list[int]) -> np.ndarray:
    """:return: [L+1, T]"""
    scorer = make_attention_scorer(model.decoder, model.attention_memory(encoded), lengths, track=True)
    state, utt = scorer.initial_state(1), torch.zeros(1, dtype=torch.int64)
    rows = []
    for previous in [model.eos_index, *labels]:
        before = state["track"]["att_sum"]
        _, state = scorer.step(torch.tensor([previous]), state, utt)
        rows.append((state["track"]["att_sum"] - before)[0])
    return torch.stack(rows).numpy()
