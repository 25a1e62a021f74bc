"""
Results as data: every published scale and WER that this project refers to, and those that are measured with it.

One place, ``configs/base/results/*.jsonl``, that configs, docs and plots read. The first line of a file says what it
holds (``{"about": ...}``), each other line is a :class:`Result`, or, in ``*_models.jsonl``, a :class:`TrainedModel`.
Everything is checked when it is read: an unknown name, a WER below 0 or the same row twice is an error that names file
and line. ``tools/results.py`` prints, plots and adds.

Published numbers carry their source, measured ones command, date and machine. A number that is known to be wrong stays,
with the reason in ``invalid``: who meets it elsewhere should find out here.
"""

from __future__ import annotations

import difflib
import glob
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_type_hints

__all__ = [
    "CORPORA",
    "MEASURED_FILE",
    "RESULTS_DIR",
    "Result",
    "ResultError",
    "TrainedModel",
    "corpus_parts",
    "find_row",
    "load_models",
    "load_results",
    "write_results",
]

RESULTS_DIR = os.path.join(os.path.dirname(os.path.abspath(__file__)), "results")
MEASURED_FILE = os.path.join(RESULTS_DIR, "measured.jsonl")
_MODELS_SUFFIX = "_models.jsonl"

CORPORA: dict[str, dict[str, int | None]] = {
    "librispeech": {"dev-clean": 2703, "dev-other": 2864, "test-clean": 2620, "test-other": 2939},
    "tedlium2": {"dev": 507, "test": 1155},
    "demo": {"dev": None, "test": None},
}
"""Corpus -> its evaluation parts -> their number of utterances (None: the user decides)."""

SCALES = ("att", "ctc", "prior", "lm", "ilm")
"""All scales >= 0. prior and ilm are subtracted."""

Kind = Literal["recognition", "training", "system"]
Search = Literal["label_sync", "time_sync", "ctc_greedy", "espnet_time_sync", "two_pass"]


class ResultError(ValueError):
    """Results that are not as they should be, or not there. The message is for the user."""


@dataclass(frozen=True)
class Result:
    """WERs of one model with one recipe."""

    corpus: str
    """A key of :data:`CORPORA`."""
    kind: Kind
    """"recognition": scales of a search on a given model. "training": a training recipe under study, always with the
    same search. "system": a public system, to compare with."""
    recipe: str
    """How it was recognised, e.g. "att_ctc_lm_opls" (attention + CTC + LM, one-pass label-synchronous; optsr: one-pass
    time-synchronous with recombination; tsbs, ctcbs: ESPnet's time-synchronous beam search)."""
    model: str
    source: str
    """Repository, file and line of a published number; for a measured one, what wrote it."""
    search: Search | None = None
    scales: dict[str, float] = field(default_factory=dict)
    """Those that are used, see :data:`SCALES`."""
    beams: tuple[int, ...] = ()
    """Several: the source does not say which one gave the WER."""
    lm: str | None = None
    """External language model; None: without."""
    ilm: str | None = None
    """Internal language model that is subtracted; None: without."""
    ctc_model: str | None = None
    """Model whose encoder gives the CTC scores; None: ``model``."""
    wer: dict[str, float] = field(default_factory=dict)
    """Part -> WER in percent. Can be empty: scales without a recorded result."""
    num_utts: dict[str, int] = field(default_factory=dict)
    """Part -> number of utterances, if known."""
    num_words: dict[str, int] = field(default_factory=dict)
    """Part -> number of words in the references, if known."""
    candidates: str | None = None
    """Scales of which the source has several values: they are not in ``scales``."""
    invalid: str | None = None
    """Why this result must not be used; None: nothing is known against it."""
    note: str | None = None
    command: str | None = None
    """Of a measured result."""
    date: str | None = None
    """Of a measured result, YYYY-MM-DD."""
    machine: str | None = None
    """Of a measured result."""

    @property
    def measured(self) -> bool:
        """:return: whether it was measured with this project; otherwise published by others"""
        return self.date is not None

    @property
    def key(self) -> tuple[Any, ...]:
        """:return: what makes it unique"""
        return self.corpus, self.kind, self.recipe, self.model, self.measured

    def __post_init__(self):
        _check_types(self)
        _check(self.corpus in CORPORA, f"corpus {self.corpus!r}: expected {', '.join(CORPORA)}")
        parts = CORPORA[self.corpus]
        for name in ("recipe", "model", "source"):
            _check(bool(getattr(self, name)), f"{name} is empty")
        for name in ("wer", "num_utts", "num_words"):
            for part, value in getattr(self, name).items():
                _check(part in parts, f"{name}: {self.corpus} has no part {part!r}, only {', '.join(parts)}")
                _check(math.isfinite(value) and value >= 0, f"{name} of {part} = {value}: expected a number >= 0")
        for name, value in self.scales.items():
            _check(name in SCALES, f"scale {name!r}: expected {', '.join(SCALES)}")
            _check(math.isfinite(value) and value >= 0, f"scale {name} = {value}: expected a number >= 0")
        _check(all(beam >= 1 for beam in self.beams), f"beams {self.beams}: expected numbers >= 1")
        _check(not self.scales.get("lm") or self.lm is not None, "scale of an LM, but lm does not say which")
        _check(not self.scales.get("ilm") or self.ilm is not None, "scale of an ILM, but ilm does not say which")
        for name in ("candidates", "invalid", "note", "lm", "ilm", "ctc_model"):
            _check(getattr(self, name) != "", f"{name} is empty: leave it out")
        if self.kind == "recognition":
            _check(self.search is not None, "a recognition needs search")
            _check(bool(self.scales or self.candidates), "a recognition needs scales")
        if self.measured:
            _check(bool(self.command and self.machine), "a measured result needs command, date and machine")
            _check(
                set(self.wer) <= set(self.num_utts) & set(self.num_words), "a measured WER needs num_utts, num_words"
            )
        else:
            _check(not (self.command or self.machine), "a measured result needs command, date and machine")

    def as_dict(self) -> dict[str, Any]:
        """:return: for JSON, without empty fields"""
        return {name: value for name, value in asdict(self).items() if value not in (None, {}, ())}


