"""Sections about the runs themselves: learning curves; exact commands, versions, options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

from .charts import Curve, line_chart
from .inputs import ReportInputs, RunRecord, Training, finite

__all__ = ["commands_section", "perplexity_section", "training_section"]

_LOSS = re.compile(r"(train|dev|devtrain|eval)_(?:loss|error)(?:_(.+))?")


def training_section(trainings: Sequence[Training]) -> dict[str, Any] | None:
    """:return: learning curves, one chart for each loss; None without trainings"""
    items = [_training_item(training) for training in trainings if training.epochs]
    return {"items": items} if items else None


def _training_item(training: Training) -> dict[str, Any]:
    epochs = training.epochs
    numbers = list(epochs)
    losses: dict[str, dict[str, str]] = {}  # loss -> "train", "dev" -> key
    for key in dict.fromkeys(key for values in epochs.values() for key in values):
        if match := _LOSS.fullmatch(key):
            losses.setdefault(match[2] or "loss", {})[match[1]] = key
    step = max(1, -(-len(numbers) // 10))
    options = dict(x_label="sub-epoch", x_ticks=numbers[::step], dots=len(numbers) <= 60)
    charts = []
    for name, keys in losses.items():
        curves = []
        for colour, (data, key) in enumerate(sorted(keys.items(), reverse=True), 1):
            values = [finite(epochs[number].get(key)) for number in numbers]
            if any(value is not None for value in values):
                curves.append(Curve(data, numbers, values, colour))
        if curves:
            charts.append({"name": name, "svg": line_chart(curves, y_label=name, **options)})
    rates = [finite(v.get(":meta:effective_learning_rate", v.get("learning_rate"))) for v in epochs.values()]
    if any(rate is not None for rate in rates):
        svg = line_chart([Curve("learning rate", numbers, rates, 5)], y_label="learning rate", **options)
        charts.append({"name": "learning rate, at the beginning of each sub-epoch", "svg": svg})
    last = epochs[numbers[-1]]
    seconds = [finite(values.get(":meta:epoch_train_time_secs")) for values in epochs.values()]
    steps = finite(last.get(":meta:global_train_step_end"))
    return {
        "name": training.name,
        "charts": charts,
        "num_epochs": len(numbers),
        "wanted_epochs": training.options.get("num_epochs"),
        "num_steps": None if steps is None else int(steps),
        "minutes": None if None in seconds else sum(seconds) / 60.0,
        "device": last.get(":meta:device"),
        "cpu": last.get(":meta:cpu"),
        "dev_last": [(name, finite(last.get(keys["dev"]))) for name, keys in losses.items() if "dev" in keys],
    }


def commands_section(inputs: ReportInputs) -> dict[str, Any] | None:
    """:return: command, versions and options of each run; None without runs"""
    items = [_command_item(t.name, t.folder, t.record, t.options) for t in inputs.trainings]
    for recognition in [*inputs.recognitions, *inputs.forced]:
        run = recognition.run
        items.append(_command_item(run.name, run.file, recognition.record, recognition.options))
    return {"items": items} if items else None


def _command_item(name: str, where: str, record: RunRecord, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "where": where,
        "command": None if record.command is None else shlex.join(["rnn.py", *record.command]),
        "record": record,
        "options": sorted(options.items()),
    }


def perplexity_section(inputs: ReportInputs) -> dict[str, Any] | None:
    """:return: a row for each text and model, and whether it is the best of this text; None: there are none"""
    rows = []
    for texts in inputs.perplexities:
        for text, score in texts.items():
            per_word = {model: finite(value) for model, value in score["perplexity_per_word"].items()}
            best = min((value for value in per_word.values() if value is not None), default=None)
            for model, value in per_word.items():
                per_label = finite(score["perplexity_per_label"].get(model))
                is_best = len(per_word) > 1 and value is not None and value == best
                rows.append(
                    {"text": text, "model": model, "score": score, "word": value, "label": per_label, "best": is_best}
                )
    return {"rows": rows} if rows else None
