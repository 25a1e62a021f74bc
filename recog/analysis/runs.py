"""
Recognition runs as the analysis tools read them, and which parts of a corpus may be tuned on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..nbest import NBestHeader, Utterance, load_nbest
from ..text import DEFAULT_NORMALISER, TextNormaliser
from ..wer import run_name

__all__ = ["AnalysisError", "Run", "check_same_references", "is_test_name", "load_run", "load_runs", "select_parts"]


class AnalysisError(ValueError):
    """The input does not allow this analysis. The message is for the user: it names the file and what to do."""


@dataclass(frozen=True)
class Run:
    """One n-best file."""

    name: str
    """How tables call it."""
    file: str
    header: NBestHeader
    utterances: list[Utterance]
    """Sorted by tag."""

    @property
    def parts(self) -> list[str]:
        """:return: parts of the corpus, sorted"""
        return sorted({utt.part for utt in self.utterances})


def load_run(file: str, *, name: str | None = None) -> Run:
    """
    :param file: n-best file
    :param name: None: from the file name
    :raises AnalysisError: there is no such file, or it has no utterances
    :raises recog.nbest.NBestFormatError: not a valid n-best file
    """
    try:
        header, utterances = load_nbest(file)
    except FileNotFoundError:
        raise AnalysisError(f"{file} does not exist: has the recognition run ended?") from None
    except IsADirectoryError:
        raise AnalysisError(f"{file} is a folder: give the n-best file in it ({file}/nbest.jsonl)") from None
    if not utterances:
        raise AnalysisError(f"{file}: has a header, but no utterances")
    utterances.sort(key=lambda utt: utt.seq_tag)
    return Run(name or run_name(file), file, header, utterances)


def load_runs(files: Sequence[str]) -> list[Run]:
    """
    :param files: n-best files of different runs
    :return: runs with different names
    :raises AnalysisError: see :func:`load_run`; or a file is given twice
    """
    paths = [os.path.realpath(file) for file in files]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise AnalysisError(f"{files[i]} is given twice")
    names = [run_name(file) for file in files]
    return [
        load_run(file, name=name if names.count(name) == 1 else file) for name, file in zip(names, files, strict=True)
    ]


def select_parts(run: Run, parts: Iterable[str]) -> Run:
    """
    :param run:
    :param parts: of the corpus
    :return: the run with the utterances of these parts only
    :raises AnalysisError: there is no such part
    """
    parts = list(parts)
    for part in parts:
        if part not in run.parts:
            there = ", ".join(p or '""' for p in run.parts)
            raise AnalysisError(f"{run.file}: no utterances of part {part!r}; there are: {there}")
    return replace(run, utterances=[utt for utt in run.utterances if utt.part in parts])


def is_test_name(name: str) -> bool:
    """
    :param name: of a part of a corpus, or of a run
    :return: whether it says that this is a test set ("test-other", "eval2000", "tst2014")
    """
    return re.search(r"(?<![a-z])(test|tst|eval)(?![a-z])", name.lower()) is not None


def check_same_references(runs: Sequence[Run], *, normaliser: TextNormaliser = DEFAULT_NORMALISER) -> None:
    """
    :param runs:
    :param normaliser: of the texts
    :raises AnalysisError: two runs have different references for an utterance, so they cannot be compared
    """
    refs: dict[str, tuple[str, str]] = {}
    for run in runs:
        for utt in run.utterances:
            if utt.ref is None:
                continue
            ref = normaliser(utt.ref)
            file, other = refs.setdefault(utt.seq_tag, (run.file, ref))
            if ref != other:
                raise AnalysisError(
                    f"mixed references: utterance {utt.seq_tag!r} has {other!r} in {file}, but {ref!r} in {run.file}:"
                    " these runs cannot be compared"
                )
