"""
Scales of a published row by name: ``++recipe att_ctc_lm_opls ++model model_ctc0.3_att0.7``.

What the keys of the original recipes meant, and which options say the same here:

- *opls*: total per label without EOS (``length_norm_exponent`` 1), ended hypotheses compete inside of the beam
  (``ended_hyps`` "in_beam"), no EOS score at the maximum length (``published_scoring``).
- *optsr*: the CTC scale is that of new labels only; blanks and repetitions have the scale 1 (``blank_scale``,
  ``repeat_scale``), so these scales are not those of opls. Best alignment, no length normalisation, EOS at the end. The
  original added EOS only to the longest utterances of a batch; here all get it.
- *tsbs*, *ctcbs* (ESPnet's time-synchronous search): full sum over alignments, the CTC scale is that of all frames, no
  EOS scores. ESPnet looks only at 1.5 beams of labels per frame; here all are searched (``num_candidates`` None). The
  prior of EOS is merged into that of blank, like its posterior; the originals left it out.
- *greedy*: EOS is a label of its own and removed from the output (``ctc_eos`` "keep"); the others merge it into blank.
- prior: subtracted from the log posteriors of all classes, then renormalised per frame (``prior_type`` "frame").

A row replaces the scales that a config has by default; variables in the config file and ``++`` options replace those of
the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recog.options import ExternalModelOptions, GreedyOptions, LabelSyncOptions, SearchOptions, TimeSyncOptions

from .options import OptionError
from .published import Result, ResultError, find_row, load_results

__all__ = ["RecipeOptions", "check_models", "chosen_row", "row_options"]

_CONFIGS = {
    "ctc_greedy": (GreedyOptions, "recog_ctc"),
    "label_sync": (LabelSyncOptions, "recog_labelsync"),
    "time_sync": (TimeSyncOptions, "recog_timesync"),
    "espnet_time_sync": (TimeSyncOptions, "recog_timesync"),
}


@dataclass(frozen=True)
class RecipeOptions:
    """Which published row to take the scales from, see :mod:`configs.base.recipes`."""

    recipe: str | None = None
    """Name of a recipe, as printed by ``tools/results.py recipes``. None: the scales of the config."""
    model: str | None = None
    """Name of the model of that row."""


def chosen_row(namespace: Mapping[str, Any], command_line: Mapping[str, str], *, corpus: str) -> Result | None:
    """
    :param namespace: globals of the config file
    :param command_line: ``++`` options
    :param corpus: of the run
    :return: the row that the user has named; None: no one
    :raises OptionError: there is no such row, or it cannot be used
    """
    given = {**namespace, **command_line}
    recipe, model = (given.get(name) or None for name in ("recipe", "model"))
    if recipe is None and model is None:
        return None
    if recipe is None:
        raise OptionError(f"model = {model} names a row of results together with a recipe: give ++recipe, too")
    try:
        rows = load_results()
        if model is None:
            models = [
                row.model for row in rows if (row.corpus, row.recipe, row.kind) == (corpus, recipe, "recognition")
            ]
            if models:
                raise OptionError(
                    f"recipe = {recipe} has scales for several models: give ++model, one of {', '.join(models)}"
                )
        row = find_row(rows, corpus, recipe, model or "")
    except ResultError as exc:
        raise OptionError(str(exc)) from None
    name = f"recipe {recipe} of {model}"
    if row.invalid:
        raise OptionError(f"{name} must not be used: {row.invalid}")
    if row.candidates:
        raise OptionError(
            f"{name} is not one set of scales: {row.source} has {row.candidates}; give the scales instead of the recipe"
        )
    if row.search not in _CONFIGS:
        raise OptionError(f"{name} is of the search {row.search}, for which there is no recognition config")
    if row.scales.get("prior") and "prior_scale" not in given and not given.get("prior_file"):
        raise OptionError(
            f"{name} has the prior scale {row.scales['prior']:g}: give the CTC prior of that model with ++prior_file"
            " (or leave it out with ++prior_scale 0)"
        )
    return row


def row_options(row: Result, search: type) -> dict[str, Any]:
    """
    :param row: as :func:`chosen_row` returns it
    :param search: class of the search's options
    :return: names and values of options of the search and of the CTC posteriors
    :raises OptionError: the row is of another search
    """
    right_search, config = _CONFIGS[row.search]
    if search is not right_search:
        prefix = {"librispeech": "ls960", "tedlium2": "ted2"}.get(row.corpus, row.corpus)
        raise OptionError(
            f"recipe {row.recipe} is of the search {row.search}: use it with configs/{prefix}_{config}.config"
        )
    options: dict[str, Any] = {"prior_scale": row.scales.get("prior", 0.0), "ctc_eos": "merge"}
    if options["prior_scale"]:
        options["prior_type"] = "frame"
    if search is GreedyOptions:
        return {**options, "ctc_eos": "keep"}
    options |= {f"{name}_scale": row.scales.get(name, 0.0) for name in ("att", "ctc", "lm", "ilm")}
    options |= {"length_reward": 0.0, "length_norm_exponent": 0.0, "published_scoring": True}
    if row.beams:
        options["beam_size"] = max(row.beams)
    if search is LabelSyncOptions:
        options |= {"length_norm_exponent": 1.0, "ended_hyps": "in_beam", "max_len_ratio": 1.0, "min_len_ratio": 0.0}
        options |= {"coverage_scale": 0.0, "monotonicity_scale": 0.0}
    elif row.search == "time_sync":
        options |= {"recombination": "max", "blank_scale": 1.0, "repeat_scale": 1.0, "eos_at_end": True}
    else:
        options |= {"recombination": "sum", "blank_scale": "ctc", "repeat_scale": "ctc", "eos_at_end": False}
        options["published_scoring"] = False  # the one of the other searches
    return options


def check_models(row: Result, search: GreedyOptions | SearchOptions, external: ExternalModelOptions) -> None:
    """
    :param row: that the user has named
    :param search: of this run, with the scales that are used in the end
    :param external: models of this run
    :raises OptionError: the row needs a model that is not given
    """
    name = f"recipe {row.recipe} of {row.model}"
    scale = {key: getattr(search, f"{key}_scale", 0.0) for key in ("ctc", "lm", "ilm")}
    if scale["lm"] and not external.lm_checkpoint:
        raise OptionError(
            f"{name} has the LM scale {scale['lm']:g}: give a language model with ++lm_checkpoint"
            f" (published with: {row.lm or 'none'})"
        )
    if scale["ilm"] and not (external.ilm_type or external.ilm_checkpoint):
        raise OptionError(
            f"{name} has the scale {scale['ilm']:g} of an internal LM: give one with ++ilm_checkpoint or ++ilm_type"
            f" (published with: {row.ilm or 'none'})"
        )
    if row.ctc_model and scale["ctc"] and not external.ctc_checkpoint:
        raise OptionError(
            f"{name} takes its CTC scores from a second model, {row.ctc_model}: give it with ++ctc_checkpoint"
        )
    if not row.ctc_model and external.ctc_checkpoint:
        raise OptionError(
            f"{name} was tuned with the CTC head of the same model: leave ctc_checkpoint out, or take a recipe whose"
            " name has ctc_only"
        )
