#!/usr/bin/env python3
"""
Word error rates of recognition runs, from their n-best files.

Prints a table with a row for each run and part of the corpus: number of utterances and reference words, word error
rate, substitutions, insertions, deletions, sentence error rate. References and hypotheses are normalised alike: lower
case, <unk> left out, contractions joined ("it 's" = "it's"); see recog/text.py.

  python tools/score.py output/demo_recog_ctc/nbest.jsonl output/demo_recog_labelsync/nbest.jsonl
  python tools/score.py output/ted2_recog_ctc/nbest.jsonl --alignments errors.txt --stm ref.stm --ctm hyp.ctm
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from recog.analysis.runs import AnalysisError, Run, check_same_references, load_runs
from recog.nbest import NBestFormatError, Utterance, open_text_for_writing
from recog.text import TextNormaliser
from recog.wer import RunScore, align_words, format_alignment, score_table, score_utterances
from tools.cli import make_parser, refuse_nbest_names, run_main, write_json

__all__ = ["main"]


@dataclass(frozen=True)
class ScoredRun(Run):
    """One n-best file and its word errors."""

    score: RunScore


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: command line without the program; None: of this process
    :return: exit code
    """
    args = _parse_args(argv)
    return run_main(lambda: _main(args), errors=(AnalysisError, NBestFormatError))


def _main(args: argparse.Namespace) -> int:
    outputs = {f"--{option}": getattr(args, option) for option in ("json", "alignments", "ctm", "stm")}
    refuse_nbest_names(outputs)
    normaliser = TextNormaliser(lower_case=not args.keep_case, drop_unknown=not args.keep_unk)
    runs = [
        ScoredRun(
            **vars(run), score=score_utterances(run.utterances, normaliser=normaliser, sclite_costs=args.sclite_costs)
        )
        for run in load_runs(args.nbest)
    ]
    check_same_references(runs, normaliser=normaliser)
    _write_outputs(runs, args, normaliser)
    print(score_table({run.name: (run.header.search, run.score) for run in runs}, markdown=args.markdown))
    for note in _notes(runs):
        print(f"note: {note}", file=sys.stderr)
    if not any(run.score.total.num_utts for run in runs):
        raise AnalysisError("no utterance has a reference: nothing to score")
    return 0


def _parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("nbest", metavar="NBEST", nargs="+", help="n-best file of a run (nbest.jsonl or .jsonl.gz)")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    parser.add_argument("--json", metavar="FILE", help="write all counts and rates as JSON")
    parser.add_argument(
        "--alignments",
        metavar="FILE",
        nargs="?",
        const="-",
        help="write the alignment of each utterance: reference, hypothesis, errors (no FILE: print it before the table;"
        " then this option must come after the n-best files)",
    )
    sclite = parser.add_argument_group("files for sclite (the text is normalised)")
    sclite.add_argument(
        "--trn", metavar="DIR", help="write <run>.<part>.ref.trn and <run>.<part>.hyp.trn into this folder"
    )
    sclite.add_argument(
        "--ctm",
        metavar="FILE",
        help="write the hypotheses of one run as CTM. The search gives no times: the words of an utterance are spread"
        " evenly over its duration, good for scoring per utterance, but they are no time stamps",
    )
    sclite.add_argument("--stm", metavar="FILE", help="write the references of one run as STM, to go with --ctm")
    parser.add_argument("--keep-case", action="store_true", help="compare words with their case")
    parser.add_argument("--keep-unk", action="store_true", help="count <unk> as a word")
    parser.add_argument(
        "--sclite-costs",
        action="store_true",
        help="align with the costs of sclite (substitution 4, insertion and deletion 3) instead of the smallest number"
        " of errors; can give slightly more errors",
    )
    args = parser.parse_args(argv)
    if (args.ctm or args.stm) and len(args.nbest) != 1:
        parser.error("--ctm and --stm are for a single n-best file: call the program once for each")
    return args


def _notes(runs: list[ScoredRun]) -> Iterator[str]:
    """:return: what makes rows of the table incomparable: the same part with other utterances"""
    for part in sorted({part for run in runs for part in run.score.parts}):
        tags = {run.name: {u.seq_tag for u in run.utterances if u.part == part and u.ref is not None} for run in runs}
        tags = {name: own for name, own in tags.items() if own}
        everything = set().union(*tags.values())
        missing = {name: len(everything - own) for name, own in tags.items() if own != everything}
        if missing:
            what = ", ".join(f"{number} in {name}" for name, number in missing.items())
            yield f"part {part or '-'}: the runs have different utterances (missing: {what}): do not compare these rows"


