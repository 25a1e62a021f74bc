"""
What a larger beam buys: WER, search errors and computing time over the beam size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..json_file import read_json_object
from ..nbest import Utterance
from ..wer import score_utterances
from .runs import AnalysisError, Run
from .search_errors import check_same_definition, count_search_errors, score_tolerance

__all__ = ["BeamPoint", "beam_curve", "plot_beam_curve", "real_time_factor"]


@dataclass(frozen=True)
class BeamPoint:
    """The search with one beam size."""

    beam_size: int
    num_utts: int
    wer: float | None
    """Percent; None without reference words."""
    worse_than_best_known: float
    """Percentage of utterances whose best score is worse than the best of all beams and of the reference: search errors
    that are proven, by whatever found the better sequence."""
    search_errors: float | None
    """Percentage of utterances in which the reference scores better than what was found. None: no forced scores."""
    model_errors: float | None
    """The same: worse."""
    real_time_factor: float | None
    """Computing time divided by audio time. None: the run has no record of it."""

    def as_dict(self) -> dict[str, Any]:
        """:return: for JSON"""
        return dict(vars(self))


def real_time_factor(nbest_file: str) -> float | None:
    """
    :param nbest_file: of a run
    :return: from the file wer.json beside it, encoder and search; None: there is none
    """
    try:
        content = read_json_object(os.path.join(os.path.dirname(nbest_file), "wer.json"))
        return float(content["time"]["total_real_time_factor"])
    except (FileNotFoundError, KeyError, ValueError, TypeError):
        return None


def beam_curve(
    runs: Mapping[int, Run],
    *,
    forced: Run | None = None,
    labels_of: Callable[[str], Sequence[int]] | None = None,
    best_segmentation: bool = False,
) -> list[BeamPoint]:
    """
    :param runs: beam size -> run; the same search on the same utterances otherwise
    :param forced: forced scores of the references
    :param labels_of: see :func:`.search_errors.find_reference`
    :param best_segmentation: see there
    :return: one point for each beam size, smallest first
    :raises AnalysisError: the runs are not comparable
    """
    sizes = sorted(runs)
    reference_run = runs[sizes[0]]
    tags = [utt.seq_tag for utt in reference_run.utterances]
    for size in sizes[1:]:
        check_same_definition(reference_run, runs[size])
        if [utt.seq_tag for utt in runs[size].utterances] != tags:
            raise AnalysisError(f"{runs[size].file} has other utterances than {reference_run.file}")
    errors = {
        size: count_search_errors(run, forced, labels_of=labels_of, best_segmentation=best_segmentation)
        for size, run in runs.items()
        if forced is not None
    }
    best_known: dict[str, float] = {}
    for run in [*runs.values(), *([forced] if forced is not None else [])]:
        for utt in run.utterances:
            if utt.hyps:
                best_known[utt.seq_tag] = max(best_known.get(utt.seq_tag, utt.hyps[0].score), utt.hyps[0].score)
    points = []
    for size in sizes:
        run = runs[size]
        found = errors.get(size)
        worse = sum(_is_worse(utt, best_known, run) for utt in run.utterances)
        points.append(
            BeamPoint(
                beam_size=size,
                num_utts=len(run.utterances),
                wer=score_utterances(run.utterances).total.wer,
                worse_than_best_known=100.0 * worse / len(run.utterances),
                search_errors=None if found is None else found.percent("search_error"),
                model_errors=None if found is None else found.percent("model_error"),
                real_time_factor=real_time_factor(run.file),
            )
        )
    return points


def _is_worse(utt: Utterance, best_known: Mapping[str, float], run: Run) -> bool:
    if not utt.hyps:
        return utt.seq_tag in best_known
    hyp = utt.hyps[0]
    return best_known[utt.seq_tag] - hyp.score > score_tolerance(hyp, run.header)


def plot_beam_curve(points: Sequence[BeamPoint], filename: str, *, title: str = "") -> None:
    """
    :param points: see :func:`beam_curve`
    :param filename: .png, .svg or .pdf
    :param title:
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullFormatter, ScalarFormatter

    beams = [point.beam_size for point in points]
    panels: list[tuple[str, list[tuple[str, list[float | None]]]]] = [("WER [%]", [("WER", [p.wer for p in points])])]
    panels.append(
        (
            "utterances [%]",
            [
                ("reference scores better", [p.search_errors for p in points]),
                ("any known sequence scores better", [p.worse_than_best_known for p in points]),
            ],
        )
    )
    panels.append(("real-time factor", [("real-time factor", [p.real_time_factor for p in points])]))
    panels = [(label, [c for c in curves if all(v is not None for v in c[1])]) for label, curves in panels]
    panels = [(label, curves) for label, curves in panels if curves]
    figure = Figure(figsize=(6.4, 1.2 + 2.0 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    styles = [("o", "-", "#1f5fa8"), ("s", "--", "#c2571a")]
    for ax, (label, curves) in zip(axes, panels, strict=True):
        for (name, values), (marker, line, colour) in zip(curves, styles, strict=False):
            ax.plot(beams, values, marker=marker, linestyle=line, color=colour, label=name, markersize=4)
        ax.set_ylabel(label)
        if label != "WER [%]":  # differences in WER are small, the others go to 0
            ax.set_ylim(bottom=0, top=1.08 * max(max(values) for _, values in curves) or 1.0)
        ax.grid(alpha=0.3)
        if len(curves) > 1:
            ax.legend(frameon=False, fontsize="small", title="search errors", title_fontsize="small")
    axes[-1].set_xscale("log", base=2)
    axes[-1].xaxis.set_major_locator(FixedLocator(beams))
    axes[-1].xaxis.set_major_formatter(ScalarFormatter())
    axes[-1].xaxis.set_minor_formatter(NullFormatter())
    axes[-1].set_xlabel("beam size")
    if title:
        axes[0].set_title(title, fontsize="medium")
    figure.savefig(filename, dpi=150)
