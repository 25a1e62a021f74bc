#!/usr/bin/env python3
"""
Speed and memory of the searches, on a decoder of the published size with random weights.

Measures CPU time with one thread, of methods that run in turn in this process, as medians: also meaningful on a machine
that does other work. Compares with the usual ways to do the same (tools/search_benchmark/references.py) and, if the
package espnet is installed, with ESPnet's time-synchronous search. All of it takes about an hour; parts can be chosen.

  python tools/benchmark_search.py --json benchmark.json
  python tools/benchmark_search.py --only prefix recombination
  python tools/benchmark_search.py --only labelsync --vocabs 10025 --beams 12 --batches 1
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence

# Before torch is loaded: the unit of all figures is one thread.
os.environ["OMP_NUM_THREADS"] = "1"

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch

from recog.progress import Progress
from tools.cli import make_parser, write_json
from tools.search_benchmark.experiments import EXPERIMENTS, Row, Sizes
from tools.search_benchmark.setting import LS960_SIZES, SMALL_SIZES

__all__ = ["main"]

_HEADER = ("", "sizes", "ours", "other", "ratio", "target", "met", "")


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: command line without the program; None: of this process
    :return: exit code
    """
    args = _parse_args(argv)
    sizes = Sizes(
        vocabs=tuple(args.vocabs),
        beams=tuple(args.beams),
        batches=tuple(args.batches),
        num_frames=args.frames,
        decoder=SMALL_SIZES if args.small_decoder else LS960_SIZES,
        prefix=tuple(args.prefix_sizes),
        growth_frames=tuple(args.growth_frames),
        rounds=args.rounds,
        max_reference_frames=args.reference_frames,
    )
    command = f"python tools/benchmark_search.py {shlex.join(sys.argv[1:] if argv is None else argv)}".strip()
    caption = {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "cpu": _cpu_name(),
        "torch": torch.__version__,
        "threads": 1,
    }
    print(
        f"{caption['date']}, {caption['cpu']}, torch {caption['torch']}, 1 thread, CPU time, medians of {args.rounds}"
        f" rounds or more: {command}"
    )
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    results: dict[str, list[Row]] = {}
    progress = Progress("benchmark")
    try:
        with torch.no_grad():
            for number, name in enumerate(args.only):
                title, experiment = EXPERIMENTS[name]
                progress.update(number / len(args.only), title)
                print(f"\n{title}\n", flush=True)
                results[name] = []
                for row in experiment(sizes):
                    results[name].append(row)
                    print(f"  {_line(row)}", file=sys.stderr, flush=True)
                print(_table(results[name], markdown=args.markdown), flush=True)
                if args.json:
                    _write_json(args.json, caption, results)
    finally:
        torch.set_num_threads(num_threads)
    missed = [row for rows in results.values() for row in rows if row.met is False]
    with_target = sum(row.met is not None for rows in results.values() for row in rows)
    print(f"\n{with_target - len(missed)} of {with_target} targets met")
    return 0


def _parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    default = Sizes()

    def numbers(option: str, values: Sequence[int], text: str, nargs: str | int = "+") -> None:
        parser.add_argument(
            option,
            metavar="N",
            type=_positive,
            nargs=nargs,
            default=list(values),
            help=f"{text} (default: %(default)s)",
        )

    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(EXPERIMENTS),
        default=list(EXPERIMENTS),
        help="what to measure: "
        + "; ".join(f"{key}: {title[0].lower()}{title[1:]}" for key, (title, _) in EXPERIMENTS.items()),
    )
    numbers("--vocabs", default.vocabs, "labels")
    numbers("--beams", default.beams, "beam sizes")
    numbers("--batches", default.batches, "utterances per batch")
    parser.add_argument(
        "--frames", metavar="N", type=_positive, default=default.num_frames, help="encoder frames (default: 10 s)"
    )
    numbers("--prefix-sizes", default.prefix, "V, T, beam and batch of the measurement of prefix scores", nargs=4)
    numbers("--growth-frames", default.growth_frames, "encoder frames of the measurement of growth")
    parser.add_argument(
        "--reference-frames",
        metavar="N",
        type=_positive,
        default=default.max_reference_frames,
        help="frames for which the usual time-synchronous search is run; all cost the same (default: %(default)s)",
    )
    parser.add_argument("--rounds", metavar="N", type=_positive, default=default.rounds, help="measurements per figure")
    parser.add_argument(
        "--small-decoder", action="store_true", help="a decoder with few units, only to see that all this runs"
    )
    parser.add_argument("--markdown", action="store_true", help="print tables in Markdown")
    parser.add_argument("--json", metavar="FILE", help="also write all figures as JSON")
    args = parser.parse_args(argv)
    if args.json and not os.path.isdir(os.path.dirname(os.path.abspath(args.json))):
        parser.error(f"--json {args.json}: there is no such folder")
    return args


def _positive(text: str) -> int:
    """:raises ValueError: not a whole number above 0; argparse says so"""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


_positive.__name__ = "whole number above 0"  # in argparse's messages


def _cpu_name() -> str:
    """:return: the processor's name and number of cores, as far as the system says"""
    try:
        with open("/proc/cpuinfo") as file:
            match = re.search(r"^model name\s*: (.+)$", file.read(), re.MULTILINE)
    except OSError:
        match = None
    return f"{match[1] if match else platform.processor() or platform.machine()} with {os.cpu_count()} cores"


def _cells(row: Row) -> list[str]:
    """:return: the cells of a line of the table"""
    factor = 1000 if row.unit == "ms" else 1

    def number(x: float | None) -> str:
        return "" if x is None else f"{factor * x:.4g} {row.unit}".strip()

    target = ""
    if row.target is not None:
        target = f"{'≥' if row.higher_is_better else '≤'} {row.target:g}"
    met = {None: "", True: "yes", False: "no"}[row.met]
    return [row.what, row.sizes, number(row.ours), number(row.other), f"{row.ratio:.3g}", target, met, row.note]


def _line(row: Row) -> str:
    return ", ".join(cell for cell in _cells(row) if cell)


def _table(rows: list[Row], *, markdown: bool) -> str:
    """:return: aligned columns"""
    lines = [list(_HEADER), *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADER))]
    texts = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    if markdown:
        texts.insert(1, ["-" * max(3, width) for width in widths])
        return "\n".join(f"| {' | '.join(line)} |" for line in texts)
    return "\n".join("  ".join(line).rstrip() for line in texts)


def _write_json(filename: str, caption: dict[str, object], results: dict[str, list[Row]]) -> None:
    """Times in CPU seconds, under a temporary name until it is complete."""
    content = {
        **caption,
        "results": {
            name: [{**dataclasses.asdict(row), "met": row.met} for row in rows] for name, rows in results.items()
        },
    }
    write_json(filename, content)


if __name__ == "__main__":
    sys.exit(main())