def _write_outputs(runs: list[ScoredRun], args: argparse.Namespace, normaliser: TextNormaliser) -> None:
    if args.json:
        write_json(args.json, _as_json(runs, args))
    if args.trn:
        _write_trn(runs, args.trn, normaliser)
    if args.stm:
        with open_text_for_writing(args.stm) as file:
            file.writelines(_stm_lines(runs[0], normaliser))
    if args.ctm:
        with open_text_for_writing(args.ctm) as file:
            file.writelines(_ctm_lines(runs[0], normaliser))
    if args.alignments == "-":
        sys.stdout.writelines(_alignment_lines(runs, normaliser, sclite_costs=args.sclite_costs))
    elif args.alignments:
        with open_text_for_writing(args.alignments) as file:
            file.writelines(_alignment_lines(runs, normaliser, sclite_costs=args.sclite_costs))


def _as_json(runs: list[ScoredRun], args: argparse.Namespace) -> dict:
    """:return: content of the JSON file"""
    return {
        "format": 1,
        "keep_case": args.keep_case,
        "keep_unk": args.keep_unk,
        "sclite_costs": args.sclite_costs,
        "runs": [
            {"run": run.name, "file": run.file, "search": run.header.search, **run.score.as_dict()} for run in runs
        ],
    }


def _hypothesis(utt: Utterance) -> str:
    """:return: text of the first hypothesis, empty without one"""
    return utt.hyps[0].text if utt.hyps else ""


def _utterance_id(utt: Utterance) -> str:
    """:return: tag without the part; no white space and parentheses, which separate it from the words in a trn file"""
    name = utt.seq_tag.removeprefix(utt.part + "/") if utt.part else utt.seq_tag
    return re.sub(r"\s+|[()]", "_", name) or "_"


def _speaker(utt: Utterance) -> str:
    """:return: what precedes the first "-" or "_" of the utterance id, as sclite does it"""
    return re.split("[-_]", _utterance_id(utt), maxsplit=1)[0] or "unknown"


def _write_trn(runs: list[ScoredRun], folder: str, normaliser: TextNormaliser) -> None:
    os.makedirs(folder, exist_ok=True)
    for run in runs:
        run_file = re.sub(r"[^\w.-]+", "_", run.name).strip("_.") or "run"
        for part in run.score.parts:
            utterances = [utt for utt in run.utterances if utt.part == part and utt.ref is not None]
            # Different parts give different files.
            part_file = re.sub(r"[^\w.+-]", lambda match: f"%{ord(match[0]):02x}", part)
            base = os.path.join(folder, f"{run_file}.{part_file}" if part else run_file)
            with open_text_for_writing(f"{base}.ref.trn") as file:
                file.writelines(f"{normaliser(utt.ref or '')} ({_utterance_id(utt)})\n" for utt in utterances)
            with open_text_for_writing(f"{base}.hyp.trn") as file:
                file.writelines(f"{normaliser(_hypothesis(utt))} ({_utterance_id(utt)})\n" for utt in utterances)


def _duration(utt: Utterance, run: ScoredRun, option: str) -> float:
    """:raises AnalysisError: not known"""
    if utt.duration is None:
        raise AnalysisError(f"{run.file}: {option} needs durations, but utterance {utt.seq_tag!r} has none")
    return max(utt.duration, 0.01)  # sclite needs a time, also of an utterance without audio


def _waveform(utt: Utterance) -> str:
    """:return: name of the audio in CTM and STM: every utterance is its own. A line that begins with ; is a comment."""
    return re.sub(r"\s+|^;", "_", utt.seq_tag)


def _stm_lines(run: ScoredRun, normaliser: TextNormaliser) -> Iterator[str]:
    """:return: lines "waveform channel speaker begin end text" """
    for utt in run.utterances:
        if utt.ref is not None:
            end = _duration(utt, run, "--stm")
            yield f"{_waveform(utt)} 1 {_speaker(utt)} 0.000 {end:.3f} {normaliser(utt.ref)}\n"


def _ctm_lines(run: ScoredRun, normaliser: TextNormaliser) -> Iterator[str]:
    """:return: lines "waveform channel begin duration word" """
    yield ";; The times are not measured: the words are spread evenly over the utterance.\n"
    for utt in run.utterances:
        if utt.ref is None:
            continue
        words = normaliser.words(_hypothesis(utt))
        step = _duration(utt, run, "--ctm") / max(len(words), 1)
        for i, word in enumerate(words):
            yield f"{_waveform(utt)} 1 {i * step:.3f} {step:.3f} {word}\n"


def _alignment_lines(runs: list[ScoredRun], normaliser: TextNormaliser, *, sclite_costs: bool) -> Iterator[str]:
    for run in runs:
        yield f"# {run.name} ({run.file})\n\n"
        for utt in run.utterances:
            if utt.ref is None:
                yield f"{utt.seq_tag}: no reference\n\n"
                continue
            pairs = align_words(
                normaliser.words(utt.ref), normaliser.words(_hypothesis(utt)), sclite_costs=sclite_costs
            )
            errors = sum(ref != hyp for ref, hyp in pairs)
            words = sum(ref is not None for ref, _ in pairs)
            failed = f", search failed: {utt.error}" if utt.error is not None else ""
            yield f"{utt.seq_tag}: {errors} error(s), {words} word(s){failed}\n{format_alignment(pairs)}\n\n"


if __name__ == "__main__":
    sys.exit(main())
