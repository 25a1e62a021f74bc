#!/usr/bin/env python3
"""
Compares recognition runs on the same utterances: is the difference in WER more than luck? And the n-best oracle WERs.

The first run is the baseline; each other one is compared with it, per part of the corpus: difference in WER with its
95 % interval (paired bootstrap over utterances), matched pairs test on word errors of segments (MAPSSWE, as in NIST's
sc_stats), McNemar's test on utterances that only one run has right. The oracle is the WER of the best hypothesis among
the first n of each list, of each run and of all lists together.

  python tools/compare_runs.py output/demo_recog_labelsync/nbest.jsonl output/demo_recog_timesync/nbest.jsonl
  python tools/compare_runs.py A/nbest.jsonl B/nbest.jsonl --differences 20 --json ab.json
  python tools/compare_runs.py A/nbest.jsonl B/nbest.jsonl --merge both.jsonl
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from recog.analysis.arrays import count_word_errors, make_arrays
from recog.analysis.merging import merge_runs
from recog.analysis.runs import AnalysisError, Run, check_same_references, load_runs
from recog.analysis.significance import Comparison, compare_words
from recog.nbest import NBestFormatError, NBestWriter, Utterance
from recog.text import DEFAULT_NORMALISER
from recog.wer import align_words, format_alignment, format_table
from tools.cli import make_parser, refuse_nbest_names, run_main, write_json

__all__ = ["main"]

TOTAL = "total"


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: command line without the program; None: of this process
    :return: exit code
    """
    args = _parse_args(argv)
    return run_main(lambda: _main(args), errors=(AnalysisError, NBestFormatError))


def _main(args: argparse.Namespace) -> None:
    refuse_nbest_names({"--json": args.json})
    if args.merge and os.path.exists(args.merge):
        raise AnalysisError(f"--merge {args.merge}: exists already, remove it first")
    runs = load_runs(args.nbest)
    check_same_references(runs)
    record = _compare(runs, args)
    if args.merge:
        header, utterances = merge_runs(runs)
        with NBestWriter(args.merge, header) as writer:
            for utt in utterances:
                writer.write(utt)
        num_hyps = sum(len(utt.hyps) for utt in utterances)
        print(f"\n{args.merge}: {len(utterances)} utterances, {num_hyps} hypotheses")
    if args.json:
        write_json(args.json, record)


def _parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("nbest", metavar="NBEST", nargs="+", help="n-best files; the first is the baseline")
    parser.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="samples (default: 1000)")
    parser.add_argument("--seed", type=int, default=1, help="of the bootstrap (default: 1)")
    parser.add_argument(
        "--differences", type=int, default=0, metavar="N", help="also print the N utterances that differ most in errors"
    )
    parser.add_argument("--merge", metavar="FILE", help="write the union of the n-best lists (same components needed)")
    parser.add_argument("--markdown", action="store_true", help="print the tables in Markdown")
    parser.add_argument("--json", metavar="FILE", help="write all numbers as JSON")
    args = parser.parse_args(argv)
    if args.merge and len(args.nbest) < 2:
        parser.error("--merge needs at least two n-best files")
    if args.bootstrap < 1:
        parser.error("--bootstrap must be at least 1")
    return args


def _compare(runs: Sequence[Run], args: argparse.Namespace) -> dict[str, Any]:
    """:return: for JSON"""
    common = set.intersection(*({utt.seq_tag for utt in run.utterances if utt.ref is not None} for run in runs))
    if not common:
        raise AnalysisError("no utterance with a reference is in all runs: nothing to compare")
    for run in runs:
        others = len(run.utterances) - len(common)
        if others:
            print(f"note: {run.name}: {others} utterance(s) are not in all runs, or without reference", file=sys.stderr)
    utterances = [[utt for utt in run.utterances if utt.seq_tag in common] for run in runs]
    names = [run.name for run in runs]
    comparisons = []
    baseline = utterances[0]
    for name, others in zip(names[1:], utterances[1:], strict=True):
        for part, result in _by_part(baseline, others, args).items():
            comparisons.append({"a": names[0], "b": name, "part": part, **result.as_dict()})
    if comparisons:
        print(_comparison_table(comparisons, markdown=args.markdown), end="\n\n")
        print(f"WER A: {names[0]}. Small p: the difference is hardly luck (two-sided tests).", end="\n\n")
    oracles = _oracles(names, runs, utterances)
    print(_oracle_table(oracles, markdown=args.markdown))
    differences = []
    for name, others in zip(names[1:], utterances[1:], strict=True):
        listed = _differences(baseline, others, args.differences)
        differences += [{"a": names[0], "b": name, **item} for item in listed]
        _print_differences(names[0], name, baseline, others, listed)
    return {
        "format": 1,
        "runs": [{"run": run.name, "file": run.file, "search": run.header.search} for run in runs],
        "num_utts": len(common),
        "comparisons": comparisons,
        "oracle": oracles,
        "differences": differences,
    }


def _words(utt: Utterance) -> list[str]:
    """:return: of the first hypothesis; none without one"""
    return DEFAULT_NORMALISER.words(utt.hyps[0].text) if utt.hyps else []


