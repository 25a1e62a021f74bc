"""From the files of a finished recognition run to a row of the results."""

from __future__ import annotations

import datetime
import os
import platform
from dataclasses import MISSING, dataclass, fields
from typing import Any, get_args

from configs.base.published import CORPORA, SCALES, Result, ResultError, Search
from recog.json_file import JsonError, read_json_object
from recog.nbest import load_nbest
from recog.options import CtcOptions, ExternalModelOptions, LabelSyncOptions, TimeSyncOptions
from recog.wer import WerResult, run_name, score_utterances

__all__ = ["FinishedRun", "read_run", "result_of_run", "this_machine"]

_CORPUS_OF_CONFIG = {"ls960": "librispeech", "ted2": "tedlium2", "demo": "demo"}
_SUFFIX = {"label_sync": "opls", "time_sync": "optsr"}


@dataclass(frozen=True)
class FinishedRun:
    """What the files of a run say."""

    name: str
    """Of its folder, which is that of the config unless the user has chosen another."""
    search: str
    options: dict[str, Any]
    """All of the run; from options.json also the checkpoint."""
    parts: dict[str, WerResult]
    time: float
    """When it ended, in seconds since 1970."""


def read_run(path: str) -> FinishedRun:
    """
    :param path: output folder of the run, its nbest.jsonl or its wer.json. The WER is counted from the n-best file
        where there is one.
    :raises ResultError: something is missing or wrong
    """
    folder = path if os.path.isdir(path) else os.path.dirname(path) or "."
    nbest = path if path.endswith((".jsonl", ".jsonl.gz")) else os.path.join(folder, "nbest.jsonl")
    wer_file = path if path.endswith(".json") else os.path.join(folder, "wer.json")
    options = _read_json(os.path.join(folder, "options.json"), missing={})
    if os.path.isfile(nbest):
        try:
            header, utterances = load_nbest(nbest)
        except ValueError as exc:
            raise ResultError(str(exc)) from None
        options = {**header.options, **options}
        parts = score_utterances(utterances).parts
        return FinishedRun(run_name(nbest), header.search, options, parts, os.path.getmtime(nbest))
    if not os.path.isfile(wer_file):
        raise ResultError(f"{path}: no nbest.jsonl and no wer.json there: has the recognition run ended?")
    record = _read_json(wer_file)
    known = {f.name for f in fields(WerResult)}
    try:
        parts = {
            part: WerResult(**{name: value for name, value in counts.items() if name in known})
            for part, counts in record["parts"].items()
        }
        search = record["search"]
    except (KeyError, TypeError, AttributeError) as exc:
        raise ResultError(f"{wer_file} is not the wer.json of a recognition run ({exc!r})") from None
    if not options:
        raise ResultError(f"{wer_file}: the run's options.json must be beside it, it says which scales were used")
    name = os.path.basename(os.path.abspath(folder))
    return FinishedRun(name, search, options, parts, os.path.getmtime(wer_file))


def _read_json(filename: str, missing: Any = None) -> Any:
    """:raises ResultError: not JSON"""
    if missing is not None and not os.path.isfile(filename):
        return missing
    try:
        return read_json_object(filename)
    except JsonError as exc:
        raise ResultError(str(exc)) from None


