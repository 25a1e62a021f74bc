"""Sections about the search and the scales: search errors, scale tuning, beam size."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from recog.analysis.arrays import make_arrays
from recog.analysis.runs import AnalysisError, is_test_name, select_parts
from recog.analysis.search_errors import audit_forced_scores, count_search_errors
from recog.analysis.tuning import ScaleRange, error_surface, scale_ranges

from .charts import Curve, heat_map, line_chart
from .inputs import Recognition, ReportInputs
from .results import SUBTRACTED, alignment_cells

__all__ = ["beams_section", "search_errors_section", "tuning_section"]

_GRID = 61


def search_errors_section(inputs: ReportInputs, *, max_utterances: int) -> dict[str, Any] | None:
    """
    :param inputs: records of tools/search_errors.py, and forced scores with the runs that they belong to
    :param max_utterances: list so many search errors of each run, those with the largest gaps
    :return: None: there are none
    """
    records = list(inputs.search_errors)
    known = {record.get("run") for record in records}
    used, problems = set(), {}
    for recognition in inputs.recognitions:
        if recognition.run.name not in known:
            record, forced, reasons = _search_errors_of(recognition, inputs.forced)
            problems.update(reasons)
            if record is not None:
                used.add(forced)
                records.append(record)
    # Forced scores fit one search and its scales: only those that fit no run are worth a word.
    notes = [reason for name, reason in problems.items() if name not in used]
    if not records:
        return {"records": [], "notes": notes} if notes else None
    shown = []
    for record in records:
        missed = [utt for utt in record["utterances"] if utt["kind"] == "search_error"]
        missed.sort(key=lambda utt: -(utt["gap"] if utt["gap"] is not None else np.inf))
        listed = [{**utt, "cells": alignment_cells(utt["ref"], utt["hyp"])} for utt in missed[:max_utterances]]
        shown.append({**record, "listed": listed, "num_missed": len(missed)})
    return {"records": shown, "notes": notes}


def _search_errors_of(
    recognition: Recognition, forced: list[Recognition]
) -> tuple[dict[str, Any] | None, str | None, dict[str, str]]:
    """
    :return: as tools/search_errors.py gives it, on the parts of the corpus that have forced scores (None: no forced
        scores fit); name of the forced scores; why others did not fit, by name
    """
    same_search = [f for f in forced if f.run.header.search == f"forced_{recognition.run.header.search}"]
    of_hyps = [f.run for f in same_search if f.run.header.options.get("nbest_file")]
    problems = {}
    for candidate in same_search:
        if candidate.run.header.options.get("nbest_file"):
            continue
        parts = [part for part in recognition.run.parts if part in candidate.run.parts]
        run = select_parts(recognition.run, parts)
        try:
            if not parts:
                raise AnalysisError(f"{candidate.run.file} has no part of {recognition.run.file}")
            errors = count_search_errors(run, candidate.run)
        except AnalysisError as exc:
            problems[candidate.run.name] = f"{candidate.run.name} has no forced scores for {run.name}: {exc}"
            continue
        audit = audit_forced_scores(run, candidate.run, *of_hyps)
        record = {"run": run.name, "search": run.header.search, "parts": run.parts, "audit": vars(audit)}
        return {**record, **errors.as_dict()}, candidate.run.name, problems
    return None, None, problems


def tuning_section(inputs: ReportInputs) -> dict[str, Any] | None:
    """
    :param inputs: records of tools/tune_scales.py; for runs without one, curves are computed here from the n-best lists
    :return: None: there is nothing to show
    """
    items = [_tuning_item(record) for record in inputs.tunings]
    tuned = {record["run"] for record in inputs.tunings}
    items += [item for r in inputs.recognitions if r.run.name not in tuned and (item := _untuned_item(r)) is not None]
    return {"items": items} if items else None


def _tuning_item(record: dict[str, Any]) -> dict[str, Any]:
    surface, before, after = record.get("surface"), record["scales_before"], record["scales"]
    svg, in_surface = None, []
    if surface:
        in_surface = [surface["x"]["component"], surface["y"]["component"]]
        marks = [(*(before[name] for name in in_surface), "before")]
        if after != before:
            marks.append((*(after[name] for name in in_surface), "tuned"))
        svg = heat_map(
            surface["x"]["scales"],
            surface["y"]["scales"],
            surface["wer_percent"],
            x_label=_axis_name(in_surface[0]),
            y_label=_axis_name(in_surface[1]),
            what="WER",
            marks=marks,
        )
    curves = []
    for curve in record["curves"]:
        name = curve["component"]
        marks = [(before[name], "before")] + ([(after[name], "tuned")] if after[name] != before[name] else [])
        curves.append(_curve(name, curve["scales"], curve["wer_percent"], marks))
    return {
        "run": record["run"],
        "record": record,
        "parts": record.get("parts") or [],
        "test_parts": [part for part in record.get("parts") or [] if is_test_name(part)],
        "others": [f"{name} {after[name]:g}" for name in after if name not in in_surface],
        "surface": svg,
        "curves": curves,
        "options": " ".join(record.get("overrides") or []),
    }


def _axis_name(component: str) -> str:
    """:return: scales in n-best files have a sign, those of options have not"""
    return f"scale of {component}" + (" (with its sign)" if component in SUBTRACTED else "")


def _curve(name: str, scales: list[float], wers: list[float], marks: list[tuple[float, str]]) -> dict[str, Any]:
    marks = [mark for mark in marks if scales[0] <= mark[0] <= scales[-1]]
    options = dict(x_label=_axis_name(name), y_label="WER [%]", from_zero=False, mark_x=marks, dots=False)
    return {"component": name, "svg": line_chart([Curve("WER", scales, wers)], **options)}


def _untuned_item(recognition: Recognition) -> dict[str, Any] | None:
    """:return: WER of the n-best lists over each scale, on the parts that are no test sets; None: nothing to vary"""
    run, header = recognition.run, recognition.run.header
    names = [name for name, scale in header.scales.items() if scale]
    parts = [part for part in run.parts if part and not is_test_name(part)]
    utterances = [utt for utt in run.utterances if utt.part in parts and utt.ref is not None]
    if len(names) < 2 or max((len(utt.hyps) for utt in utterances), default=0) < 2:
        return None
    arrays = make_arrays(header, utterances, components=names)
    if not arrays.num_words:
        return None
    ranges = scale_ranges(header, names)
    curves = []
    for name in names:
        if ranges[name].tuned:
            grid = _grid(header.scales[name], ranges[name])
            wers = error_surface(arrays, header.scales, (name, grid))
            curves.append(_curve(name, grid.tolist(), wers.tolist(), [(header.scales[name], "search")]))
    return {"run": run.name, "record": None, "parts": parts, "curves": curves, "num_utts": len(utterances)}


def _grid(scale: float, range_: ScaleRange) -> np.ndarray:
    """:return: scales around that of the search, with 0 at one end unless it can have either sign"""
    reach = 2.0 * abs(scale)
    return np.linspace(max(range_.low, min(scale - reach, 0.0)), min(range_.high, max(scale + reach, 0.0)), _GRID)


def beams_section(inputs: ReportInputs) -> dict[str, Any] | None:
    """:return: curves and tables over the beam size; None: there are none"""
    items = []
    for record in inputs.beam_curves:
        points = sorted(record["points"], key=lambda point: point["beam_size"])
        beams = [point["beam_size"] for point in points]
        panels = [
            ("WER [%]", False, [("WER", "wer", 1)]),
            (
                "utterances [%]",
                True,
                [
                    ("reference scores better", "search_errors", 2),
                    ("any known sequence scores better", "worse_than_best_known", 3),
                ],
            ),
            ("real-time factor", True, [("real-time factor", "real_time_factor", 4)]),
        ]
        charts = []
        for label, from_zero, wanted in panels:
            curves = [Curve(name, beams, [p.get(key) for p in points], colour) for name, key, colour in wanted]
            curves = [curve for curve in curves if any(value is not None for value in curve.y)]
            if curves and len(beams) > 1:
                options = dict(x_label="beam size", y_label=label, log2_x=True, from_zero=from_zero, x_ticks=beams)
                charts.append(line_chart(curves, **options))
        name = os.path.splitext(os.path.basename(record.get("config") or "search"))[0]
        items.append({"name": name, "record": record, "points": points, "charts": charts})
    return {"items": items} if items else None
