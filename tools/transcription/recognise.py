"""From a checkpoint and waveforms to words with times."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.base.models import check_combination, check_vocab, open_external_models
from configs.base.options import OptionError, resolve_options
from recog.json_file import JsonError, read_json_object
from recog.options import CtcOptions, ExternalModelOptions, GreedyOptions, LabelSyncOptions, SearchOptions
from recog.options import TimeSyncOptions as TimeSync
from recog.vocab import Vocab, load_vocab
from rf_models.checkpoint import read_model_info
from rf_models.options import AedCtcOptions
from tools.corpus.audio import SAMPLE_RATE

from .audio import cut_at_silence, is_silent

__all__ = ["SEARCHES", "Recogniser", "Segment", "Word", "find_training", "group_words", "open_recogniser"]

SEARCHES = ("auto", "ctc", "labelsync", "timesync")
_BATCH_SECONDS = 120.0
_MIN_SAMPLES = SAMPLE_RATE // 10
"""Shorter audio gets zeros behind it: the encoder needs some frames."""


@dataclass(frozen=True)
class Word:
    """A word with the times of its labels in the best CTC alignment, in seconds from the begin of the file."""

    text: str
    begin: float | None
    """None: there is no alignment."""
    end: float | None


@dataclass(frozen=True)
class Segment:
    """A stretch of a file that was recognised as one utterance."""

    begin: float
    """Seconds."""
    end: float
    text: str
    score: float | None
    """Total score of the search, natural log. None: silence, nothing was searched."""
    words: list[Word]


def find_training(checkpoint: str) -> dict[str, Any]:
    """:return: options of the training that the checkpoint is of; empty if there is no options.json in its folder"""
    for folder in (os.path.dirname(checkpoint), os.path.dirname(os.path.dirname(os.path.abspath(checkpoint)))):
        try:
            return read_json_object(os.path.join(folder, "options.json"))
        except (OSError, JsonError):
            continue
    return {}


def _find_vocab(checkpoint: str, training: dict[str, Any]) -> str:
    """:raises OptionError: not exactly one file is found"""
    name, data_dir = training.get("vocab"), training.get("data_dir")
    found = []
    if isinstance(name, str) and isinstance(data_dir, str):
        # A relative data folder is meant from where the training was started: here, or where its output folder lies.
        run_dir = os.path.dirname(os.path.dirname(os.path.abspath(checkpoint)))
        for base in dict.fromkeys((os.getcwd(), os.path.dirname(os.path.dirname(run_dir)))):
            data = os.path.join(base, data_dir)
            children = sorted(os.listdir(data)) if os.path.isdir(data) else []
            for folder in (data, *(os.path.join(data, child) for child in children)):
                file = os.path.join(folder, "vocab", f"{name}.json")
                if os.path.isfile(file) and file not in found:
                    found.append(file)
    if len(found) != 1:
        why = f"there are several: {', '.join(found)}" if found else "it was not found by the options of the training"
        raise OptionError(f"which vocabulary is that of {checkpoint}? {why}. Give it with --vocab FILE.json")
    return found[0]


def group_words(labels: Sequence[int], vocab: Vocab) -> list[tuple[int, int]]:
    """
    :param labels: of an utterance
    :param vocab:
    :return: first and last + 1 label of each word. A group can turn out to have no text.
    """
    names = [vocab.label_name(label) for label in labels]
    if vocab.type == "sentencepiece":
        starts = [i for i, name in enumerate(names) if i == 0 or name.startswith("▁")]
    else:
        starts = [i for i in range(len(names)) if i == 0 or not names[i - 1].endswith("@@")]
    return list(itertools.pairwise([*starts, len(names)]))


@dataclass
class Recogniser:
    """A model with a search."""

    model: Any
    vocab: Vocab
    search: GreedyOptions | SearchOptions
    ctc: CtcOptions
    data: Any
    peak_normalization: bool
    device: str

    def transcribe(
        self,
        samples: np.ndarray,
        *,
        max_seconds: float,
        with_times: bool,
        progress: Callable[[float, str], None] | None = None,
    ) -> list[Segment]:
        """
        :param samples: [samples] at 16 kHz
        :param max_seconds: longer audio is cut at silence
        :param with_times: align the words; needs a CTC head
        :param progress: gets the fraction that is done, and what
        :return: segments in order
        """
        bounds = cut_at_silence(samples, max_seconds=max_seconds)
        peak = float(np.abs(samples).max())
        segments: list[Segment | None] = [None] * len(bounds)
        todo = []
        for i, (begin, end) in enumerate(bounds):
            if is_silent(samples[begin:end], peak=peak):
                segments[i] = Segment(begin / SAMPLE_RATE, end / SAMPLE_RATE, "", None, [])
            else:
                todo.append(i)
        todo.sort(key=lambda i: bounds[i][1] - bounds[i][0], reverse=True)
        done = 0
        while done < len(todo):
            longest = (bounds[todo[done]][1] - bounds[todo[done]][0]) / SAMPLE_RATE
            batch = todo[done : done + max(1, int(_BATCH_SECONDS / longest))]
            waveforms = [self._prepared(samples[slice(*bounds[i])]) for i in batch]
            for i, segment in zip(batch, self._batch(waveforms, [bounds[i] for i in batch], with_times), strict=True):
                segments[i] = segment
            done += len(batch)
            if progress is not None:
                progress(done / len(todo), f"{done} of {len(todo)} segments")
        return segments

    def _prepared(self, segment: np.ndarray) -> np.ndarray:
        """:return: as the training data was"""
        peak = np.abs(segment).max()
        segment = segment / peak if self.peak_normalization and peak else segment
        return np.pad(segment, (0, max(0, _MIN_SAMPLES - len(segment))))

    def _batch(self, waveforms: list[np.ndarray], bounds: list[tuple[int, int]], with_times: bool) -> list[Segment]:
        import torch

        from recog.forward import run_search
        from recog.inputs import encode
        from recog.standalone import audio_batch

        with torch.no_grad():
            audio, time_dim = audio_batch(waveforms, device=self.device)
            encoded = encode(self.model, audio, in_spatial_dim=time_dim)
            result = run_search(self.model, encoded, self.search, self.ctc, data=self.data)
            labels, lengths = result.labels[:, 0].cpu(), result.label_lengths[:, 0].cpu()
            scores = result.scores[:, 0].tolist()
            alignments = self._align(encoded, labels, lengths) if with_times else None
        segments = []
        for i, (begin, end) in enumerate(bounds):
            found = scores[i] > float("-inf")
            own = labels[i, : lengths[i]].tolist() if found else []
            segments.append(
                Segment(
                    begin=begin / SAMPLE_RATE,
                    end=end / SAMPLE_RATE,
                    text=self.vocab.labels_to_text(own),
                    score=scores[i] if found else None,
                    words=self._words(own, alignments[i] if alignments is not None else None, begin, end),
                )
            )
        return segments

    def _align(self, encoded: Any, labels: Any, lengths: Any) -> list[np.ndarray]:
        """:return: [T] label or blank of each frame, -1 if there is no alignment"""
        from recog.core.ctc import ctc_viterbi
        from recog.inputs import ctc_posteriors

        # Without prior and collapse, which are for the search.
        ctc = ctc_posteriors(self.model, encoded.asr, CtcOptions(ctc_layer=self.ctc.ctc_layer))
        device = ctc.log_probs.device
        _, paths = ctc_viterbi(ctc.log_probs, ctc.lengths, labels.to(device), lengths.to(device))
        return [path[:length] for path, length in zip(paths.cpu().numpy(), ctc.lengths.tolist(), strict=True)]

    def _words(self, labels: list[int], alignment: np.ndarray | None, begin: int, end: int) -> list[Word]:
        from recog.analysis.alignment import FEATURE_SECONDS, label_segments

        times = None
        if alignment is not None and len(alignment) and alignment.min() >= 0:
            frame_seconds = self.model.opts.time_reduction * FEATURE_SECONDS
            times = label_segments(alignment, blank=self.model.blank_index, frame_seconds=frame_seconds)
        words = []
        for first, last in group_words(labels, self.vocab):
            for text in self.vocab.labels_to_text(labels[first:last]).split():
                if times is None:
                    words.append(Word(text, None, None))
                else:  # the last frame can reach beyond the audio
                    offset, limit = begin / SAMPLE_RATE, end / SAMPLE_RATE
                    word_begin, word_end = offset + times[first].begin, offset + times[last - 1].end
                    words.append(Word(text, min(word_begin, limit), min(word_end, limit)))
        return words


def open_recogniser(
    checkpoint: str, *, vocab_file: str | None, search: str, overrides: dict[str, str], device: str, with_times: bool
) -> Recogniser:
    """
    :param checkpoint: of an ASR model
    :param vocab_file: None: that of the training
    :param search: one of :data:`SEARCHES`
    :param overrides: options of search, CTC and external models by name, as texts
    :param device: "cpu", "cuda", ...
    :param with_times: whether words shall have times
    :raises OptionError: something does not fit, or an option is unknown
    """
    try:
        info = read_model_info(checkpoint)
    except ValueError as exc:
        raise OptionError(str(exc)) from None
    if info is None or info.kind != "aed_ctc":
        what = "does not say what model it holds" if info is None else f"holds a model of the kind {info.kind}"
        raise OptionError(f"{checkpoint} {what}: expected an ASR model of a training or of the converter")
    training = find_training(checkpoint)
    try:
        vocab = load_vocab(vocab_file or _find_vocab(checkpoint, training))
    except (OSError, ValueError) as exc:
        raise OptionError(str(exc)) from None
    check_vocab(checkpoint, info, vocab)
    model_opts = info.model_options()
    if with_times and not model_opts.ctc_layers:
        raise OptionError("times come from the CTC alignment, but this model has no CTC head")
    defaults = [_default_search(search, model_opts), CtcOptions(), ExternalModelOptions()]
    groups, others = resolve_options({}, overrides, defaults)
    if others:
        raise OptionError(f"{next(iter(others))} is an option of RETURNN and has no meaning here")
    search_opts, ctc_opts, external_opts = (groups[type(default)] for default in defaults)
    if external_opts.ctc_checkpoint:
        raise OptionError("ctc_checkpoint has no effect here: use a recognition config for CTC scores of another model")
    external = open_external_models(external_opts, search_opts, asr=model_opts, vocab=vocab)
    check_combination(model_opts, ctc_opts, search_opts, external)

    # Imports of torch and RETURNN take seconds: not before the input is known to be right.
    from configs.base.run import BEHAVIOR_VERSION
    from recog.inputs import ScoreData
    from recog.standalone import load_model

    log_prior = None
    try:
        if ctc_opts.prior_scale:
            from recog.prior import load_log_prior

            log_prior = load_log_prior(ctc_opts.prior_file, num_classes=vocab.num_labels + 1)
        model = load_model(checkpoint, behavior_version=BEHAVIOR_VERSION, device=device)
        for name, model_info in external.infos.items():
            file = external.checkpoints[name]
            other = load_model(file, behavior_version=BEHAVIOR_VERSION, device=device, kind=model_info.kind)
            setattr(model, name, other)
    except (OSError, ValueError) as exc:
        raise OptionError(str(exc)) from None
    data = ScoreData(log_prior=log_prior, ilm_type=external.ilm_type)
    peak_normalization = training.get("peak_normalization", True)
    return Recogniser(model, vocab, search_opts, ctc_opts, data, bool(peak_normalization), device)


def _default_search(name: str, model: AedCtcOptions) -> GreedyOptions | SearchOptions:
    """
    :param name: one of :data:`SEARCHES`; "auto": label-synchronous if there is a decoder, else greedy
    :param model: what there is
    """
    joint = bool(model.ctc_layers)
    scales = dict(att_scale=0.7, ctc_scale=0.3) if joint else dict(att_scale=1.0, ctc_scale=0.0)
    if not model.with_decoder:
        scales = dict(att_scale=0.0, ctc_scale=1.0)
    if name == "ctc" or (name == "auto" and not model.with_decoder):
        return GreedyOptions()
    if name == "timesync":
        return TimeSync(beam_size=12, blank_scale="ctc", repeat_scale="ctc", **scales)
    return LabelSyncOptions(beam_size=12, **scales)
