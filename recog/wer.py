"""
Word error rate of n-best files (of their first hypotheses): counts, per part of the corpus and in total, and tables.

The alignment is done by kaldialign. The number of errors is the Levenshtein distance, so it does not depend on the
alignment; where several alignments are equally good, the split into substitutions, insertions and deletions does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from kaldialign import align, edit_distance

from .nbest import Utterance
from .text import DEFAULT_NORMALISER, TextNormaliser

__all__ = [
    "RunScore",
    "WerResult",
    "align_words",
    "format_alignment",
    "format_table",
    "run_name",
    "score_table",
    "score_utterances",
    "word_errors",
]

TOTAL = "total"


@dataclass(frozen=True)
class WerResult:
    """Counts over utterances. They add up: ``a + b``, ``sum(results, WerResult())``."""

    num_utts: int = 0
    """Utterances with a reference, i.e. those that the other numbers are about."""
    num_ref_words: int = 0
    num_sub: int = 0
    num_ins: int = 0
    num_del: int = 0
    num_utts_with_error: int = 0
    """Utterances with at least one word error."""
    num_failed: int = 0
    """Utterances (in num_utts) with an error of the search. Without a hypothesis, all words are deletions."""
    num_no_ref: int = 0
    """Utterances without a reference. They are not in num_utts."""

    def __add__(self, other: WerResult) -> WerResult:
        if not isinstance(other, WerResult):
            return NotImplemented
        return WerResult(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def num_errors(self) -> int:
        """:return: substitutions + insertions + deletions"""
        return self.num_sub + self.num_ins + self.num_del

    @property
    def wer(self) -> float | None:
        """:return: word error rate in percent, can exceed 100. None without reference words: it is not defined then."""
        return 100.0 * self.num_errors / self.num_ref_words if self.num_ref_words else None

    @property
    def ser(self) -> float | None:
        """:return: sentence error rate in percent; None without utterances"""
        return 100.0 * self.num_utts_with_error / self.num_utts if self.num_utts else None

    def as_dict(self) -> dict[str, Any]:
        """:return: for JSON: the counts, and the rates in percent, not rounded"""
        return {
            **{f.name: getattr(self, f.name) for f in fields(self)},
            "num_errors": self.num_errors,
            "wer_percent": self.wer,
            "ser_percent": self.ser,
        }


def word_errors(ref: Sequence[str], hyp: Sequence[str], *, sclite_costs: bool = False) -> WerResult:
    """
    :param ref: words of the reference, can be empty: then all words of the hypothesis are insertions
    :param hyp: words of the hypothesis, can be empty
    :param sclite_costs: align with the costs of sclite (substitution 4, insertion and deletion 3) instead of 1. The
        number of errors can then be larger than the Levenshtein distance.
    :return: counts of this one utterance
    """
    if list(ref) == list(hyp):  # most utterances, in a good system
        return WerResult(num_utts=1, num_ref_words=len(ref))
    counts = edit_distance(list(ref), list(hyp), sclite_mode=sclite_costs)
    return WerResult(
        num_utts=1,
        num_ref_words=len(ref),
        num_sub=counts["sub"],
        num_ins=counts["ins"],
        num_del=counts["del"],
        num_utts_with_error=1,
    )


def align_words(
    ref: Sequence[str], hyp: Sequence[str], *, sclite_costs: bool = False
) -> list[tuple[str | None, str | None]]:
    """
    :param ref: words of the reference
    :param hyp: words of the hypothesis
    :param sclite_costs: see :func:`word_errors`
    :return: pairs of words; None in the place of the reference for an insertion, of the hypothesis for a deletion
    """
    pairs = align(list(ref), list(hyp), "", sclite_mode=sclite_costs)  # no word is empty
    return [(a or None, b or None) for a, b in pairs]


def format_alignment(pairs: Iterable[tuple[str | None, str | None]]) -> str:
    """
    :param pairs: see :func:`align_words`
    :return: lines below each other: reference, hypothesis, and, if there are errors, their kind (S, I, D)
    """
    lines = ["REF:", "HYP:", "    "]
    for ref, hyp in pairs:
        kind = "I" if ref is None else "D" if hyp is None else "S" if ref != hyp else ""
        ref, hyp = ref or "*" * len(hyp or ""), hyp or "*" * len(ref or "")
        width = max(len(ref), len(hyp))
        for i, cell in enumerate((ref, hyp, kind)):
            lines[i] += " " + cell.ljust(width)
    return "\n".join(line.rstrip() for line in lines if line.strip())


@dataclass(frozen=True)
class RunScore:
    """Word errors of one run."""

    parts: dict[str, WerResult]
    """Part of the corpus -> counts, sorted by name."""

    @property
    def total(self) -> WerResult:
        """:return: all parts together"""
        return sum(self.parts.values(), WerResult())

    def rows(self) -> dict[str, WerResult]:
        """:return: parts, and the total if there are several"""
        return self.parts if len(self.parts) == 1 else {**self.parts, TOTAL: self.total}

    def as_dict(self) -> dict[str, Any]:
        """:return: for JSON"""
        return {
            "parts": {part: result.as_dict() for part, result in self.parts.items()},
            TOTAL: self.total.as_dict(),
        }


def score_utterances(
    utterances: Iterable[Utterance],
    *,
    normaliser: TextNormaliser = DEFAULT_NORMALISER,
    sclite_costs: bool = False,
) -> RunScore:
    """
    :param utterances: their first hypothesis counts; without one, the empty text
    :param normaliser: for references and hypotheses
    :param sclite_costs: see :func:`word_errors`
    """
    parts: dict[str, WerResult] = {}
    for utt in utterances:
        if utt.ref is None:
            result = WerResult(num_no_ref=1)
        else:
            hyp = utt.hyps[0].text if utt.hyps else ""
            result = word_errors(normaliser.words(utt.ref), normaliser.words(hyp), sclite_costs=sclite_costs)
            if utt.error is not None:
                result += WerResult(num_failed=1)
        parts[utt.part] = parts.get(utt.part, WerResult()) + result
    return RunScore(dict(sorted(parts.items())))


def run_name(nbest_file: str) -> str:
    """
    :param nbest_file: e.g. output/demo_recog_ctc/nbest.jsonl
    :return: how tables call the run: the folder (demo_recog_ctc) if the file has the usual name, otherwise the file
    """
    folder, name = os.path.split(os.path.abspath(nbest_file))
    stem = name.removesuffix(".gz").removesuffix(".jsonl")
    return os.path.basename(folder) or stem if stem == "nbest" else stem


_COLUMNS = ("run", "search", "part", "utts", "words", "WER %", "sub", "ins", "del", "SER %")
_NUM_TEXT_COLUMNS = 3


def score_table(runs: Mapping[str, tuple[str, RunScore]], *, markdown: bool = False) -> str:
    """
    :param runs: name of the run -> (kind of search, score)
    :param markdown: instead of plain text
    :return: table with a row for each run and part, and, below it, what is special about some of the utterances
    """
    rows, notes = [], []
    for run, (search, score) in runs.items():
        for part, result in score.rows().items():
            rows.append(
                [
                    run,
                    search,
                    part or "-",
                    str(result.num_utts),
                    str(result.num_ref_words),
                    _percent(result.wer),
                    str(result.num_sub),
                    str(result.num_ins),
                    str(result.num_del),
                    _percent(result.ser),
                ]
            )
        if score.total.num_no_ref:
            notes.append(f"{run}: {score.total.num_no_ref} utterance(s) without a reference are left out.")
        if score.total.num_failed:
            notes.append(
                f"{run}: in {score.total.num_failed} utterance(s) the search failed; without a hypothesis, all words"
                " of the reference count as deletions."
            )
    table = format_table(_COLUMNS, rows, num_text_columns=_NUM_TEXT_COLUMNS, markdown=markdown)
    return "\n".join([table, *([""] if markdown and notes else []), *notes])


def _percent(value: float | None) -> str:
    """:return: with two decimals; "-" if not defined"""
    return "-" if value is None else f"{value:.2f}"


def format_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, num_text_columns: int, markdown: bool = False
) -> str:
    """
    :param header: names of the columns
    :param rows: cells
    :param num_text_columns: so many first columns are aligned to the left, the others (numbers) to the right
    :param markdown: instead of plain text
    :return: lines, without the last line end
    """
    if markdown:
        rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    widths = [max(width, 3) for width in widths]

    def line(cells: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if i < num_text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |" if markdown else "  ".join(cells).rstrip()

    if markdown:
        rule = ["-" * width if i < num_text_columns else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    else:
        rule = ["-" * width for width in widths]
    return "\n".join(map(line, [header, rule, *rows]))
