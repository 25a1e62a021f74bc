#!/usr/bin/env python3
"""
Published and measured results (configs/base/results): tables, plots, and new rows from finished recognition runs.

  python tools/results.py table --corpus tedlium2 --recipe 'att_ctc_lm_*' --valid --sort dev
  python tools/results.py table --corpus tedlium2 --recipe att att_ctc_opls att_ctc_optsr --pivot --markdown
  python tools/results.py recipes --corpus librispeech
  python tools/results.py plot loss-scale.png --x loss-scale --corpus tedlium2 --part dev --recipe att att_ctc_opls
  python tools/results.py add output/ted2_recog_labelsync

The scales of a row can be used by name: rnn.py configs/ted2_recog_labelsync.config ++recipe att_ctc_opls ++model
model_baseline. Rows that are known to be wrong stay, marked with a dagger and the reason.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import sys
from dataclasses import replace

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from configs.base.published import (
    CORPORA,
    MEASURED_FILE,
    RESULTS_DIR,
    Result,
    ResultError,
    load_models,
    load_results,
    write_results,
)
from recog.nbest import open_text_for_writing
from recog.wer import format_table
from tools.cli import make_parser, run_main
from tools.result_data.tables import csv_table, format_wer, pivot_tables, tables

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: command line without the program; None: of this process
    :return: exit code
    """
    args = _parse_args(argv)
    return run_main(lambda: args.run(args), errors=(ResultError,))


