"""
What a report is about: output folders of runs, JSON files of the analysis tools, pictures. Found by what they are, not
by their names; in a folder, whatever of these lies directly in it.
"""

from __future__ import annotations

import ast
import base64
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from recog.analysis.runs import AnalysisError, Run, load_run
from recog.json_file import JsonError, read_json_object
from recog.learning_rates import read_learning_rates

__all__ = [
    "Picture",
    "Recognition",
    "ReportInputs",
    "RunRecord",
    "Training",
    "finite",
    "load_inputs",
    "read_picture",
]

_PICTURES = {".png": "image/png", ".svg": "image/svg+xml", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
_MAX_PICTURE_BYTES = 8 * 2**20
_OWN_JSON = frozenset({"options.json", "wer.json"})  # of the runs themselves
# Kind of a tool's JSON -> what it must have; which of that is a list; what each item of it must have.
_TOOL_JSON: dict[str, tuple[set[str], str, set[str]]] = {
    "tuning": (
        set("run parts num_utts max_hyps criterion scales_before scales results intervals warnings surface".split()),
        "curves",
        {"component", "scales", "wer_percent"},
    ),
    "pairs": (
        {"format"},
        "pairs",
        set("run search parts num_utts percent wer_percent wer_percent_without_search_errors utterances audit".split()),
    ),
    "beams": (
        {"config", "overrides", "parts"},
        "points",
        set("beam_size num_utts wer search_errors worse_than_best_known model_errors real_time_factor".split()),
    ),
}
_PERPLEXITY = set("num_sentences num_labels num_words num_unknown perplexity_per_label perplexity_per_word".split())


@dataclass(frozen=True)
class RunRecord:
    """How a run was started, from its log file. Only what the log says."""

    command: list[str] | None = None
    """Words of the command line after rnn.py, of the last process that wrote to this log."""
    date: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    """Name of a program or package -> version"""
    device: str | None = None
    num_starts: int = 0
    """Processes that wrote to this log."""

    @property
    def config(self) -> str | None:
        """:return: name of the config without folder and ending"""
        first = next((word for word in self.command or [] if not word.startswith(("+", "-"))), None)
        return first and os.path.splitext(os.path.basename(first))[0]


@dataclass(frozen=True)
class Recognition:
    """A recognition run, or forced scores."""

    run: Run
    options: dict[str, Any]
    """All options that the run recorded"""
    times: dict[str, float | None]
    """"time" of its wer.json"""
    record: RunRecord

    @property
    def forced(self) -> bool:
        """:return: whether these are scores of given label sequences, not results of a search"""
        return self.run.header.search.startswith("forced_")


@dataclass(frozen=True)
class Training:
    """A training run."""

    name: str
    folder: str
    epochs: dict[int, dict[str, Any]]
    """See :func:`recog.learning_rates.read_learning_rates`"""
    options: dict[str, Any]
    record: RunRecord


@dataclass(frozen=True)
class Picture:
    """A picture as it stands in the page."""

    name: str
    url: str


@dataclass
class ReportInputs:
    """Everything that the report shows."""

    recognitions: list[Recognition] = field(default_factory=list)
    forced: list[Recognition] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    tunings: list[dict[str, Any]] = field(default_factory=list)
    """Records of tools/tune_scales.py"""
    search_errors: list[dict[str, Any]] = field(default_factory=list)
    """Records of tools/search_errors.py, one for each pair of files"""
    beam_curves: list[dict[str, Any]] = field(default_factory=list)
    """Records of tools/search_errors.py --beams"""
    perplexities: list[dict[str, Any]] = field(default_factory=list)
    """Name of a text -> :meth:`recog.perplexity.TextScore.as_dict`"""
    pictures: list[Picture] = field(default_factory=list)
    files: dict[str, ReportInputs] = field(default_factory=dict)
    """JSON file of a tool -> what was in it"""

    def add_file(self, path: str, content: ReportInputs) -> None:
        """
        :param path: JSON file of a tool
        :param content: what is in it
        """
        self.files[path] = content
        for name in ("tunings", "search_errors", "beam_curves", "perplexities"):
            getattr(self, name).extend(getattr(content, name))


def load_inputs(paths: Sequence[str]) -> ReportInputs:
    """
    :param paths: folders of runs, n-best files, JSON files, pictures
    :raises AnalysisError: something that was named is not there, or is nothing that a report can show
    """
    inputs = ReportInputs()
    seen: set[str] = set()
    for path in paths:
        if os.path.isdir(path):
            found = _load_folder(path, inputs, seen)
        elif os.path.isfile(path):
            found = _load_file(path, inputs, seen, named=True)
        else:
            raise AnalysisError(f"{path} does not exist: expected the output folder of a run, a JSON file or a picture")
        if not found:
            raise AnalysisError(
                f"{path}: nothing that a report can show. Expected a folder with nbest.jsonl (recognition) or"
                " learning_rates (training), JSON of tune_scales.py, search_errors.py or perplexity.py, or a picture"
                " (.png, .svg). Has the run ended?"
            )
    for runs in (inputs.recognitions, inputs.forced):
        names = [recognition.run.name for recognition in runs]
        runs[:] = [r if names.count(r.run.name) == 1 else replace(r, run=replace(r.run, name=r.run.file)) for r in runs]
    return inputs


def _load_folder(folder: str, inputs: ReportInputs, seen: set[str]) -> bool:
    found = False
    for name in ("learning_rates", "nbest.jsonl", "nbest.jsonl.gz"):
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            found |= _load_file(path, inputs, seen, named=True)
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if os.path.isfile(path) and name not in _OWN_JSON and name.lower().endswith((".json", *_PICTURES)):
            found |= _load_file(path, inputs, seen, named=False)
    return found


def _load_file(path: str, inputs: ReportInputs, seen: set[str], *, named: bool) -> bool:
    """:return: whether it is something to show (or was there before)"""
    real = os.path.realpath(path)
    if real in seen:
        return True
    folder, name = os.path.split(path)
    extension = os.path.splitext(name)[1].lower()
    if name.removesuffix(".gz").endswith(".jsonl"):
        run = load_run(path)
        options = _read_json_object(os.path.join(folder, "options.json")) or dict(run.header.options)
        times = (_read_json_object(os.path.join(folder, "wer.json")) or {}).get("time")
        times = {name: finite(value) for name, value in times.items()} if isinstance(times, dict) else {}
        recognition = Recognition(run, options, times, _read_run_record(folder))
        (inputs.forced if recognition.forced else inputs.recognitions).append(recognition)
    elif name == "learning_rates":
        options = _read_json_object(os.path.join(folder, "options.json")) or {}
        run_folder = os.path.basename(os.path.abspath(folder))
        training = Training(run_folder, folder, read_learning_rates(path), options, _read_run_record(folder))
        inputs.trainings.append(training)
    elif extension in _PICTURES:
        inputs.pictures.append(read_picture(path))
    elif extension != ".json" or not _add_json(path, inputs, named=named):
        return False
    seen.add(real)
    return True


def _add_json(path: str, inputs: ReportInputs, *, named: bool) -> bool:
    """:return: whether it comes from one of the tools"""
    content = _read_json_object(path, must=named)
    if content is None:
        return False
    own = ReportInputs()
    if content and all(map(_is_perplexity, content.values())):
        own.perplexities.append(content)
        inputs.add_file(path, own)
        return True
    for kind, (wanted, items_key, item_keys) in _TOOL_JSON.items():
        if items_key not in content:
            continue
        items = content[items_key]
        missing = sorted(wanted - set(content))
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            missing = [f"list {items_key}"]
        if not missing:
            missing = sorted({key for item in items for key in item_keys - set(item)})
        if missing and not named:
            return False  # something else that lies in the folder of a run
        if missing:
            raise AnalysisError(f"{path}: has no {missing[0]}. Was it written by this version of the tool?")
        if kind == "pairs":
            own.search_errors += items
        else:
            (own.tunings if kind == "tuning" else own.beam_curves).append(content)
        inputs.add_file(path, own)
        return True
    return False


def _is_perplexity(score: Any) -> bool:
    """:return: whether this is what a perplexity run writes of a text"""
    if not isinstance(score, dict) or not set(score) >= _PERPLEXITY:
        return False
    return all(isinstance(score[f"perplexity_per_{per}"], dict) for per in ("word", "label"))


def _read_json_object(path: str, *, must: bool = False) -> dict[str, Any] | None:
    """
    :param path:
    :param must: whether it is an error if there is none
    :return: None: not there, or not a JSON object
    :raises AnalysisError: not a JSON object
    """
    try:
        return read_json_object(path)
    except (OSError, JsonError) as exc:
        if must:
            raise AnalysisError(str(exc)) from None
        return None


def read_picture(path: str, *, name: str | None = None) -> Picture:
    """
    :param path: .png, .svg, .jpg
    :param name: None: that of the file
    :raises AnalysisError: too large
    """
    size = os.path.getsize(path)
    if size > _MAX_PICTURE_BYTES:
        raise AnalysisError(f"{path} has {size} bytes: too large for a page (limit {_MAX_PICTURE_BYTES})")
    stem, extension = os.path.splitext(os.path.basename(path))
    with open(path, "rb") as file:
        content = base64.b64encode(file.read()).decode("ascii")
    return Picture(name or stem, f"data:{_PICTURES[extension.lower()]};base64,{content}")


def finite(value: Any) -> float | None:
    """:return: the value if it is a finite number, else None"""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


# ---- files of RETURNN


_START = re.compile(r"^RETURNN starting up, version ([^,]+), date/time (\S+)")
_COMMAND = re.compile(r"^RETURNN command line options: (\[.*\])$")
_TORCH = re.compile(r"^PyTorch: (\S+)")
_DEVICE = re.compile(r"^Using device: (.+)$")
_CODE = re.compile(r"^New module: (?:recog|rf_models) \((\S+) in ")


def _read_run_record(folder: str) -> RunRecord:
    """:return: what returnn.log in this folder says; empty without one"""
    record = RunRecord()
    try:
        file = open(os.path.join(folder, "returnn.log"), encoding="utf8", errors="replace")
    except OSError:
        return record
    with file:
        for line in file:
            line = line.rstrip("\n")
            if match := _START.match(line):
                date = re.sub(r"^(\d+-\d+-\d+)-(\d+)-(\d+)-(\d+)$", r"\1 \2:\3:\4", match[2])
                record = RunRecord(date=f"{date} UTC", versions={"RETURNN": match[1]}, num_starts=record.num_starts + 1)
            elif match := _COMMAND.match(line):
                try:
                    words = [str(word) for word in ast.literal_eval(match[1])]
                except (ValueError, SyntaxError):
                    continue
                record = replace(record, command=words)
            elif match := _TORCH.match(line):
                record = replace(record, versions={**record.versions, "PyTorch": match[1]})
            elif match := _DEVICE.match(line):
                record = replace(record, device=match[1])
            elif match := _CODE.match(line):
                record = replace(record, versions={**record.versions, "this project": match[1]})
    return record