def result_of_run(
    run: FinishedRun,
    *,
    corpus: str | None = None,
    recipe: str | None = None,
    model: str | None = None,
    machine: str | None = None,
    note: str | None = None,
    invalid: str | None = None,
    subset: bool = False,
) -> Result:
    """
    :param run:
    :param corpus: None: what the name of the run begins with
    :param recipe: None: from the scales and the search, in the style of the published ones
    :param model: None: the training run of the checkpoint
    :param machine: None: this one
    :param note:
    :param invalid: why it must not be used
    :param subset: allow parts that are not complete; it is noted
    :raises ResultError: not a recognition, a part is not complete, or something is not known
    """
    if run.search not in get_args(Search):
        raise ResultError(f"{run.name} is of the kind {run.search!r}: expected {', '.join(get_args(Search))}")
    corpus = corpus or _CORPUS_OF_CONFIG.get(run.name.split("_")[0])
    if corpus is None:
        raise ResultError(f"{run.name}: its name does not say which corpus: give --corpus")
    checkpoint = run.options.get("checkpoint")
    if model is None:
        if not checkpoint or checkpoint in ("last", "average"):
            raise ResultError(f"{run.name}: no options.json that says which checkpoint: give --model")
        model = run.options.get("model") or model_name(checkpoint)
    notes = [note] if note else []
    for part, counts in run.parts.items():
        if counts.wer is None:
            raise ResultError(f"{run.name}: part {part or '-'} has no references, and so no WER")
        complete = CORPORA.get(corpus, {}).get(part)
        if complete is not None and counts.num_utts != complete:
            message = f"{part} has {counts.num_utts} of {complete} utterances"
            if not subset:
                raise ResultError(
                    f"{run.name}: {message}: not comparable with other results; --subset adds it with a note"
                )
            notes.append(message)
        if counts.num_failed:
            notes.append(f"{part}: the search failed in {counts.num_failed} utterance(s)")
    scales = _scales(run)
    options = run.options
    ilm = options.get("ilm_checkpoint") or options.get("ilm_context_file") or options.get("ilm_type")
    ctc_model = options.get("ctc_checkpoint")
    return Result(
        corpus=corpus,
        kind="recognition",
        recipe=recipe or options.get("recipe") or recipe_name(run.search, scales, second_model=bool(ctc_model)),
        model=model,
        source="measured with this project",
        search=run.search,
        scales=scales,
        beams=(options["beam_size"],) if "beam_size" in options else (),
        lm=model_name(options["lm_checkpoint"]) if scales.get("lm") and options.get("lm_checkpoint") else None,
        ilm=model_name(ilm) if scales.get("ilm") and ilm else None,
        ctc_model=model_name(ctc_model) if ctc_model else None,
        wer={part: round(counts.wer, 4) for part, counts in run.parts.items()},
        num_utts={part: counts.num_utts for part, counts in run.parts.items()},
        num_words={part: counts.num_ref_words for part, counts in run.parts.items()},
        invalid=invalid,
        note="; ".join(notes) or None,
        command=command_of(run),
        date=datetime.date.fromtimestamp(run.time).isoformat(),
        machine=machine or this_machine(),
    )


def _scales(run: FinishedRun) -> dict[str, float]:
    """:return: scales that the search used"""
    scales = {name: float(run.options.get(f"{name}_scale") or 0.0) for name in SCALES}
    if run.search == "ctc_greedy":
        scales = {"ctc": 1.0, "prior": scales["prior"]}
    elif not any(f"{name}_scale" in run.options for name in ("att", "ctc", "lm")):
        raise ResultError(f"{run.name}: its options do not say which scales were used")
    return {name: value for name, value in scales.items() if value}


def recipe_name(search: str, scales: dict[str, float], *, second_model: bool = False) -> str:
    """:return: e.g. "att_ctc_lm_opls" """
    if search == "ctc_greedy":
        return "ctc_greedy_prior" if scales.get("prior") else "ctc_greedy"
    names = [name for name in ("att", "ctc", "lm", "ilm") if scales.get(name)]
    if "ctc" in names or search not in ("label_sync",):
        names.append(_SUFFIX.get(search, search))
    return "_".join(names).replace("ctc_", "ctc_only_", 1 if second_model else 0)


def model_name(path: str) -> str:
    """
    :param path: of a checkpoint or the output folder of a training
    :return: name of the training run: output/demo_train/models/epoch.010.pt -> demo_train
    """
    folder, name = os.path.split(path.rstrip("/"))
    if os.path.basename(folder) == "models":
        return os.path.basename(os.path.dirname(os.path.abspath(folder)))
    return os.path.basename(folder) if name == "models" else name.removesuffix(".pt")


def command_of(run: FinishedRun) -> str:
    """:return: rnn.py with all options that make the result and differ from the defaults of their classes"""
    words = [f"rnn.py configs/{run.name}.config"]
    search = {"label_sync": LabelSyncOptions, "time_sync": TimeSyncOptions}.get(run.search)
    for group in (CtcOptions, ExternalModelOptions, *([search] if search else [])):
        for option in fields(group):
            default = option.default if option.default is not MISSING else None
            value = run.options.get(option.name, default)
            if value != default:
                words.append(f"++{option.name} {_short(value)}")
    return " ".join(words)


def _short(value: Any) -> str:
    """:return: for the command line; the path of a file below the current folder, otherwise its name"""
    if isinstance(value, str) and os.path.isabs(value):
        relative = os.path.relpath(value)
        return os.path.basename(value) if relative.startswith("..") else relative
    return str(value)


def this_machine() -> str:
    """:return: its GPU or CPU"""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    cpu = platform.processor() or platform.machine()
    if os.path.isfile("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf8", errors="replace") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return f"{cpu}, {os.cpu_count()} cores"