def _parse_args(argv: list[str] | None) -> argparse.Namespace:
    options = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = make_parser(__doc__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--folder", default=RESULTS_DIR, help="folder of the results (configs/base/results)")
    filters = argparse.ArgumentParser(add_help=False)
    filters.add_argument("--corpus", choices=list(CORPORA))
    filters.add_argument("--kind", choices=["recognition", "training", "system"])
    filters.add_argument("--recipe", nargs="+", metavar="NAME", help="names, * and ? stand for anything")
    filters.add_argument("--model", nargs="+", metavar="NAME", help="the same")
    filters.add_argument("--search", help="label_sync, time_sync, ctc_greedy, ...")
    filters.add_argument("--measured", action="store_true", help="only results that were measured with this project")
    filters.add_argument("--published", action="store_true", help="only published results")
    filters.add_argument("--valid", action="store_true", help="leave out invalid results")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    table = commands.add_parser("table", parents=[common, filters], help="print results", **options)
    table.add_argument("--sort", metavar="PART", help="by the WER on this part")
    table.add_argument("--best", type=int, metavar="N", help="only the first N of each corpus and kind, after --sort")
    table.add_argument("--sources", action="store_true", help="say where the numbers are from")
    table.add_argument("--pivot", action="store_true", help="models as rows, recipes as columns")
    form = table.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true")
    form.add_argument("--csv", action="store_true", help="all fields")
    form.add_argument("--json", action="store_true", help="all fields")
    table.add_argument("--output", metavar="FILE", help="write into this file instead")
    table.set_defaults(run=_table)

    recipes = commands.add_parser("recipes", parents=[common, filters], help="names of recipes and models", **options)
    recipes.set_defaults(run=_recipes)

    plot = commands.add_parser("plot", parents=[common, filters], help="plot WER", **options)
    plot.add_argument("output", metavar="FILE", help=".png, .pdf or .svg")
    plot.add_argument("--x", choices=["loss-scale", "layer", "recipe"], default="loss-scale", help="(%(default)s)")
    plot.add_argument("--part", required=True, help="whose WER, e.g. dev")
    plot.add_argument("--max-wer", type=float, help="leave out points above")
    plot.add_argument("--with-invalid", action="store_true", help="also invalid results")
    plot.set_defaults(run=_plot)

    add = commands.add_parser(
        "add",
        parents=[common],
        help="add a finished recognition run",
        description="Adds the WERs of a finished run with its scales, models, command, date and machine to the measured"
        " results. The WER is counted from the n-best file where there is one.",
        **options,
    )
    add.add_argument(
        "finished_run", metavar="RUN", help="output folder of a recognition run, its nbest.jsonl or wer.json"
    )
    add.add_argument("--corpus", choices=list(CORPORA), help="(from the name of the run)")
    add.add_argument("--recipe", help="(from the scales and the search)")
    add.add_argument("--model", help="(++model of the run, or the training run of the checkpoint)")
    add.add_argument("--machine", help="(this one)")
    add.add_argument("--note")
    add.add_argument("--invalid", metavar="REASON", help="why this result must not be used")
    add.add_argument("--subset", action="store_true", help="allow parts that are not complete; it is noted")
    add.add_argument("--replace", action="store_true", help="replace the row of the same recipe and model")
    add.set_defaults(run=_add)
    return parser.parse_args(argv)


def _select(args: argparse.Namespace) -> list[Result]:
    """
    :return: rows that pass the filters
    :raises ResultError: none does
    """
    everything = load_results(args.folder)

    def _wanted(row: Result) -> bool:
        return (
            args.corpus in (None, row.corpus)
            and args.kind in (None, row.kind)
            and args.search in (None, row.search)
            and all(
                patterns is None or any(fnmatch.fnmatchcase(getattr(row, name), pattern) for pattern in patterns)
                for name, patterns in (("recipe", args.recipe), ("model", args.model))
            )
            and not (args.measured and not row.measured)
            and not (args.published and row.measured)
            and not (args.valid and row.invalid)
        )

    rows = [row for row in everything if _wanted(row)]
    if not rows:
        raise ResultError(
            f"none of the {len(everything)} results is like that; see python tools/results.py recipes for the names"
        )
    return rows


def _table(args: argparse.Namespace) -> None:
    rows = _select(args)
    if args.sort:
        known = {part for row in rows for part in row.wer}
        if args.sort not in known:
            raise ResultError(f"--sort {args.sort}: these results have the parts {', '.join(sorted(known))}")
        rows = sorted((row for row in rows if args.sort in row.wer), key=lambda row: row.wer[args.sort])
    if args.best is not None:
        groups: dict[tuple[str, str], list[Result]] = {}
        for row in rows:
            groups.setdefault((row.corpus, row.kind), []).append(row)
        rows = [row for group in groups.values() for row in group[: args.best]]
    if args.csv:
        text = csv_table(rows)
    elif args.json:
        text = json.dumps([row.as_dict() for row in rows], indent=2, ensure_ascii=False) + "\n"
    elif args.pivot:
        text = pivot_tables(rows, markdown=args.markdown) + "\n"
    else:
        text = tables(rows, markdown=args.markdown, sources=args.sources) + "\n"
    if args.output:
        with open_text_for_writing(args.output) as file:
            file.write(text)
    else:
        sys.stdout.write(text)


def _recipes(args: argparse.Namespace) -> None:
    groups: dict[tuple[str, str], list[Result]] = {}
    args.kind = args.kind or "recognition"  # what ++recipe can name
    for row in _select(args):
        groups.setdefault((row.corpus, row.recipe), []).append(row)
    lines = []
    for (corpus, recipe), rows in groups.items():
        part = "dev" if "dev" in CORPORA[corpus] else "dev-other"
        wers = [row.wer[part] for row in rows if part in row.wer and not row.invalid]
        models = list(dict.fromkeys(row.model for row in rows))
        shown = ", ".join(models[:3]) + (f", ... ({len(models)})" if len(models) > 3 else "")
        best = format_wer(min(wers)) if wers else "-"
        lines.append([corpus, recipe, rows[0].search or "-", shown, best])
    header = ["corpus", "recipe", "search", "models", "best dev (dev-other)"]
    print(format_table(header, lines, num_text_columns=4))


def _plot(args: argparse.Namespace) -> None:
    from tools.result_data.plots import plot_series, series_over

    if not re.search(r"\.(png|pdf|svg)$", args.output):
        raise ResultError(f"{args.output}: expected a name that ends with .png, .pdf or .svg")
    rows = _select(args)
    corpora = sorted({row.corpus for row in rows if args.part in row.wer})
    if len(corpora) > 1:
        raise ResultError(f"part {args.part} is of several corpora: give --corpus, one of {', '.join(corpora)}")
    if args.max_wer is not None:
        rows = [row for row in rows if row.wer.get(args.part, 0.0) <= args.max_wer]
    series = series_over(args.x, rows, load_models(args.folder), part=args.part, invalid=args.with_invalid)
    if not series:
        raise ResultError(f"no result with a WER on {args.part} has a place on the axis {args.x}")
    plot_series(args.output, series, x_axis=args.x, title=f"{corpora[0]}, {args.part}")
    points = sum(map(len, series.values()))
    print(f"{args.output}: {len(series)} series, {points} points")
    left_out = sum(bool(row.invalid) and args.part in row.wer for row in rows)
    if left_out and not args.with_invalid:
        print(f"{left_out} invalid result(s) left out; --with-invalid shows them")


def _add(args: argparse.Namespace) -> None:
    from tools.result_data.finished_run import read_run, result_of_run

    result = result_of_run(
        read_run(args.finished_run),
        corpus=args.corpus,
        recipe=args.recipe,
        model=args.model,
        machine=args.machine,
        note=args.note,
        invalid=args.invalid,
        subset=args.subset,
    )
    os.makedirs(args.folder, exist_ok=True)
    filename = os.path.join(args.folder, os.path.basename(MEASURED_FILE))
    measured = [row for row in load_results(args.folder) if row.measured]
    same = [row for row in measured if row.key == result.key]
    if same and replace(same[0], command=None, date=None, machine=None) == replace(
        result, command=None, date=None, machine=None
    ):
        print("This result is there already.")
    elif same and not args.replace:
        raise ResultError(
            f"{filename} has a result of recipe {result.recipe} and model {result.model} already"
            f" ({same[0].date}, {same[0].command}): --replace it, or give another name with --recipe or --model"
        )
    else:
        rows = [row for row in measured if row.key != result.key] + [result]
        write_results(filename, "Measured with this project (tools/results.py add). WER in percent.", rows)
        load_results(args.folder)
        print(f"added to {filename}")
    print(tables([result]))


if __name__ == "__main__":
    sys.exit(main())
