#!/usr/bin/env python3
"""
Second pass on n-best files alone: other scales, or scores of other models on the same hypotheses. No model is run.

  python tools/rescore.py output/demo_recog_timesync_lm/nbest.jsonl --scales att=0.5,ctc=0.3,lm=0.6 --out new.jsonl

With --add, the components of other runs that scored the same hypotheses are used, too, under the name NAME.COMPONENT:

  rnn.py configs/demo_rescore.config ++nbest_file A/nbest.jsonl ++load OTHER_MODEL.pt ++output_dir B
  python tools/rescore.py A/nbest.jsonl --add other:B/nbest.jsonl --scales first_pass=1,other.att=0.5 --out C.jsonl

"first_pass" is the total score of the first run. Scales carry their sign: the internal LM has a negative one. What is
not named gets the scale 0. (The component "ctc" of a time-synchronous search contains blanks with a scale of their own,
unless that was "ctc": another scale for it changes them, too.) Prints the WER before and after.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from recog.analysis.rescaling import add_components, rescale
from recog.analysis.runs import AnalysisError, load_run
from recog.nbest import NBestFormatError, NBestWriter
from recog.wer import score_table, score_utterances
from tools.cli import make_parser, run_main, write_json

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: command line without the program; None: of this process
    :return: exit code
    """
    args = _parse_args(argv)
    return run_main(lambda: _main(args), errors=(AnalysisError, NBestFormatError))


def _main(args: argparse.Namespace) -> None:
    if os.path.exists(args.out):
        raise AnalysisError(f"--out {args.out} exists already: choose another name or remove it first")
    first = load_run(args.nbest)
    run, left_out = add_components(first, {name: load_run(file, name=name) for name, file in args.add})
    header, utterances = rescale(run, args.scales, length_norm_exponent=args.length_norm_exponent)
    os.makedirs(os.path.dirname(os.path.abspath(args.out)), exist_ok=True)
    with NBestWriter(args.out, header) as writer:
        for utt in utterances:
            writer.write(utt)
    scores = {"first pass": score_utterances(first.utterances), "second pass": score_utterances(utterances)}
    print(score_table({name: (h.search, scores[name]) for name, h in _headers(first.header, header).items()}))
    if left_out:
        print(f"note: {left_out} hypotheses are left out, since a run of --add has no score for them")
    if args.json:
        record = {"scales": header.scales, "left_out": left_out}
        record.update({name: score.as_dict() for name, score in scores.items()})
        write_json(args.json, record)


def _headers(first: Any, second: Any) -> dict[str, Any]:
    return {"first pass": first, "second pass": second}


def _parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("nbest", metavar="NBEST", help="n-best file of the first pass")
    parser.add_argument(
        "--add",
        metavar="NAME:FILE",
        type=_named_file,
        action="append",
        default=[],
        help="scores of the same hypotheses",
    )
    parser.add_argument("--scales", metavar="NAME=SCALE,...", type=_scales, required=True)
    parser.add_argument("--length-norm-exponent", metavar="E", type=float, default=0.0, help="default: 0 (none)")
    parser.add_argument("--out", metavar="FILE", required=True, help="n-best file of the second pass")
    parser.add_argument("--json", metavar="FILE", help="write WERs and scales as JSON")
    args = parser.parse_args(argv)
    names = [name for name, _ in args.add]
    if len(set(names)) != len(names):
        parser.error("--add: two runs have the same name")
    return args


def _named_file(text: str) -> tuple[str, str]:
    name, colon, file = text.partition(":")
    if not colon or not name or not file:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME:FILE")
    return name, file


def _scales(text: str) -> dict[str, float]:
    scales = {}
    for item in text.split(","):
        name, equals, value = item.strip().partition("=")
        try:
            scales[name] = float(value)
        except ValueError:
            equals = ""
        if not equals or not name or abs(scales[name]) == float("inf") or scales[name] != scales[name]:
            raise argparse.ArgumentTypeError(f"{item!r}: expected NAME=SCALE")
    return scales


if __name__ == "__main__":
    sys.exit(main())
