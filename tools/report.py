#!/usr/bin/env python3
"""
Report of runs: one HTML page with everything in it, to be opened in a browser, sent, or printed.

Shows what it is given, in sections: word error rates (beside published ones of the same corpus), utterances with their
alignments, search errors, scales, beam sizes, learning curves, pictures, commands and versions. A run is its output
folder; of such a folder, JSON files of tune_scales.py and search_errors.py and pictures in it are shown, too. They can
also be named one by one. Whatever is missing has no section.

  python tools/report.py output/demo_train output/demo_recog_*
  python tools/report.py output/demo_train output/demo_recog_* output/demo_forced_* tuned.json beams.json \\
      --pictures 3 --output output/report.html --json output/report.json

Nothing is loaded from the network, and all texts are escaped: the page is as safe to open as the file is to read.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import re
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from recog.analysis.runs import AnalysisError
from recog.nbest import open_text_for_writing
from recog.progress import Progress
from recog.wer import score_table, score_utterances
from tools.cli import make_parser, run_main, write_json
from tools.reporting.inputs import Picture, Recognition, ReportInputs, load_inputs, read_picture
from tools.reporting.page import render
from tools.reporting.results import worst_utterances

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: command line without the program; None: of this process
    :return: exit code
    """
    args = _parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    return run_main(lambda: _main(args, words), errors=(ValueError,))  # AnalysisError, ResultError among them


def _main(args: argparse.Namespace, words: list[str]) -> None:
    inputs = load_inputs(args.runs)
    if args.pictures:
        inputs.pictures += _make_pictures(inputs, args.pictures)
    title = args.title or _title(inputs)
    page = render(
        inputs,
        title=title,
        command=["python", "tools/report.py", *words],
        max_utterances=args.utterances,
    )
    with open_text_for_writing(args.output) as file:
        file.write(page)
    scores = {r.run.name: (r.run.header.search, score_utterances(r.run.utterances)) for r in inputs.recognitions}
    if args.json:
        record = {
            "format": 1,
            "title": title,
            "page": args.output,
            "runs": {name: {"search": search, **score.as_dict()} for name, (search, score) in scores.items()},
            "trainings": [training.name for training in inputs.trainings],
            "num_pictures": len(inputs.pictures),
        }
        write_json(args.json, record)
    if scores:
        print(score_table(scores))
    print(f"Report: {os.path.abspath(args.output)} ({os.path.getsize(args.output) / 1e6:.1f} MB)")


def _parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="output folder, n-best file, JSON of a tool, or picture")
    parser.add_argument("--output", default="report.html", metavar="FILE", help="the page (default: report.html)")
    parser.add_argument("--title", help="of the page")
    parser.add_argument(
        "--utterances", type=int, default=200, metavar="N", help="list the N with the most errors (default: 200)"
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=0,
        metavar="N",
        help="make alignment pictures of the N utterances with the most errors, of the run with the lowest WER; needs"
        " its checkpoint and corpus (default: 0)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the word error rates")
    args = parser.parse_args(argv)
    if args.utterances < 0 or args.pictures < 0:
        parser.error("--utterances and --pictures must be >= 0")
    if os.path.splitext(args.output)[1].lower() not in (".html", ".htm"):
        parser.error(f"--output {args.output}: expected a name that ends with .html")
    return args


def _title(inputs: ReportInputs) -> str:
    names = [r.run.name for r in inputs.recognitions] or [training.name for training in inputs.trainings]
    if not names:
        return "Report"
    return "Report: " + (", ".join(names) if len(names) <= 2 else f"{names[0]} and {len(names) - 1} more runs")


def _make_pictures(inputs: ReportInputs, num: int) -> list[Picture]:
    """
    :return: pictures of tools/plot_alignment.py
    :raises AnalysisError: there is no run to make them of, or it cannot be done
    """
    from tools import plot_alignment

    rated = [(score_utterances(r.run.utterances).total.wer, i) for i, r in enumerate(inputs.recognitions)]
    rated = [(wer, i) for wer, i in rated if wer is not None]
    if not rated:
        raise AnalysisError("--pictures: no recognition run with references is given")
    best: Recognition = inputs.recognitions[min(rated)[1]]
    pictures = []
    progress = Progress("pictures")
    tags = worst_utterances(best, num)
    with tempfile.TemporaryDirectory() as folder:
        for i, tag in enumerate(tags):
            progress.update(i / len(tags), f"{i} of {len(tags)}")
            file = os.path.join(folder, re.sub(r"[^A-Za-z0-9._-]+", "_", tag) + ".png")
            err = io.StringIO()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
                code = plot_alignment.main([best.run.file, tag, "--output", file])
            if code:
                raise AnalysisError(f"--pictures: {err.getvalue().strip().removeprefix('error: ')}")
            ref = next(utt.ref for utt in best.run.utterances if utt.seq_tag == tag)
            pictures.append(
                dataclasses.replace(
                    read_picture(file), name=f"{best.run.name}, {tag}, first hypothesis. Reference: {ref}"
                )
            )
    return pictures


if __name__ == "__main__":
    sys.exit(main())
