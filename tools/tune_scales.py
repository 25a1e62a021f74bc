#!/usr/bin/env python3
"""
Tunes the scales of a search on n-best lists: those with the fewest word errors, by exact line search.

The number of word errors of a fixed n-best list is piecewise constant along any line of scales; all pieces are found
and compared, from many starting points. Printed are the scales before and after, how far they can vary without more
errors, how much of the gain other data would see (cross-validation, bootstrap over utterances), what speaks against
the result, and the options for the next search. Parts of the corpus whose name says test are refused.

  python tools/tune_scales.py output/demo_recog_labelsync/nbest.jsonl
  python tools/tune_scales.py output/ls960_recog_timesync/nbest.jsonl --parts dev-other --json tuned.json
  python tools/tune_scales.py --loop configs/demo_recog_labelsync.config --parts dev ++beam_size 16

--loop searches, tunes on all hypotheses found so far, and searches again until no other scales have fewer errors; the
scales that it prints are those whose *search* had the lowest WER.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from recog.analysis.arrays import NBestArrays, make_arrays
from recog.analysis.merging import merge_runs
from recog.analysis.runs import AnalysisError, Run, check_same_references, is_test_name, load_run, select_parts
from recog.analysis.significance import bootstrap_errors
from recog.analysis.tuning import (
    ScaleRange,
    Tuning,
    cross_validated_errors,
    error_surface,
    option_overrides,
    scale_interval,
    scale_ranges,
    tune_scales,
    warnings_about,
)
from recog.progress import Progress
from recog.wer import format_table
from tools.cli import make_parser, refuse_nbest_names, run_main, split_overrides, write_json

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: command line without the program; None: of this process
    :return: exit code
    """
    args = _parse_args(argv)
    return run_main(lambda: _main(args), errors=(ValueError,))  # AnalysisError among them


def _main(args: argparse.Namespace) -> None:
    refuse_nbest_names({"--json": args.json})
    if args.loop:
        result = _loop(args)
    else:
        run, left_out = _choose_parts(_merged(args.nbest), args)
        if left_out and not args.parts:
            print(f"note: not tuned on {', '.join(left_out)} (see --parts)", file=sys.stderr)
        result = _tune(run, args)
        print(result.report)
    if args.json:
        write_json(args.json, result.record)


def _parse_args(argv: list[str] | None) -> argparse.Namespace:
    argv, overrides = split_overrides(argv)
    parser = make_parser(__doc__)
    parser.add_argument(
        "nbest", metavar="NBEST", nargs="*", help="n-best file of a run; of several with the same components: all hyps"
    )
    parser.add_argument(
        "--parts",
        type=_words,
        metavar="P,P",
        help="parts of the corpus to tune on (default: those with dev in the name)",
    )
    parser.add_argument("--force", action="store_true", help="tune even on a test set; do not report a WER on it then")
    parser.add_argument(
        "--tune", type=_words, metavar="C,C", help="components to tune, e.g. att,ctc,length (default: all)"
    )
    parser.add_argument(
        "--length-norm-exponents", type=_numbers, metavar="X,X", help="try each of these (default: that of the search)"
    )
    parser.add_argument(
        "--criterion",
        choices=("wer", "expected"),
        default="wer",
        help="word errors of the best hypotheses, or expected word errors over the n-best lists (default: wer)",
    )
    parser.add_argument("--restarts", type=int, default=20, metavar="N", help="random starting points (default: 20)")
    parser.add_argument(
        "--max-ratio", type=float, default=10.0, metavar="X", help="largest scale, relative to att + ctc"
    )
    parser.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="samples (default: 1000; 0: none)")
    parser.add_argument(
        "--folds", type=int, default=5, metavar="N", help="of the cross-validation (default: 5; 0: none)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of all random numbers (default: 1)")
    parser.add_argument("--json", metavar="FILE", help="write all results, with error curves for plots")
    loop = parser.add_argument_group("search and tune by turns")
    loop.add_argument("--loop", metavar="CONFIG", help="recognition config; needs --parts. ++ options go to rnn.py")
    loop.add_argument("--max-searches", type=int, default=5, metavar="N", help="at most so many searches (default: 5)")
    loop.add_argument("--output-dir", metavar="DIR", help="for the searches (default: output/<config name>_tune)")
    args = parser.parse_args(argv)
    args.overrides = overrides
    if bool(args.loop) == bool(args.nbest):
        parser.error("expected n-best files, or --loop CONFIG")
    if args.loop and not args.parts:
        parser.error("--loop needs --parts: which parts of the corpus to search and tune on")
    if overrides and not args.loop:
        parser.error(f"{overrides[0]}: options of a search make sense with --loop only")
    if args.loop and args.length_norm_exponents:
        parser.error("--length-norm-exponents does not go with --loop")
    if args.restarts < 0 or args.bootstrap < 0 or args.folds < 0 or args.folds == 1 or args.max_searches < 1:
        parser.error("--restarts and --bootstrap must be >= 0, --folds 0 or >= 2, --max-searches >= 1")
    if args.max_ratio <= 0:
        parser.error("--max-ratio must be > 0")
    return args


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[float]:
    return [float(word) for word in _words(text)]