@dataclass(frozen=True)
class TrainedModel:
    """How a published model was trained."""

    corpus: str
    model: str
    ctc_loss_scale: float
    att_loss_scale: float
    source: str
    ctc_layer: int | None = None
    """Encoder layer below the CTC head, 1-based; None: the model has no CTC head."""
    note: str | None = None

    @property
    def ctc_share(self) -> float:
        """:return: CTC loss scale / (CTC + attention loss scale)"""
        return self.ctc_loss_scale / (self.ctc_loss_scale + self.att_loss_scale)

    def __post_init__(self):
        _check_types(self)
        _check(self.corpus in CORPORA, f"corpus {self.corpus!r}: expected {', '.join(CORPORA)}")
        _check(min(self.ctc_loss_scale, self.att_loss_scale) >= 0, "loss scales must be >= 0")
        _check(self.ctc_loss_scale + self.att_loss_scale > 0, "both loss scales are 0")
        _check((self.ctc_layer is None) == (self.ctc_loss_scale == 0), "ctc_layer goes with ctc_loss_scale > 0")


def load_results(folder: str = RESULTS_DIR) -> list[Result]:
    """
    :param folder: with files *.jsonl
    :return: all rows, in the order of the files
    :raises ResultError: something is wrong with them; names file and line
    """
    results: dict[tuple[Any, ...], tuple[str, Result]] = {}
    models = {(model.corpus, model.model) for model in load_models(folder)}
    corpora_with_models = {corpus for corpus, _ in models}
    for filename in sorted(glob.glob(os.path.join(glob.escape(folder), "*.jsonl"))):
        if filename.endswith(_MODELS_SUFFIX):
            continue
        for where, result in _read(filename, Result):
            if result.key in results:
                raise ResultError(f"{where}: the same row is already in {results[result.key][0]}")
            if result.kind == "recognition" and not result.measured and result.corpus in corpora_with_models:
                if (result.corpus, result.model) not in models:
                    raise ResultError(f"{where}: model {result.model!r} is not in the models of {result.corpus}")
            results[result.key] = where, result
    return [result for _, result in results.values()]


def load_models(folder: str = RESULTS_DIR) -> list[TrainedModel]:
    """
    :param folder: with files \\*_models.jsonl
    :return: all models
    :raises ResultError: see :func:`load_results`
    """
    models: dict[tuple[str, str], TrainedModel] = {}
    for filename in sorted(glob.glob(os.path.join(glob.escape(folder), "*" + _MODELS_SUFFIX))):
        for where, model in _read(filename, TrainedModel):
            if (model.corpus, model.model) in models:
                raise ResultError(f"{where}: the model {model.model} is there twice")
            models[model.corpus, model.model] = model
    return list(models.values())


