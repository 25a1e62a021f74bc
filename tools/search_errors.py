#!/usr/bin/env python3
"""
Search errors: how often does the reference score better than what the search found?

Reads pairs of n-best files: the recognition, and forced scores of the references with the same models, scales and
search options. Each utterance is correct, a search error (the reference scores better: the search missed it), or a
model error (the reference scores worse: no search helps). The audit compares the scores of hypotheses that are in both
files: forced to its own labels, a hypothesis must get its own score.

  python tools/search_errors.py output/demo_recog_labelsync/nbest.jsonl output/demo_forced_labelsync/nbest.jsonl
  python tools/search_errors.py RECOG1 FORCED1 RECOG2 FORCED2 --parts dev --list 10 --json errors.json
  python tools/search_errors.py --run configs/demo_recog_timesync.config configs/demo_forced_timesync.config \\
      --parts dev ++recombination sum ++beam_size 4
  python tools/search_errors.py --beams 1,2,4,8,16,32,64 configs/demo_recog_labelsync.config \\
      configs/demo_forced_labelsync.config --parts dev --plot beams.png ++ctc_scale 0.3

--run does all that is needed with rnn.py: the search, forced scores of the references and of all hypotheses.
--beams runs the search with each beam size (a run that has finished before is not repeated) and gives WER, search
errors and real-time factor over the beam size, as table and plot.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from recog.analysis.beam_curve import beam_curve, plot_beam_curve
from recog.analysis.runs import AnalysisError, Run, load_run, select_parts
from recog.analysis.search_errors import Audit, SearchErrors, audit_forced_scores, count_search_errors
from recog.analysis.segmentation import segmentations
from recog.nbest import Hypothesis, NBestHeader, NBestWriter
from recog.text import DEFAULT_NORMALISER
from recog.vocab import Vocab, load_vocab
from recog.wer import align_words, format_alignment, format_table, run_name
from tools.cli import make_parser, refuse_nbest_names, run_main, split_overrides, write_json

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: command line without the program; None: of this process
    :return: exit code
    """
    args = _parse_args(argv)
    return run_main(lambda: _main(args), errors=(ValueError,))


def _main(args: argparse.Namespace) -> None:
    refuse_nbest_names({"--json": args.json, "--plot": args.plot})
    labels_of = load_vocab(args.vocab).text_to_labels if args.vocab else None
    if args.run:
        args.name = os.path.splitext(os.path.basename(args.files[0]))[0]
        args.files, args.forced_hyps, args.segmented = _run_all(args)
    record = _beams(args, labels_of) if args.beams else _pairs(args, labels_of)
    if args.json:
        write_json(args.json, record)