def _merged(files: Sequence[str]) -> Run:
    """:return: the run, or the union of several"""
    runs = [load_run(file) for file in files]
    if len(runs) == 1:
        return runs[0]
    check_same_references(runs)
    header, utterances = merge_runs(runs)
    return Run(" + ".join(run.name for run in runs), ", ".join(files), header, utterances)


def _refuse_test_sets(names: Sequence[str], *, force: bool) -> None:
    """:raises AnalysisError: test set, without --force"""
    tests = [name for name in names if is_test_name(name)]
    if tests and not force:
        raise AnalysisError(
            f"refused: {', '.join(tests)} is a test set by its name. Scales that are tuned on it give WERs that must"
            " not be reported. Tune on a dev set (--parts), or use --force if you know what you are doing"
        )


def _choose_parts(run: Run, args: argparse.Namespace) -> tuple[Run, list[str]]:
    """
    :return: the run with the parts to tune on only; other parts
    :raises AnalysisError: a test set
    """
    if args.parts:
        chosen = args.parts
    elif run.parts == [""]:
        chosen = [""]
        _refuse_test_sets([run.name, os.path.basename(run.file)], force=args.force)
    else:
        chosen = [part for part in run.parts if "dev" in part.lower() and not is_test_name(part)]
        if not chosen and len(run.parts) == 1:
            chosen = run.parts
        if not chosen:
            raise AnalysisError(f"{run.file}: which parts are for tuning? There are {', '.join(run.parts)} (--parts)")
    _refuse_test_sets(chosen, force=args.force)
    return select_parts(run, chosen), [part for part in run.parts if part not in chosen]


@dataclass(frozen=True)
class _Result:
    """One tuning."""

    tuning: Tuning
    length_norm_exponent: float
    report: str
    record: dict[str, Any]


def _tune(run: Run, args: argparse.Namespace, *, min_ratio: float = 0.0) -> _Result:
    header = run.header
    components = [name for name, scale in header.scales.items() if scale]
    components += [name for name in args.tune or [] if name not in components]
    exponents = args.length_norm_exponents or [header.length_norm_exponent]
    best = None
    for exponent in exponents:
        arrays = make_arrays(header, run.utterances, components=components, length_norm_exponent=exponent)
        if not arrays.num_words:
            raise AnalysisError(f"{run.file}: all references are empty, there is no word error rate to minimise")
        ranges = scale_ranges(header, components, tune=args.tune, max_ratio=args.max_ratio, min_ratio=min_ratio)
        tuning = tune_scales(
            arrays,
            header.scales,
            ranges,
            restarts=args.restarts,
            criterion=args.criterion,
            seed=args.seed,
            progress=Progress("tuning").update,
        )
        # Of equally good exponents that of the search, then the first.
        key = (tuning.errors, exponent != header.length_norm_exponent)
        if best is None or key < best[0]:
            best = key, exponent, arrays, ranges, tuning
    _, exponent, arrays, ranges, tuning = best
    return _describe(run, arrays, ranges, tuning, exponent, args)


