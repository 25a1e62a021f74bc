#!/usr/bin/env python3
"""
Picture of one utterance: log-mel features, CTC posteriors, attention weights and CTC alignment on one time axis.

The label sequence is a hypothesis of an n-best file (by default the best one), its reference (--hyp ref), or, for any
audio file, a text (--text) or what greedy CTC search finds.

  python tools/plot_alignment.py output/demo_recog_labelsync/nbest.jsonl dev/sp12-0003 --output alignment.png
  python tools/plot_alignment.py output/demo_recog_labelsync/nbest.jsonl dev/sp12-0003 --hyp ref --json alignment.json
  python tools/plot_alignment.py --audio FILE.flac --checkpoint output/demo_train/models/epoch.012.pt \\
      --vocab data/demo/vocab/spm_unigram_80.json --text "turn left now"

Checkpoint, vocabulary and corpus of an n-best file are those of its run; other places can be given.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import zipfile
from typing import Any

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from recog.analysis.runs import AnalysisError, load_run
from recog.json_file import JsonError, read_json_object
from recog.nbest import Utterance
from recog.prepared_corpus import iter_listing
from recog.vocab import Vocab, load_vocab
from recog.wer import format_table
from tools.cli import make_parser, run_main, write_json

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: command line without the program; None: of this process
    :return: exit code
    """
    args = _parse_args(argv)
    return run_main(lambda: _main(args), errors=(ValueError,))


def _parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("nbest", metavar="NBEST", nargs="?", help="n-best file of a run")
    parser.add_argument("tag", metavar="TAG", nargs="?", help="sequence tag of the utterance, e.g. dev/sp12-0003")
    parser.add_argument("--hyp", default="1", metavar="N", help="place in the n-best list, or ref (default: 1)")
    parser.add_argument("--audio", metavar="FILE", help="audio file, instead of an utterance of the corpus")
    parser.add_argument("--text", help="look at this text (in its canonical segmentation)")
    parser.add_argument("--checkpoint", metavar="FILE", help="of the model (default: that of the run)")
    parser.add_argument("--vocab", metavar="FILE", help="description of the vocabulary, vocab/<name>.json")
    parser.add_argument("--corpus", metavar="DIR", help="prepared corpus (default: that of the run)")
    parser.add_argument("--ctc-layer", type=int, metavar="N", help="CTC head on this encoder layer (default: top-most)")
    parser.add_argument("--output", metavar="FILE", help=".png, .svg or .pdf (default: alignment_<tag>.png)")
    parser.add_argument("--json", metavar="FILE", help="write labels with times")
    args = parser.parse_args(argv)
    if args.audio:
        if args.nbest or not (args.checkpoint and args.vocab):
            parser.error("--audio needs --checkpoint and --vocab, and no n-best file")
    elif not (args.nbest and args.tag):
        parser.error("expected an n-best file and a tag, or --audio FILE")
    if args.hyp != "ref" and not re.fullmatch(r"[1-9]\d*", args.hyp):
        parser.error("--hyp: expected a number from 1, or ref")
    if args.output and os.path.splitext(args.output)[1] not in (".png", ".svg", ".pdf"):
        parser.error("--output: expected a name that ends with .png, .svg or .pdf")
    return args


def _main(args: argparse.Namespace) -> int:
    labels, what = None, "greedy CTC"
    if args.audio:
        vocab, checkpoint, name = load_vocab(args.vocab), args.checkpoint, os.path.basename(args.audio)
        waveform = _read_audio(args.audio, args.audio, peak_normalization=True)
    else:
        run = load_run(args.nbest)
        utt = next((utt for utt in run.utterances if utt.seq_tag == args.tag), None)
        if utt is None:
            first = run.utterances[0].seq_tag
            raise AnalysisError(f"{args.nbest}: no utterance {args.tag!r}; the first one is {first!r}")
        options = run.header.options
        folder = args.corpus or _corpus_folder(options, run.header.vocab, utt.part, args.nbest)
        vocab = load_vocab(args.vocab or os.path.join(folder, "vocab", f"{run.header.vocab.get('name')}.json"))
        checkpoint = args.checkpoint or _checkpoint_of_run(args.nbest)
        name = utt.seq_tag
        waveform = _corpus_audio(folder, utt, peak_normalization=options.get("peak_normalization", True))
        labels, what = _labels_of(utt, args.hyp, vocab)
    if args.text is not None:
        labels, what = vocab.text_to_labels(args.text), "given text"

    # Imports of torch and RETURNN take seconds: not before the input is known to be right.
    from configs.base.run import BEHAVIOR_VERSION
    from recog.analysis.alignment import label_names, view_utterance
    from recog.analysis.alignment_plot import plot_utterance
    from recog.standalone import load_model

    model = load_model(checkpoint, behavior_version=BEHAVIOR_VERSION)
    if model.target_dim.dimension != vocab.num_labels:
        num_labels = model.target_dim.dimension
        raise AnalysisError(f"{checkpoint} has {num_labels} labels, but {vocab.name} has {vocab.num_labels}")
    view = view_utterance(model, waveform, labels, ctc_layer=args.ctc_layer)
    names = label_names(vocab, view.labels)
    output = args.output or f"alignment_{re.sub(r'[^A-Za-z0-9._-]+', '_', name)}.png"
    text = vocab.labels_to_text(view.labels)
    plot_utterance(view, output, names=names, title=f"{name} ({what}): {text}")
    segments = [
        {"label": s.label, "name": vocab.label_name(s.label), "begin": round(s.begin, 4), "end": round(s.end, 4)}
        for s in view.segments
    ]
    rows = [[s["name"], str(s["label"]), f"{s['begin']:.2f}", f"{s['end']:.2f}"] for s in segments]
    print(format_table(["label", "index", "begin [s]", "end [s]"], rows, num_text_columns=1))
    if view.alignment is None:
        print("No CTC alignment: the model has no CTC head, or the labels do not fit into the frames.")
    else:
        print(f"log-prob of the best CTC alignment: {view.alignment_score:.4f}")
    print(f"Plot: {output}")
    if args.json:
        record = {
            "format": 1,
            "seq_tag": name,
            "what": what,
            "text": text,
            "duration": view.duration,
            "frame_seconds": view.frame_seconds,
            "alignment_log_prob": view.alignment_score,
            "labels": segments,
        }
        write_json(args.json, record)
    return 0