def _parse_args(argv: list[str] | None) -> argparse.Namespace:
    argv, overrides = split_overrides(argv)
    parser = make_parser(__doc__)
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="RECOG FORCED [RECOG FORCED ...]; with --run and --beams: CONFIG FORCED_CONFIG",
    )
    parser.add_argument(
        "--forced-hyps",
        metavar="FILE",
        action="append",
        default=[],
        help="forced scores of the hypotheses of RECOG (once for each pair of files): for the audit",
    )
    parser.add_argument("--parts", type=_words, metavar="P,P", help="parts of the corpus (default: all)")
    parser.add_argument("--list", type=int, default=0, metavar="N", help="print the N worst search errors")
    parser.add_argument(
        "--vocab", metavar="FILE", help="description of the vocabulary (vocab/<name>.json of the corpus)"
    )
    parser.add_argument(
        "--best-segmentation",
        action="store_true",
        help="the reference scores what its best segmentation in the file scores, instead of the canonical one",
    )
    parser.add_argument("--markdown", action="store_true", help="print the tables in Markdown")
    parser.add_argument("--json", metavar="FILE", help="write all numbers, with every utterance")
    runs = parser.add_argument_group("with runs of rnn.py (++ options at the end go to them)")
    runs.add_argument("--run", action="store_true", help="search, score references and hypotheses, count")
    runs.add_argument(
        "--segmentations",
        type=int,
        default=0,
        metavar="N",
        help="with --run: also score N segmentations of each reference and count with the best (needs --vocab)",
    )
    runs.add_argument("--beams", type=_numbers, metavar="N,N", help="the curve over these beam sizes")
    runs.add_argument("--forced", metavar="FILE", help="forced scores of the references, instead of FORCED_CONFIG")
    runs.add_argument("--plot", metavar="FILE", help="write the curve as picture (.png, .svg, .pdf)")
    runs.add_argument(
        "--output-dir", metavar="DIR", help="of the runs (default: output/<config name>_beams or _errors)"
    )
    args = parser.parse_args(argv)
    args.overrides, args.segmented = overrides, None
    num_files = len(args.files)
    if args.run and args.beams:
        parser.error("--run and --beams: choose one")
    if args.beams:
        if num_files > 2 or (args.forced and num_files == 2):
            parser.error("--beams needs CONFIG, and FORCED_CONFIG or --forced FILE (or none of them)")
    elif args.run:
        if num_files != 2:
            parser.error("--run needs CONFIG FORCED_CONFIG")
    elif num_files % 2:
        parser.error("expected pairs of files: recognition, forced scores")
    if args.segmentations < 0 or (args.segmentations and not (args.run and args.vocab)):
        parser.error("--segmentations N goes with --run and --vocab")
    if args.forced_hyps and (args.run or args.beams or len(args.forced_hyps) != num_files // 2):
        parser.error("--forced-hyps: expected one for each pair of n-best files")
    for option, modes in (("forced", "--beams"), ("plot", "--beams"), ("output_dir", "--run or --beams")):
        if getattr(args, option) and not (args.beams or (args.run and option == "output_dir")):
            parser.error(f"--{option.replace('_', '-')} goes with {modes}")
    if overrides and not (args.run or args.beams):
        parser.error(f"{overrides[0]}: options of a search go with --run or --beams")
    return args


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[int]:
    sizes = sorted({int(word) for word in _words(text)})
    if not sizes or sizes[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected beam sizes >= 1")
    return sizes


def _load(file: str, args: argparse.Namespace, name: str | None = None) -> Run:
    run = load_run(file, name=name)
    return select_parts(run, args.parts) if args.parts else run


# ---- runs of rnn.py


def _rnn(config: str, overrides: Sequence[str], output_dir: str) -> str:
    """
    :param config:
    :param overrides: ++ options
    :param output_dir: of the run; if it has finished before, it is not repeated
    :return: its n-best file
    :raises AnalysisError: it failed
    """
    if not os.path.isfile(config):
        raise AnalysisError(f"{config} does not exist")
    command = [config, *overrides, "++output_dir", output_dir]
    print("+ rnn.py " + " ".join(command), flush=True)
    exit_code = subprocess.run([sys.executable, "-m", "returnn", *command]).returncode
    if exit_code:
        raise AnalysisError(f"the run failed with exit code {exit_code}; its log is {output_dir}/returnn.log")
    return os.path.join(output_dir, "nbest.jsonl")


def _folder(args: argparse.Namespace, ending: str) -> str:
    name = os.path.splitext(os.path.basename(args.files[0]))[0]
    return args.output_dir or os.path.join("output", name + ending)


def _overrides(args: argparse.Namespace) -> list[str]:
    return [*args.overrides, *(["++recog_parts", ",".join(args.parts)] if args.parts else [])]


def _run_all(args: argparse.Namespace) -> tuple[list[str], list[str], str | None]:
    """
    :return: n-best files of the search and of the forced references; that of the forced hypotheses; that of other
        segmentations of the references
    """
    config, forced_config = args.files
    folder, overrides = _folder(args, "_errors"), _overrides(args)
    recognition = _rnn(config, overrides, os.path.join(folder, "search"))
    references = _rnn(forced_config, overrides, os.path.join(folder, "references"))
    hyps = _rnn(forced_config, [*overrides, "++nbest_file", recognition], os.path.join(folder, "hypotheses"))
    segmented = None
    if args.segmentations:
        given = os.path.join(folder, f"segmentations{args.segmentations}.jsonl")
        if not os.path.exists(given):  # written anew, it would be another input for a run that has finished
            _write_segmentations(given, load_run(recognition), load_vocab(args.vocab), args.segmentations)
        segmented_dir = os.path.join(folder, f"segmentations{args.segmentations}")
        segmented = _rnn(forced_config, [*overrides, "++nbest_file", given], segmented_dir)
    return [recognition, references], [hyps], segmented


def _write_segmentations(filename: str, run: Run, vocab: Vocab, number: int) -> None:
    """Writes segmentations of the references as hypotheses without scores, for the forced config."""
    with NBestWriter(filename, NBestHeader("segmentations", {}, vocab=vocab.describe())) as writer:
        for utt in run.utterances:
            lists = segmentations(vocab, utt.ref or "", number=number)
            hyps = [Hypothesis(labels, vocab.labels_to_text(labels), 0.0, {}) for labels in lists]
            writer.write(replace(utt, hyps=hyps, error=None))


# ---- pairs of files


def _pairs(args: argparse.Namespace, labels_of: Callable[[str], Sequence[int]] | None) -> dict[str, Any]:
    """:return: for JSON"""
    names = [args.name] if args.run else [run_name(file) for file in args.files[::2]]
    rows, audit_rows, records, listings = [], [], [], []
    hyps_files = args.forced_hyps or [None] * len(names)
    triples = zip(args.files[::2], args.files[1::2], hyps_files, names, strict=True)
    for recog_file, forced_file, hyps_file, name in triples:
        run = _load(recog_file, args, name if names.count(name) == 1 else recog_file)
        forced = [load_run(file) for file in (forced_file, hyps_file) if file]
        errors = count_search_errors(
            run,
            forced[0],
            forced_hyps=forced[1] if hyps_file else None,
            labels_of=labels_of,
            best_segmentation=args.best_segmentation,
        )
        audit = audit_forced_scores(run, *forced)
        rows.append(_row(run.name, run, errors))
        best_segmentation = None
        if args.segmented:
            segmented = load_run(args.segmented)
            best = count_search_errors(run, segmented, forced_hyps=forced[1], best_segmentation=True)
            rows.append(_row(f"{run.name}, best segmentation", run, best))
            best_segmentation = {key: value for key, value in best.as_dict().items() if key != "utterances"}
            best_segmentation["num_better_than_canonical"] = _num_better(errors, best)
        audit_rows.append(_audit_row(run, audit))
        listings.append((run, errors, audit))
        records.append(
            {
                "run": run.name,
                "file": run.file,
                "forced_file": forced_file,
                "search": run.header.search,
                "scales": run.header.scales,
                "parts": run.parts,
                "best_segmentation": args.best_segmentation,
                **errors.as_dict(),
                "audit": vars(audit),
                "of_best_segmentation": best_segmentation,
            }
        )
    header = ["run", "search", "utts", "WER %", "search err %", "model err %", "tie %", "impossible %", "correct %"]
    print(format_table([*header, "WER % without s.e."], rows, num_text_columns=2, markdown=args.markdown), end="\n\n")
    header = ["audit: run", "hyps in both", "other score", "largest gap"]
    print(format_table(header, audit_rows, num_text_columns=1, markdown=args.markdown))
    for run, errors, audit in listings:
        _print_details(run, errors, audit, args)
    for record in records if args.segmented else []:
        better = record["of_best_segmentation"]["num_better_than_canonical"]
        print(
            f"  {better} of {record['num_utts']} references score better in another segmentation than in the canonical"
            f" one (best of up to {args.segmentations})"
        )
    return {"format": 1, "pairs": records}


def _num_better(canonical: SearchErrors, best: SearchErrors) -> int:
    """:return: number of references that score better in another segmentation than in the canonical one"""
    scores = {utt.seq_tag: utt.ref_score for utt in canonical.utterances}
    number = 0
    for utt in best.utterances:
        score = scores[utt.seq_tag]
        number += utt.ref_score is not None and (score is None or utt.ref_score > score + 1e-3)
    return number


def _row(name: str, run: Run, errors: SearchErrors) -> list[str]:
    def percent(kind: Any) -> str:
        return f"{errors.percent(kind):.2f}"

    correct = errors.percent("correct") + errors.percent("segmentation")
    wers = ["-" if wer is None else f"{wer:.2f}" for wer in (errors.wer, errors.wer_without_search_errors)]
    kinds = [percent(kind) for kind in ("search_error", "model_error", "tie", "impossible")]
    return [name, run.header.search, str(errors.num_utts), wers[0], *kinds, f"{correct:.2f}", wers[1]]


def _audit_row(run: Run, audit: Audit) -> list[str]:
    return [run.name, str(audit.num_hyps), str(audit.num_different), f"{audit.max_gap:.2g}"]


def _print_details(run: Run, errors: SearchErrors, audit: Audit, args: argparse.Namespace) -> None:
    notes = []
    if not audit.num_hyps:
        notes.append("no hypothesis is in both files: the scores could not be audited")
    if audit.num_different:
        what = f"{audit.num_different} hypotheses get another score when forced ({audit.num_first_higher} a higher one)"
        if run.header.search == "time_sync" and audit.num_first_higher == audit.num_different:
            what += ": alignments were pruned (a larger beam, or ++exact_ctc True, closes the gap)"
        else:
            what += ": are these the same models and options?"
        notes.append(f"{what}. {'; '.join(audit.examples[:2])}")
    segmentation = errors.count("segmentation")
    if segmentation:
        notes.append(f"{segmentation} hypotheses have the words of the reference in other labels (counted as correct)")
    silent = sum(utt.search_error and not utt.word_errors for utt in errors.utterances)
    if silent:
        notes.append(f"{silent} of the search errors have no word error (other segmentation)")
    for kind, parts in errors.component_means().items():
        gaps = ", ".join(f"{name} {value:+.3f}" for name, value in parts.items())
        notes.append(f"mean gap (reference - hypothesis, scaled) in a {kind.replace('_', ' ')}: {gaps}")
    if notes:
        print(f"\n{run.name}:")
    for note in notes:
        print(f"  {note}")
    for utt in [utt for utt in errors.utterances if utt.search_error][: args.list]:
        gap = "no hypothesis" if utt.gap is None else f"gap {utt.gap:.4f}"
        parts = ", ".join(f"{name} {value:+.3f}" for name, value in utt.component_gaps.items())
        place = "not in the n-best list" if utt.rank is None else f"place {utt.rank} of the n-best list"
        print(f"\n{utt.seq_tag}: {gap} ({parts}); reference {place}")
        pairs = align_words(DEFAULT_NORMALISER.words(utt.ref), DEFAULT_NORMALISER.words(utt.hyp))
        print(format_alignment(pairs))


# ---- over the beam size


def _beams(args: argparse.Namespace, labels_of: Callable[[str], Sequence[int]] | None) -> dict[str, Any]:
    """:return: for JSON"""
    config = args.files[0]
    name = os.path.splitext(os.path.basename(config))[0]
    folder, overrides = _folder(args, "_beams"), _overrides(args)
    runs = {}
    for size in args.beams:
        nbest_file = _rnn(config, [*overrides, "++beam_size", str(size)], os.path.join(folder, f"beam{size}"))
        runs[size] = _load(nbest_file, args, f"beam {size}")
    forced_file = args.forced
    if len(args.files) == 2:
        forced_file = _rnn(args.files[1], overrides, os.path.join(folder, "references"))
    forced = load_run(forced_file) if forced_file else None
    points = beam_curve(runs, forced=forced, labels_of=labels_of, best_segmentation=args.best_segmentation)
    rows = []
    for point in points:
        values = [point.wer, point.search_errors, point.worse_than_best_known, point.model_errors]
        cells = ["-" if value is None else f"{value:.2f}" for value in values]
        rtf = "-" if point.real_time_factor is None else f"{point.real_time_factor:.4f}"
        rows.append([str(point.beam_size), *cells, rtf])
    header = ["beam", "WER %", "search err %", "any better %", "model err %", "RTF"]
    print("\n" + format_table(header, rows, num_text_columns=0, markdown=args.markdown))
    print(
        f"{name}, {points[0].num_utts} utterances. Search err: the reference scores better. Any better: the"
        " reference or what another beam size found does. RTF: encoder and search, on this machine."
    )
    if args.plot:
        plot_beam_curve(points, args.plot, title=f"{name}, {points[0].num_utts} utterances")
        print(f"Plot: {args.plot}")
    return {
        "format": 1,
        "config": config,
        "overrides": overrides,
        "forced_file": forced_file,
        "search": runs[args.beams[0]].header.search,
        "parts": runs[args.beams[0]].parts,
        "points": [point.as_dict() for point in points],
    }


if __name__ == "__main__":
    sys.exit(main())