def _describe(
    run: Run,
    arrays: NBestArrays,
    ranges: dict[str, ScaleRange],
    tuning: Tuning,
    exponent: float,
    args: argparse.Namespace,
) -> _Result:
    header = run.header
    if exponent == header.length_norm_exponent:
        before_arrays = arrays
    else:
        before_arrays = make_arrays(header, run.utterances, components=arrays.components)
    before = before_arrays.errors_of(before_arrays.vector(header.scales))
    after = arrays.errors_of(arrays.vector(tuning.scales))
    oracle = arrays.oracle_errors()
    systems = {"before": before, "tuned": after, "oracle": oracle}
    folds = args.folds if args.folds and len(arrays.errors) >= 2 * args.folds else 0
    if folds:
        systems["cross-validated"], fold_scales = cross_validated_errors(
            arrays,
            tuning.default,
            ranges,
            folds=folds,
            criterion=args.criterion,
            seed=args.seed,
            progress=Progress("cross-validation").update,
        )
    rates = bootstrap_errors(list(systems.values()), arrays.num_ref_words, samples=args.bootstrap, seed=args.seed)
    intervals = {
        name: scale_interval(
            arrays, tuning.scales, name, ranges[name], samples=min(args.bootstrap, 200), seed=args.seed
        )
        for name in arrays.components
        if ranges[name].tuned
    }
    warnings = warnings_about(arrays, tuning, intervals)

    rows = []
    for name in arrays.components:
        interval = intervals.get(name)
        rows.append(
            [
                name,
                f"{tuning.default[name]:g}",
                f"{tuning.scales[name]:g}",
                "fixed" if interval is None else "{:.3g} ... {:.3g}".format(*interval["best"]),
                "-"
                if not interval or not interval["confidence"]
                else "{:.3g} ... {:.3g}".format(*interval["confidence"]),
            ]
        )
    tables = [
        format_table(["component", "before", "tuned", "as few errors", "95 % (bootstrap)"], rows, num_text_columns=1)
    ]
    rows, rates_record = [], {}
    for i, (name, errors) in enumerate(systems.items()):
        interval = np.quantile(rates[:, i], [0.025, 0.975]).tolist() if len(rates) else None
        wer = arrays.wer(int(errors.sum()))
        rows.append(
            [name, str(int(errors.sum())), f"{wer:.2f}", "-" if not interval else "{:.2f} ... {:.2f}".format(*interval)]
        )
        rates_record[name] = {"num_errors": int(errors.sum()), "wer_percent": wer, "confidence_95": interval}
    tables.append(format_table(["scales", "errors", "WER %", "95 % (bootstrap)"], rows, num_text_columns=1))
    better = float((rates[:, 1] < rates[:, 0]).mean()) if len(rates) else None

    overrides = option_overrides(tuning.scales, changed_from=None if tuning.improved else tuning.default)
    if exponent != header.length_norm_exponent:
        overrides += ["++length_norm_exponent", f"{exponent:g}"]
    lines = [
        f"{run.name}, {', '.join(part or '(no part)' for part in run.parts)}: {len(arrays.errors)} utterances,"
        f" {arrays.num_words} words, up to {arrays.valid.shape[1]} hypotheses",
        "",
        tables[0],
        "",
        tables[1],
        "",
    ]
    if better is not None and overrides:
        lines.append(f"Better than before on {100 * better:.0f} % of {args.bootstrap} resampled sets.")
    lines += [f"warning: {message}" for message in warnings]
    if not overrides:
        lines.append(f"No other scales have fewer errors on these lists: {_why_not(tuning)}")
    else:
        lines.append(f"Search with: rnn.py CONFIG {' '.join(overrides)}")
    record = {
        "format": 1,
        "run": run.name,
        "file": run.file,
        "search": header.search,
        "parts": run.parts,
        "num_utts": len(arrays.errors),
        "num_ref_words": arrays.num_words,
        "max_hyps": arrays.valid.shape[1],
        "criterion": args.criterion,
        "scales_before": tuning.default,
        "scales": tuning.scales,
        "length_norm_exponent_before": header.length_norm_exponent,
        "length_norm_exponent": exponent,
        "improved": bool(overrides),
        "results": rates_record,
        "probability_better": better,
        "intervals": {
            name: {**interval, "range": [ranges[name].low, ranges[name].high]} for name, interval in intervals.items()
        },
        "cross_validation_scales": fold_scales if folds else [],
        "local_optima": [{"scales": scales, "num_errors": errors} for scales, errors in tuning.local_optima],
        "warnings": warnings,
        "overrides": overrides,
        "curves": _curves(arrays, tuning, ranges),
        "surface": _surface(arrays, tuning, ranges),
    }
    return _Result(tuning, exponent, "\n".join(lines), record)


def _why_not(tuning: Tuning) -> str:
    tried = len(tuning.local_optima)
    return f"the best of {tried} starting point(s) has {tuning.local_optima[0][1]} errors."


def _grid(tuning: Tuning, name: str, range_: ScaleRange, num: int) -> np.ndarray:
    """:return: scales of a component to plot, around where it is and was"""
    values = [tuning.default[name], tuning.scales[name], 0.0]
    reach = max(0.25, *(abs(value) for value in values))
    low = max(range_.low, min(values) - (reach if range_.low < 0 else 0.0))
    high = min(range_.high, max(values) + (reach if range_.high > 0 else 0.0))
    return np.linspace(low, high, num)