def _by_part(a: Sequence[Utterance], b: Sequence[Utterance], args: argparse.Namespace) -> dict[str, Comparison]:
    """:return: part -> comparison, and the total if there are several parts"""
    triples: dict[str, list] = {}
    for utt_a, utt_b in zip(a, b, strict=True):
        triple = (DEFAULT_NORMALISER.words(utt_a.ref or ""), _words(utt_a), _words(utt_b))
        triples.setdefault(utt_a.part, []).append(triple)
    if len(triples) > 1:
        triples[TOTAL] = [triple for part in triples.values() for triple in part]
    return {part: compare_words(t, samples=args.bootstrap, seed=args.seed) for part, t in triples.items()}


def _comparison_table(comparisons: Sequence[dict[str, Any]], *, markdown: bool) -> str:
    header = [
        "run B",
        "part",
        "utts",
        "words",
        "WER A",
        "WER B",
        "B - A",
        "95 %",
        "better",
        "p matched",
        "only A right",
    ]
    header += ["only B right", "p McNemar"]
    rows = []
    for item in comparisons:
        wer_a, wer_b = item["wer_percent"]
        interval, better, pairs = item["difference_confidence_95"], item["probability_b_better"], item["mcnemar"]
        rows.append(
            [
                item["b"],
                item["part"] or "-",
                str(item["num_utts"]),
                str(item["num_ref_words"]),
                "-" if wer_a is None else f"{wer_a:.2f}",
                "-" if wer_b is None else f"{wer_b:.2f}",
                "-" if wer_a is None else f"{wer_b - wer_a:+.2f}",
                "-" if interval is None else "{:+.2f} ... {:+.2f}".format(*interval),
                "-" if better is None else f"{100 * better:.0f} %",
                _p_value(item["matched_pairs"]["p"]),
                str(pairs["only_a"]),
                str(pairs["only_b"]),
                _p_value(pairs["p"]),
            ]
        )
    return format_table(header, rows, num_text_columns=2, markdown=markdown)


def _p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.0005 else "<0.001"


def _oracles(
    names: Sequence[str], runs: Sequence[Run], utterances: Sequence[Sequence[Utterance]]
) -> list[dict[str, Any]]:
    """:return: for each run, and all together, the oracle WER of the first 1, 2, 4, ... hypotheses"""
    all_arrays = [make_arrays(run.header, utts, components=[]) for run, utts in zip(runs, utterances, strict=True)]
    sizes = [arrays.valid.shape[1] for arrays in all_arrays]
    lengths = [n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n < max(sizes)] + [max(sizes)]
    words = all_arrays[0].num_words
    rows = []
    for name, arrays in zip(names, all_arrays, strict=True):
        errors = [int(arrays.oracle_errors(n).sum()) for n in lengths]
        rows.append({"run": name, "errors": errors})
    if len(runs) > 1:
        union = [np.min([arrays.oracle_errors(n) for arrays in all_arrays], axis=0) for n in lengths]
        rows.append({"run": "all together", "errors": [int(errors.sum()) for errors in union]})
    for row in rows:
        row["n"] = lengths
        row["wer_percent"] = [100.0 * errors / words if words else None for errors in row["errors"]]
    return rows


def _oracle_table(oracles: Sequence[dict[str, Any]], *, markdown: bool) -> str:
    header = ["oracle WER % of", *(f"n={n}" for n in oracles[0]["n"])]
    rows = [[row["run"], *("-" if w is None else f"{w:.2f}" for w in row["wer_percent"])] for row in oracles]
    return format_table(header, rows, num_text_columns=1, markdown=markdown)


def _differences(a: Sequence[Utterance], b: Sequence[Utterance], number: int) -> list[dict[str, Any]]:
    """:return: the utterances with the largest differences in word errors"""
    found = []
    for utt_a, utt_b in zip(a, b, strict=True) if number else []:
        ref = DEFAULT_NORMALISER.words(utt_a.ref or "")
        errors = [count_word_errors(ref, _words(utt)) for utt in (utt_a, utt_b)]
        if errors[0] != errors[1]:
            found.append({"seq_tag": utt_a.seq_tag, "errors": errors})
    found.sort(key=lambda item: -abs(item["errors"][1] - item["errors"][0]))
    return found[:number]


def _print_differences(
    name_a: str, name_b: str, a: Sequence[Utterance], b: Sequence[Utterance], listed: Sequence[dict[str, Any]]
) -> None:
    utts = {utt.seq_tag: (utt, other) for utt, other in zip(a, b, strict=True)}
    for item in listed:
        ref = DEFAULT_NORMALISER.words(utts[item["seq_tag"]][0].ref or "")
        print(f"\n{item['seq_tag']}")
        for name, utt, errors in zip((name_a, name_b), utts[item["seq_tag"]], item["errors"], strict=True):
            print(f"{name}: {errors} error(s)\n{format_alignment(align_words(ref, _words(utt)))}")


if __name__ == "__main__":
    sys.exit(main())
