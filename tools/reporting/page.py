"""From the inputs of a report to one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
import time
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from recog.analysis.runs import AnalysisError

from .analysis import beams_section, search_errors_section, tuning_section
from .inputs import ReportInputs
from .results import published_section, results_section, utterances_section
from .runs import commands_section, perplexity_section, training_section

__all__ = ["render"]

# What comes of a number in the place of a text, a list that is too short and so on.
_WRONG_VALUES = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, jinja2.TemplateError)
_FOLDER = os.path.dirname(os.path.abspath(__file__))


def render(
    inputs: ReportInputs,
    *,
    title: str,
    command: Sequence[str],
    max_utterances: int = 200,
    date: str | None = None,
) -> str:
    """
    :param inputs:
    :param title:
    :param command: words of the command that makes this page
    :param max_utterances: list so many with errors, and so many search errors of each run; 0: no lists
    :param date: None: now
    :return: the page. All texts from the inputs are escaped, and its policy allows no script but our own, by its hash,
        and nothing from the network.
    :raises AnalysisError: values in the JSON file of a tool are not what the tool writes
    """
    options = dict(title=title, command=command, max_utterances=max_utterances, date=date)
    try:
        return _render(inputs, **options)
    except _WRONG_VALUES:
        for path, content in inputs.files.items():
            try:
                _render(content, **options)
            except _WRONG_VALUES as exc:
                raise AnalysisError(f"{path}: not as the tool writes it ({type(exc).__name__}: {exc})") from None
        raise


def _render(inputs: ReportInputs, *, title: str, command: Sequence[str], max_utterances: int, date: str | None) -> str:
    """:return: see :func:`render`"""
    recognitions = inputs.recognitions
    sections: dict[str, tuple[str, Any]] = {  # in the order of the page
        "results": ("Results", results_section(recognitions)),
        "published": ("Published rows", published_section(recognitions)),
        "utterances": ("Utterances", utterances_section(recognitions, max_utterances=max_utterances)),
        "search_errors": ("Search errors", search_errors_section(inputs, max_utterances=max_utterances)),
        "tuning": ("Scales", tuning_section(inputs)),
        "beams": ("Beam size", beams_section(inputs)),
        "perplexity": ("Perplexity", perplexity_section(inputs)),
        "training": ("Training", training_section(inputs.trainings)),
        "pictures": ("Alignments", inputs.pictures or None),
        "commands": ("Commands", commands_section(inputs)),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["num"] = _number
    script = _read("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf8")).digest()).decode("ascii")
    return environment.get_template("page.html.j2").render(
        title=title,
        date=date or time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        command=shlex.join(command),
        navigation=[(key, name) for key, (name, content) in sections.items() if content is not None],
        style=Markup(_read("style.css")),
        script=Markup(script),
        script_hash=digest,
        **{key: content for key, (_, content) in sections.items()},
    )


def _read(name: str) -> str:
    with open(os.path.join(_FOLDER, name), encoding="utf8") as file:
        return file.read()


def _number(value: float | None, digits: int = 2) -> str:
    """:return: with so many digits after the point; "–" if there is none"""
    return "–" if value is None else f"{value:.{digits}f}"