def _curves(arrays: NBestArrays, tuning: Tuning, ranges: dict[str, ScaleRange]) -> list[dict[str, Any]]:
    """:return: WER as a function of each tuned scale, the others as tuned"""
    curves = []
    for name in arrays.components:
        if ranges[name].tuned:
            grid = _grid(tuning, name, ranges[name], 101)
            wers = error_surface(arrays, tuning.scales, (name, grid))
            curves.append({"component": name, "scales": grid.tolist(), "wer_percent": wers.tolist()})
    return curves


def _surface(arrays: NBestArrays, tuning: Tuning, ranges: dict[str, ScaleRange]) -> dict[str, Any] | None:
    """:return: WER as a function of the two last tuned scales. None: there are no two"""
    names = [name for name in arrays.components if ranges[name].tuned][-2:]
    if len(names) < 2:
        return None
    x, y = ((name, _grid(tuning, name, ranges[name], 41)) for name in names)
    wers = error_surface(arrays, tuning.scales, x, y)
    return {
        "x": {"component": x[0], "scales": x[1].tolist()},
        "y": {"component": y[0], "scales": y[1].tolist()},
        "wer_percent": wers.tolist(),
    }


# ---- search and tune by turns


def _loop(args: argparse.Namespace) -> _Result:
    """:raises AnalysisError: a search failed, or a test set"""
    _refuse_test_sets(args.parts, force=args.force)
    if not os.path.isfile(args.loop):
        raise AnalysisError(f"{args.loop} does not exist")
    name = os.path.splitext(os.path.basename(args.loop))[0]
    folder = args.output_dir or os.path.join("output", f"{name}_tune")
    runs, history, scales, result = [], [], None, None
    for number in range(1, args.max_searches + 1):
        overrides = option_overrides(scales) if scales else []
        run = _search(args, os.path.join(folder, f"search{number}"), overrides)
        arrays = make_arrays(run.header, run.utterances)
        errors = int(arrays.errors_of(arrays.vector(run.header.scales)).sum())
        history.append((errors, number, run.header))
        print(f"\nSearch {number}: {errors} errors, WER {arrays.wer(errors):.2f} %\n", flush=True)
        runs.append(run)
        header, utterances = merge_runs(runs, header=run.header)
        # A scale of 0 would take its component out of the next search, and the lists could not be merged.
        result = _tune(Run(name, run.file, header, utterances), args, min_ratio=0.01)
        print(result.report, flush=True)
        if not result.tuning.improved:
            break
        scales = result.tuning.scales
    errors, number, header = min(history, key=lambda item: item[:2])
    best = {component: header.scales[component] for component in result.tuning.scales if component in header.scales}
    words = arrays.num_words
    rows = [
        [str(n), *(f"{h.scales.get(c, 0.0):g}" for c in best), str(e), f"{100 * e / words:.2f}"] for e, n, h in history
    ]
    print("\n" + format_table(["search", *best, "errors", "WER %"], rows, num_text_columns=0))
    ended = (
        "No other scales have fewer errors on all these hypotheses."
        if not result.tuning.improved
        else (f"Stopped after {len(history)} searches (--max-searches), not yet stable.")
    )
    overrides = option_overrides(best)
    print(f"{ended}\nBest search: number {number}. Search with: rnn.py {args.loop} {' '.join(overrides)}")
    record = {
        **result.record,
        "stable": not result.tuning.improved,
        "searches": [
            {"search": n, "scales": h.scales, "num_errors": e, "wer_percent": 100 * e / words} for e, n, h in history
        ],
        "best_search": number,
        "best_search_scales": best,
        "overrides": overrides,
    }
    return replace(result, record=record)


def _search(args: argparse.Namespace, folder: str, overrides: list[str]) -> Run:
    """
    :return: result of rnn.py with these options (of an earlier call, if it was the same run)
    :raises AnalysisError: it failed
    """
    command = [sys.executable, "-m", "returnn", args.loop, *args.overrides, *overrides]
    command += ["++recog_parts", ",".join(args.parts), "++output_dir", folder]
    print("+ rnn.py " + " ".join(command[3:]), flush=True)
    exit_code = subprocess.run(command).returncode
    if exit_code:
        raise AnalysisError(f"the search failed with exit code {exit_code}; its log is {folder}/returnn.log")
    return load_run(os.path.join(folder, "nbest.jsonl"))


if __name__ == "__main__":
    sys.exit(main())