def find_row(results: Iterable[Result], corpus: str, recipe: str, model: str) -> Result:
    """
    :param results:
    :param corpus:
    :param recipe:
    :param model:
    :return: the recognition of that name; a measured one if there is no published one
    :raises ResultError: there is none; lists the nearest names
    """
    rows = [row for row in results if row.kind == "recognition" and row.corpus == corpus]
    if not rows:
        raise ResultError(f"there are no recognition results of the corpus {corpus}")
    of_recipe = [row for row in rows if row.recipe == recipe]
    if not of_recipe:
        raise ResultError(f"{corpus} has no recipe {recipe!r}; {_nearest(recipe, [row.recipe for row in rows])}")
    found = sorted((row for row in of_recipe if row.model == model), key=lambda row: row.measured)
    if not found:
        hint = _nearest(model, [row.model for row in of_recipe])
        raise ResultError(f"recipe {recipe} of {corpus} has no model {model!r}; {hint}")
    return found[0]


def write_results(filename: str, about: str, results: Iterable[Result]) -> None:
    """
    :param filename: written under a temporary name first
    :param about: what the file holds
    :param results:
    """
    temporary = f"{filename}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w", encoding="utf8") as file:
            for record in ({"about": about}, *(result.as_dict() for result in results)):
                file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        os.replace(temporary, filename)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


def corpus_parts(corpus: str) -> tuple[str, ...]:
    """:return: evaluation parts in the usual order"""
    return tuple(CORPORA[corpus])


def _nearest(name: str, known: Iterable[str]) -> str:
    """:return: "did you mean ..., or "there are: ..." """
    known = list(dict.fromkeys(known))
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(known)}"


def _read(filename: str, cls: type[Any]) -> Iterator[tuple[str, Any]]:
    """:return: "file:line", instance of cls"""
    with open(filename, "rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{filename}:{number}"
            try:
                record = json.loads(line.decode("utf8"))
            except (ValueError, RecursionError) as exc:
                raise ResultError(f"{where}: not JSON ({exc})") from None
            if not isinstance(record, dict):
                raise ResultError(f"{where}: expected an object")
            if number == 1:
                if set(record) != {"about"} or not isinstance(record["about"], str):
                    raise ResultError(f'{where}: expected {{"about": "what this file holds"}}')
                continue
            known = {f.name for f in fields(cls)}
            for name in record:
                if name not in known:
                    raise ResultError(f"{where}: unknown field {name!r}; {_nearest(name, sorted(known))}")
            try:
                yield where, cls(**record)
            except (TypeError, ValueError) as exc:
                raise ResultError(f"{where}: {exc}") from None


def _check(ok: bool, message: str) -> None:
    """:raises ResultError: if not ok"""
    if not ok:
        raise ResultError(message)


def _check_types(record: Any) -> None:
    """
    Lists become tuples and whole numbers floats where the field is of such a type.

    :raises ResultError: a value has another type than its field
    """
    for name, annotation in get_type_hints(type(record)).items():
        value = getattr(record, name)
        text = str(annotation)
        if annotation is str or text == "str | None":
            ok = isinstance(value, str) or (value is None and annotation is not str)
        elif annotation in (Kind, Search | None):
            choices = get_args(Kind) if annotation is Kind else (*get_args(Search), None)
            _check(value in choices, f"{name} = {value!r}: expected {' or '.join(map(str, choices))}")
            continue
        elif annotation is float or text == "int | None":
            kinds = (int, float) if annotation is float else (int, type(None))
            ok = isinstance(value, kinds) and not isinstance(value, bool)
        elif text == "tuple[int, ...]":
            ok = isinstance(value, (list, tuple)) and all(type(item) is int for item in value)
            object.__setattr__(record, name, tuple(value) if ok else value)
        elif text in ("dict[str, float]", "dict[str, int]"):
            kinds = (int, float) if text.endswith("float]") else (int,)
            ok = isinstance(value, Mapping) and all(type(item) in kinds for item in value.values())
        else:
            raise TypeError(f"no check for {name}: {annotation}")
        _check(ok, f"{name} = {value!r}: expected {text.removeprefix('<class ').strip('>')}")
