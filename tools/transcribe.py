#!/usr/bin/env python3
"""
Transcribes audio files: any format that libsndfile reads (WAV, FLAC, Ogg, MP3, ...), any sample rate, any channels.

The text goes to standard output, one line for each file (with several files: name, tab, text). Longer files are cut at
silence. A file that cannot be read is an error on the terminal and in the JSON file, and the others go on; then the
exit code is 1.

Times of words are those of the CTC alignment: from the first to the last frame with a label of the word. CTC marks
labels by short peaks in or near their sound, so these are not exactly the times at which words begin and end.

  python tools/transcribe.py --checkpoint output/demo_train/models/epoch.007.pt FILE.wav
  python tools/transcribe.py --checkpoint MODEL.pt --vocab data/librispeech/vocab/bpe_10k.json talk.mp3 --srt talk.srt
  python tools/transcribe.py --checkpoint MODEL.pt *.flac --ctm hyp.ctm --json hyp.json --search timesync ++beam_size 32
  python tools/transcribe.py --checkpoint MODEL.pt FILE.ogg ++lm_checkpoint output/demo_lm_train ++lm_scale 0.3

++ options are those of the recognition configs (recog/README.md) for search, CTC, LM and internal LM.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from configs.base.options import OptionError
from recog.nbest import open_text_for_writing
from recog.progress import Progress
from tools.cli import make_parser, run_main, split_overrides, write_json
from tools.corpus.audio import SAMPLE_RATE, AudioError
from tools.transcription.audio import read_mono
from tools.transcription.formats import ctm_lines, file_record, recording_names, srt_text
from tools.transcription.recognise import SEARCHES, open_recogniser

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: command line without the program; None: of this process
    :return: exit code
    """
    args = _parse_args(argv)
    return run_main(lambda: _main(args), errors=(OptionError, AudioError))


def _parse_args(argv: list[str] | None) -> argparse.Namespace:
    argv, overrides = split_overrides(argv)
    parser = make_parser(__doc__)
    parser.add_argument("files", metavar="FILE", nargs="+", help="audio file")
    parser.add_argument("--checkpoint", metavar="FILE", required=True, help="of an ASR model")
    parser.add_argument(
        "--vocab", metavar="FILE", help="description of the vocabulary, vocab/<name>.json (default: of the training)"
    )
    parser.add_argument(
        "--search", choices=SEARCHES, default="auto", help="default: labelsync with a decoder, ctc (greedy) without"
    )
    parser.add_argument(
        "--max-seconds",
        type=float,
        default=20.0,
        metavar="S",
        help="cut longer audio at silence (default: 20; choose about the longest utterances of the training)",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    parser.add_argument("--json", metavar="FILE", help="write texts, segments, scores, words with times")
    parser.add_argument("--ctm", metavar="FILE", help="write words with times for NIST's tools")
    parser.add_argument("--srt", metavar="FILE", help="write subtitles (of one file)")
    args = parser.parse_args(argv)
    if args.srt and len(args.files) > 1:
        parser.error("--srt: subtitles are of one file")
    if not args.max_seconds >= 1.0:
        parser.error("--max-seconds: expected at least 1")
    if len(overrides) % 2 or any(not name.startswith("++") for name in overrides[::2]):
        parser.error("++ options come in pairs, ++name value, behind everything else")
    args.overrides = {name[2:]: value for name, value in zip(overrides[::2], overrides[1::2], strict=True)}
    return args


def _main(args: argparse.Namespace) -> int:
    waveforms, failed = {}, {}
    for file in dict.fromkeys(args.files):  # all are looked at before the first is recognised
        try:
            waveforms[file] = read_mono(file)
        except AudioError as exc:
            failed[file] = str(exc)
            print(f"error: {exc}", file=sys.stderr)
    if not waveforms:
        return 1
    with_times = bool(args.json or args.ctm or args.srt)
    recogniser = open_recogniser(
        args.checkpoint,
        vocab_file=args.vocab,
        search=args.search,
        overrides=args.overrides,
        device=args.device,
        with_times=with_times and not _times_are_optional(args),
    )
    with_times &= bool(recogniser.model.opts.ctc_layers)
    total = sum(map(len, waveforms.values()))
    progress, before = Progress("transcription"), 0
    progress.update(0.0)
    transcripts = {}
    for file, samples in waveforms.items():

        def update(fraction: float, detail: str, before: int = before, size: int = len(samples)) -> None:
            progress.update((before + fraction * size) / total, detail)

        try:
            segments = recogniser.transcribe(
                samples, max_seconds=args.max_seconds, with_times=with_times, progress=update
            )
        except (RuntimeError, MemoryError) as exc:
            from recog.out_of_memory import first_line, is_out_of_memory

            if not is_out_of_memory(exc):
                raise
            failed[file] = f"{file}: not enough memory, try a smaller --max-seconds: {first_line(exc)}"
            print(f"error: {failed[file]}", file=sys.stderr)
            continue
        finally:
            before += len(samples)
        transcripts[file] = segments
        text = " ".join(segment.text for segment in segments if segment.text)
        print(text if len(args.files) == 1 else f"{file}\t{text}", flush=True)
        unaligned = sum(word.begin is None for segment in segments for word in segment.words)
        if with_times and unaligned:
            print(f"note: {file}: {unaligned} words have no CTC alignment (too few frames)", file=sys.stderr)
    if args.json:
        record = _record(args, recogniser, waveforms, transcripts)
        record["files"] += [{"file": file, "error": message} for file, message in failed.items()]
        write_json(args.json, record)
    if args.ctm:
        names = recording_names(list(transcripts))
        lines = [line for name, segs in zip(names, transcripts.values(), strict=True) for line in ctm_lines(name, segs)]
        _write(args.ctm, "\n".join(lines))
    if args.srt and transcripts:
        _write(args.srt, srt_text(next(iter(transcripts.values()))))
    return 1 if failed else 0


def _times_are_optional(args: argparse.Namespace) -> bool:
    """:return: whether only JSON is wanted, in which times can be null"""
    return not (args.ctm or args.srt)


def _record(args: argparse.Namespace, recogniser: Any, waveforms: dict, transcripts: dict) -> dict[str, Any]:
    return {
        "format": 1,
        "checkpoint": args.checkpoint,
        "vocab": recogniser.vocab.describe(),
        "search": type(recogniser.search).__name__.removesuffix("Options"),
        "options": {**asdict(recogniser.search), **asdict(recogniser.ctc)},
        "max_seconds": args.max_seconds,
        "files": [
            file_record(file, len(waveforms[file]) / SAMPLE_RATE, segments) for file, segments in transcripts.items()
        ],
    }


def _write(filename: str, text: str) -> None:
    with open_text_for_writing(filename) as file:
        file.write(text if text.endswith("\n") or not text else text + "\n")


if __name__ == "__main__":
    sys.exit(main())