def _labels_of(utt: Utterance, hyp: str, vocab: Vocab) -> tuple[list[int], str]:
    """:return: labels to look at, what they are"""
    if hyp == "ref":
        if utt.ref is None:
            raise AnalysisError(f"utterance {utt.seq_tag!r} has no reference")
        return vocab.text_to_labels(utt.ref), "reference"
    if int(hyp) > len(utt.hyps):
        raise AnalysisError(f"utterance {utt.seq_tag!r} has {len(utt.hyps)} hypotheses, no number {hyp}")
    return utt.hyps[int(hyp) - 1].labels, f"hypothesis {hyp}"


def _checkpoint_of_run(nbest_file: str) -> str:
    """:return: what options.json beside the n-best file says"""
    filename = os.path.join(os.path.dirname(nbest_file), "options.json")
    try:
        checkpoint = read_json_object(filename).get("checkpoint")
    except (FileNotFoundError, JsonError):
        checkpoint = None
    if not isinstance(checkpoint, str):
        raise AnalysisError(f"{filename} does not say which model it was: give it with --checkpoint")
    return checkpoint


def _corpus_folder(options: dict[str, Any], vocab: dict[str, Any], part: str, nbest_file: str) -> str:
    """:return: folder of the prepared corpus with this part and this vocabulary"""
    data_dir = options.get("data_dir") or "data"
    children = sorted(os.listdir(data_dir)) if os.path.isdir(data_dir) else []
    found = []
    for folder in [data_dir, *(os.path.join(data_dir, child) for child in children)]:
        wanted = ["corpus.json", f"{part}.zip", os.path.join("vocab", f"{vocab.get('name')}.json")]
        if all(os.path.isfile(os.path.join(folder, name)) for name in wanted):
            found.append(folder)
    if len(found) != 1:
        what = f"several corpora ({', '.join(found)})" if found else f"no corpus below {os.path.abspath(data_dir)}"
        raise AnalysisError(
            f"{what} with part {part!r} and vocabulary {vocab.get('name')!r}, which {nbest_file} has: give the corpus"
            " with --corpus"
        )
    return found[0]


def _corpus_audio(folder: str, utt: Utterance, *, peak_normalization: bool) -> np.ndarray:
    """:return: [samples] of an utterance of the corpus, as RETURNN's dataset delivers them"""
    filename = os.path.join(folder, f"{utt.part}.zip")
    entry = next((entry for entry in iter_listing(filename) if entry.seq_name == utt.seq_tag), None)
    if entry is None or entry.file is None:
        raise AnalysisError(f"{filename} has no utterance {utt.seq_tag!r}: is it the corpus of this run? (--corpus)")
    with zipfile.ZipFile(filename) as archive:
        content = archive.read(f"{utt.part}/{entry.file}")
    return _read_audio(content, utt.seq_tag, peak_normalization=peak_normalization)


def _read_audio(source: str | bytes, name: str, *, peak_normalization: bool) -> np.ndarray:
    """:return: [samples] float32"""
    from tools.corpus.audio import AudioError, read_audio
    from tools.transcription.audio import to_mono_16khz

    try:
        samples = to_mono_16khz(*read_audio(source))
    except AudioError as exc:
        raise AnalysisError(f"{name}: not a readable audio file ({exc})") from None
    peak = np.abs(samples).max()
    return samples / peak if peak_normalization and peak else samples


if __name__ == "__main__":
    sys.exit(main())
