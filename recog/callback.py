"""
What happens with the results of RETURNN's forward task: they become an n-best file and a WER table.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from returnn.forward_iface import ForwardCallbackIface
from returnn.log import log
from returnn.tensor import TensorDict

from .nbest import (
    NO_HYPOTHESIS,
    Hypothesis,
    NBestHeader,
    Utterance,
    check_utterance,
)
from .progress import Progress
from .results import write_results
from .spool import UtteranceSpool
from .utterance_info import read_info
from .vocab import Vocab

__all__ = ["RecogCallback", "RecogError"]

_NUM_EXAMPLES = 3


class RecogError(SystemExit):
    """The run cannot give a correct result: RETURNN ends with the message and exit code 1."""

    def __init__(self, message: str):
        super().__init__(f"error: {message}")


class RecogCallback(ForwardCallbackIface):
    """
    Collects the hypotheses of all utterances. At the end of the run it writes, sorted by sequence tag (so that the
    files do not depend on the batches), ``nbest.jsonl`` and, beside it, ``wer.json`` and ``wer.txt``. The n-best file
    comes last: where it is, the run is complete.

    Outputs of the forward step that are read, per sequence (N hypotheses, best first)::

        labels            [N, L] int     without EOS, anything behind the length
        label_lengths     [N] int
        scores            [N] float      -inf: there is no such hypothesis
        score_<component> [N] float      for each component with a scale != 0 in the header, before its scale
        enc_len           [] int         encoder frames
        duration          [] float       of the audio, in seconds
        encoder_time, search_time  [] float   this utterance's share of the computing time, in seconds
        ref               [bytes] uint8  reference text in UTF-8; can be absent
        error             [bytes] uint8  why the utterance could not be recognised, in UTF-8; can be absent
        info              [bytes] uint8  see :mod:`recog.utterance_info`; can be absent

    An utterance that cannot be recognised has an entry with an error instead of hypotheses. If that is so for all
    utterances, the run fails.
    """

    def __init__(
        self,
        nbest_file: str,
        *,
        header: NBestHeader,
        vocab: Vocab,
        num_seqs: int,
        returnn_search_output: bool = False,
        no_hypothesis: str = NO_HYPOTHESIS,
        after: Callable[[], None] | None = None,
    ):
        """
        :param nbest_file: name of the n-best file to write
        :param header: its header
        :param vocab: makes texts of labels
        :param num_seqs: so many utterances must come
        :param returnn_search_output: write RETURNN's usual search output (search_out.py), too
        :param no_hypothesis: error of an utterance without hypotheses
        :param after: called when all is written
        """
        self.nbest_file = nbest_file
        self.header = header
        self.vocab = vocab
        self.num_seqs = num_seqs
        self.no_hypothesis = no_hypothesis
        self.after = after
        folder = os.path.dirname(nbest_file)
        self.wer_json_file = os.path.join(folder, "wer.json")
        self.wer_text_file = os.path.join(folder, "wer.txt")
        self.search_output_file = os.path.join(folder, "search_out.py") if returnn_search_output else None
        self.utterances = UtteranceSpool(folder)
        self._start()

    def _start(self) -> None:
        self.utterances.close()
        self.failed: list[str] = []
        self.num_failed = 0
        self.audio_seconds = self.encoder_seconds = self.search_seconds = 0.0
        self.progress = Progress("recognition", stream=lambda: log.v3)

    def _remove_results(self) -> None:
        """The n-best file first, since it tells that the others are complete."""
        for filename in (self.nbest_file, self.wer_json_file, self.wer_text_file, self.search_output_file):
            if filename is not None:
                with suppress(FileNotFoundError):
                    os.remove(filename)

    def init(self, *, model: Any) -> None:
        """
        The run begins. Results of an earlier one (to be overwritten) are removed now: they belong to other options.

        :param model: not used
        """
        self._start()
        self._remove_results()
        self.progress.update(0.0)

    def process_seq(self, *, seq_tag: str, outputs: TensorDict) -> None:
        """
        :param seq_tag:
        :param outputs: see the class; NumPy arrays without batch axis
        :raises RecogError: if the hypotheses are not valid (NaN, not sorted, ...) or the utterance comes a second time
        """
        if seq_tag in self.utterances:
            raise RecogError(f"utterance {seq_tag!r} came twice: expected each once, is it in two parts of the corpus?")
        info = read_info(outputs)
        raw = {name: tensor.raw_tensor for name, tensor in outputs.data.items()}
        error = info.error or _text(raw.get("error"))
        hyps, error = ([], error) if error else self._hypotheses(seq_tag, raw)
        duration = _float(raw["duration"])
        try:
            utt = Utterance(
                seq_tag=seq_tag,
                duration=info.duration if info.error else round(duration, 6),
                enc_len=None if info.error or "error" in raw else int(raw["enc_len"]),
                ref=None if info.no_transcript else _text(raw.get("ref")),
                hyps=hyps,
                error=error,
            )
            check_utterance(utt, self.header)
        except ValueError as exc:
            raise RecogError(f"utterance {seq_tag!r}: {exc}") from None
        self.utterances.add(utt)
        if error is not None and len(self.failed) < _NUM_EXAMPLES:
            self.failed.append(f"{seq_tag}: {error}")
        self.num_failed += error is not None
        if not info.error and "error" not in raw:  # those without a search have no times
            self.audio_seconds += duration
            self.encoder_seconds += _float(raw["encoder_time"])
            self.search_seconds += _float(raw["search_time"])
        done = len(self.utterances)
        self.progress.update(min(done / max(self.num_seqs, 1), 1.0), f"{done} of {self.num_seqs} utterances")

    def _hypotheses(self, seq_tag: str, raw: dict[str, Any]) -> tuple[list[Hypothesis], str | None]:
        """
        :return: hypotheses; error, if there are none
        :raises RecogError: they cannot be right
        """
        scores = raw["scores"]
        if np.isnan(scores).any():
            return [], f"the search gave the score NaN (scores {_floats(scores)})".replace("nan", "NaN")
        components = {
            name.removeprefix("score_"): _floats(values) for name, values in raw.items() if name.startswith("score_")
        }
        lengths = raw["label_lengths"].tolist()
        hyps = []
        for i, score in enumerate(_floats(scores)):
            if score == -np.inf:
                continue
            labels = raw["labels"][i, : lengths[i]].tolist()
            wrong = [label for label in labels if not 0 <= label < self.vocab.num_labels]
            if wrong:
                raise RecogError(
                    f"utterance {seq_tag!r}: the search gave the label {wrong[0]}, which is not a label of vocabulary"
                    f" {self.vocab.name} (0 ... {self.vocab.num_labels - 1})"
                )
            text = self.vocab.labels_to_text(labels)
            hyps.append(Hypothesis(labels, text, score, {name: values[i] for name, values in components.items()}))
        return hyps, None if hyps else self.no_hypothesis

    def finish(self) -> None:
        """
        The run has ended: writes all files and prints the summary.

        :raises RecogError: if the number of utterances is not as expected, or none was recognised
        """
        if len(self.utterances) != self.num_seqs:
            raise RecogError(
                f"{len(self.utterances)} utterances arrived, but the corpus has {self.num_seqs}. No results are"
                " written. Has the corpus changed after its preparation, or does an option of RETURNN leave some out?"
            )
        if self.num_failed and self.num_failed == self.num_seqs and self.after is None:  # a shard may have no good one
            examples = "; ".join(self.failed)
            raise RecogError(f"all {self.num_failed} utterances failed. No results are written. {examples}")
        try:
            summary = write_results(
                os.path.dirname(self.nbest_file),
                header=self.header,
                utterances=self.utterances,
                seconds={
                    "audio": self.audio_seconds,
                    "encoder": self.encoder_seconds,
                    "search": self.search_seconds,
                },
                returnn_search_output=self.search_output_file is not None,
            )
        except BaseException:
            self._remove_results()
            raise
        done = len(self.utterances)
        self.utterances.close()
        print(f"{summary}{done} utterances, n-best lists in {self.nbest_file}", file=log.v1, flush=True)
        if self.after is not None:
            self.after()


def _text(value: np.ndarray | None) -> str | None:
    """:return: of UTF-8 bytes"""
    return None if value is None else bytes(value.astype(np.uint8)).decode("utf8")


def _float(value: np.ndarray | np.floating) -> float:
    """:return: the shortest number that has this value in its own precision: 0.1, not 0.10000000149 for float32"""
    return float(str(value[()]) if isinstance(value, np.ndarray) else str(value))


def _floats(values: np.ndarray) -> list[float]:
    """:return: see :func:`_float`"""
    return [_float(value) for value in values]
