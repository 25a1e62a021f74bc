"""Sections about word error rates: the result table, published rows beside it, utterances with their alignments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from configs.base.published import CORPORA, Result, load_results
from recog.analysis.arrays import count_word_errors
from recog.analysis.significance import bootstrap_errors
from recog.nbest import NBestHeader, Utterance
from recog.text import DEFAULT_NORMALISER
from recog.wer import TOTAL, align_words, score_utterances

from .charts import Bar, bar_chart
from .inputs import Recognition

__all__ = [
    "SUBTRACTED",
    "alignment_cells",
    "corpus_of",
    "published_section",
    "results_section",
    "scales_text",
    "utterances_section",
    "worst_utterances",
]

_CONFIG_PREFIXES = {"ls960": "librispeech", "ted2": "tedlium2", "demo": "demo"}
SUBTRACTED = ("ilm", "prior")
_NUM_COLOURS = 6


def scales_text(header: NBestHeader) -> str:
    """:return: scales as options have them, e.g. "att 0.7, ctc 0.3, ilm 0.2" (that of the ILM is subtracted)"""
    parts = [f"{n} {-scale if n in SUBTRACTED else scale:g}" for n, scale in header.scales.items() if scale]
    if header.length_norm_exponent:
        parts.append(f"length norm {header.length_norm_exponent:g}")
    return ", ".join(parts)


def results_section(recognitions: Sequence[Recognition]) -> dict[str, Any] | None:
    """:return: rows of the result table with 95 % intervals, and a chart for each part; None without runs"""
    if not recognitions:
        return None
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    bars: dict[str, list[Bar]] = {}
    for number, recognition in enumerate(recognitions):
        run = recognition.run
        score = score_utterances(run.utterances)
        for part, result in score.rows().items():
            total = part == TOTAL and part not in score.parts
            interval = _interval(run.utterances if total else _of_part(run.utterances, part))
            row = {
                "run": run.name,
                "search": run.header.search,
                "scales": scales_text(run.header),
                "beam": recognition.options.get("beam_size"),
                "part": part or "-",
                "result": result,
                "interval": interval,
                "rtf": recognition.times.get("total_real_time_factor"),
                "total": total,
            }
            rows.append(row)
            if result.wer is not None and not total:
                low, high = interval or (None, None)
                bar = Bar(run.name, result.wer, low, high, f"{result.wer:.2f} %", number % _NUM_COLOURS + 1)
                bars.setdefault(part or "all utterances", []).append(bar)
        if score.total.num_no_ref:
            notes.append(f"{run.name}: {score.total.num_no_ref} utterance(s) without a reference are left out.")
        if score.total.num_failed:
            notes.append(
                f"{run.name}: in {score.total.num_failed} utterance(s) the search failed; without a hypothesis, all"
                " words of the reference count as deletions."
            )
    for row in rows:
        same = [r for r in rows if r["part"] == row["part"] and r["result"].wer is not None]
        row["best"] = len(same) > 1 and row["result"].wer == min(r["result"].wer for r in same)
        # "Best" and the chart must not suggest a comparison of different utterances.
        row["other_utts"] = len({(r["result"].num_utts, r["result"].num_ref_words) for r in same}) > 1
    for part in dict.fromkeys(row["part"] for row in rows if row["other_utts"]):
        notes.append(f"The runs have different utterances of {part}: these rates cannot be compared with each other.")
    charts = [{"title": part, "svg": bar_chart(items, label=f"WER of {part}")} for part, items in bars.items()]
    return {"rows": rows, "notes": notes, "charts": charts}


def _of_part(utterances: Sequence[Utterance], part: str) -> list[Utterance]:
    return [utt for utt in utterances if utt.part == part]


def _first_text(utt: Utterance) -> str:
    return utt.hyps[0].text if utt.hyps else ""


def _interval(utterances: Sequence[Utterance]) -> tuple[float, float] | None:
    """:return: 95 % bootstrap interval of the WER in percent; None if it is not defined"""
    words, errors = [], []
    for utt in utterances:
        if utt.ref is not None:
            ref = DEFAULT_NORMALISER.words(utt.ref)
            words.append(len(ref))
            errors.append(count_word_errors(ref, DEFAULT_NORMALISER.words(_first_text(utt))))
    if len(words) < 2 or not sum(words):
        return None
    rates = bootstrap_errors([np.array(errors)], np.array(words))[:, 0]
    low, high = np.quantile(rates, [0.025, 0.975]).tolist()
    return low, high


# ---- published results


def corpus_of(recognition: Recognition) -> str | None:
    """
    :return: key of :data:`CORPORA`: what the name of the run's config says, else the one that has a part of this name
        with just as many utterances; None: nobody knows
    """
    prefix = (recognition.record.config or "").split("_")[0]
    if prefix in _CONFIG_PREFIXES:
        return _CONFIG_PREFIXES[prefix]
    utterances = recognition.run.utterances
    for corpus, parts in CORPORA.items():
        if any(parts.get(part) == len(_of_part(utterances, part)) for part in recognition.run.parts):
            return corpus
    return None


def published_section(recognitions: Sequence[Recognition]) -> dict[str, Any] | None:
    """
    :return: rows of others (or measured with this project before) on the same corpora: those with the same kind of
        search and components, or the one that the run names (++recipe); and public systems. None: there are none
    """
    results = [row for row in load_results() if row.wer]
    chosen: dict[tuple[Any, ...], tuple[Result, list[str]]] = {}
    systems: dict[tuple[Any, ...], Result] = {}
    notes: list[str] = []
    for recognition in recognitions:
        run, corpus = recognition.run, corpus_of(recognition)
        same_corpus = [row for row in results if row.corpus == corpus]
        for row in same_corpus:
            if _comparable(row, recognition):
                chosen.setdefault(row.key, (row, []))[1].append(run.name)
            elif row.kind == "system":
                systems[row.key] = row
        for part in run.parts if same_corpus else []:
            wanted, have = CORPORA[corpus].get(part), len(_of_part(run.utterances, part))
            if wanted is not None and have != wanted:
                notes.append(
                    f"{run.name} has {have} utterances of {part}, but the corpus has {wanted}: this WER must not be"
                    " compared with published ones."
                )
    rows = [row for row, _ in chosen.values()] + list(systems.values())
    if not rows:
        return None
    parts = [part for corpus in dict.fromkeys(r.corpus for r in rows) for part in CORPORA[corpus]]
    return {
        "parts": list(dict.fromkeys(parts)),
        "rows": [{"row": row, "runs": runs, "scales": _row_scales(row)} for row, runs in chosen.values()],
        "systems": list(systems.values()),
        "notes": notes,
    }


def _row_scales(row: Result) -> str:
    return ", ".join(f"{name} {scale:g}" for name, scale in row.scales.items())


def _comparable(row: Result, recognition: Recognition) -> bool:
    """:return: whether it is the row that the run names, or one of the same search and components"""
    if row.kind != "recognition":
        return False
    options, header = recognition.options, recognition.run.header
    if options.get("recipe"):
        return (row.recipe, row.model) == (options["recipe"], options.get("model"))
    return row.search == header.search and _components(row.scales) == _components(header.scales)


def _components(scales: Mapping[str, float]) -> set[str]:
    """:return: names of what is scored, without what only corrects it"""
    return {name for name, scale in scales.items() if scale and name not in ("prior", "length")}


# ---- utterances


def alignment_cells(ref: str, hyp: str) -> list[tuple[str, str | None, str | None]]:
    """
    :param ref: text of the reference
    :param hyp: text of the hypothesis
    :return: kind ("ok", "sub", "ins", "del"), word of the reference, word of the hypothesis; words that are right and
        follow each other as one
    """
    cells: list[tuple[str, str | None, str | None]] = []
    for a, b in align_words(DEFAULT_NORMALISER.words(ref), DEFAULT_NORMALISER.words(hyp)):
        kind = "ok" if a == b else "ins" if a is None else "del" if b is None else "sub"
        if kind == "ok" and cells and cells[-1][0] == "ok":
            cells[-1] = ("ok", f"{cells[-1][1]} {a}", f"{cells[-1][2]} {b}")
        else:
            cells.append((kind, a, b))
    return cells


def utterances_section(recognitions: Sequence[Recognition], *, max_utterances: int) -> dict[str, Any] | None:
    """
    :param recognitions:
    :param max_utterances: show so many, those with the most errors of all runs together
    :return: utterances in which a run has an error, each run's hypothesis aligned with the reference; None: no list
    """
    runs = [recognition.run for recognition in recognitions]
    if not runs or not max_utterances:
        return None
    by_tag: dict[str, dict[str, Utterance]] = {}
    for run in runs:
        for utt in run.utterances:
            if utt.ref is not None:
                by_tag.setdefault(utt.seq_tag, {})[run.name] = utt
    items = []
    for tag, utts in by_tag.items():
        first = next(iter(utts.values()))
        ref = DEFAULT_NORMALISER.words(first.ref or "")
        lines: list[dict[str, Any] | None] = []
        for run in runs:
            utt = utts.get(run.name)
            if utt is None:
                lines.append(None)
                continue
            own_ref = DEFAULT_NORMALISER.words(utt.ref or "")
            errors = count_word_errors(own_ref, DEFAULT_NORMALISER.words(_first_text(utt)))
            lines.append({"run": run.name, "errors": errors, "utt": utt, "other_ref": own_ref != ref})
        total = sum(line["errors"] for line in lines if line)
        if total:
            duration = next((utt.duration for utt in utts.values() if utt.duration is not None), None)
            items.append(
                {"tag": tag, "duration": duration, "ref": " ".join(ref), "words": len(ref)}
                | {"lines": lines, "total": total}
            )
    items.sort(key=lambda item: (-item["total"], item["tag"]))
    shown = items[:max_utterances]
    for item in shown:
        item["groups"] = _groups(item["lines"])
    return {
        "runs": [run.name for run in runs],
        "items": shown,
        "num_with_errors": len(items),
        "num_utterances": len(by_tag),
    }


def _groups(lines: Sequence[dict[str, Any] | None]) -> list[dict[str, Any]]:
    """:return: runs with the same result for an utterance as one, with numbers from 1"""
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        if line:
            ref, hyp = (DEFAULT_NORMALISER(text) for text in (line["utt"].ref, _first_text(line["utt"])))
            key = (ref, hyp, line["utt"].error)
            new = {"runs": [], "cells": alignment_cells(ref, hyp), "errors": line["errors"]}
            group = groups.setdefault(key, {**new, "other_ref": line["other_ref"], "error": line["utt"].error})
            group["runs"].append(f"#{number} {line['run']}" if len(lines) > 1 else line["run"])
    return sorted(groups.values(), key=lambda group: -group["errors"])


def worst_utterances(recognition: Recognition, num: int) -> list[str]:
    """:return: tags of the at most num utterances with the most word errors (at least 1), of equals the shorter"""
    found = []
    for utt in recognition.run.utterances:
        if utt.ref is not None and utt.hyps:
            ref, hyp = DEFAULT_NORMALISER.words(utt.ref), DEFAULT_NORMALISER.words(_first_text(utt))
            if errors := count_word_errors(ref, hyp):
                found.append((-errors, utt.duration or 0.0, utt.seq_tag))
    return [tag for _, _, tag in sorted(found)[:num]]
