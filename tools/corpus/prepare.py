"""
What the preparation of all corpora has in common: arguments, parts, vocabularies, LM text, summary.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tools.cli import run_main

from .audio import AUDIO_FORMATS
from .lm_text import sources_of, text_files, write_lm_text
from .package import CorpusError, Item, Manifest, PartInfo, pack_part, part_texts, summary_table
from .vocabulary import import_bpe, make_vocab, parse_vocab_name

__all__ = ["PartSource", "Preparation", "add_common_arguments", "prepare", "run"]


@dataclass(frozen=True)
class PartSource:
    """A part of the corpus as it is distributed."""

    jobs: Callable[[], Iterable[tuple[float, Any]]]
    """Returns what ``make_items`` gets, with the fraction of the part that is done with it. Called when needed."""
    expected_num_seqs: int | None = None
    """The published number of utterances."""


@dataclass(frozen=True)
class Preparation:
    """What is different between the corpora."""

    corpus: str
    """Name in the manifest."""
    parts: dict[str, PartSource]
    make_items: Callable[..., list[Item]]
    """Makes the utterances of a job; gets the job and the keyword argument audio_format. Run in other processes."""
    normalise: Callable[[str], str]
    """Writes a line of LM text like a transcript."""
    options: dict[str, Any]
    """Further options that the parts depend on."""


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """:param parser: gets the arguments of all preparation tools"""
    parser.add_argument("src", metavar="SRC", help="the corpus as it is distributed")
    parser.add_argument("dst", metavar="DST", help="folder for the prepared corpus")
    parser.add_argument("--parts", nargs="+", metavar="PART", help="only these parts (all that are there)")
    parser.add_argument(
        "--subset", type=_at_least_one, metavar="N", help="only the first N utterances of each part, for tests"
    )
    parser.add_argument("--skip-broken", action="store_true", help="leave out utterances with problems")
    parser.add_argument("--remake", action="store_true", help="make again what is there already")
    parser.add_argument(
        "--audio-format",
        choices=tuple(AUDIO_FORMATS),
        default="flac",
        help="lossless, or Vorbis, which is smaller (%(default)s)",
    )
    vocabs = parser.add_argument_group("vocabularies")
    vocabs.add_argument(
        "--vocab",
        action="append",
        default=[],
        metavar="NAME",
        help="vocabulary to train on the train parts: spm_unigram_10k, spm_bpe_1k (SentencePiece, number of labels),"
        " bpe_5k (subword-nmt, number of merges) ... Can be repeated",
    )
    vocabs.add_argument(
        "--bpe-codes", metavar="FILE", help="take over a subword-nmt vocabulary of an old setup: merges"
    )
    vocabs.add_argument(
        "--bpe-vocab", metavar="FILE", help="its labels: a Python dict as RETURNN has it, or one label per line"
    )
    vocabs.add_argument("--vocab-name", metavar="NAME", help="name for it, such as bpe_10k")
    lm = parser.add_argument_group("text for language models")
    lm.add_argument(
        "--lm-text",
        nargs="+",
        default=[],
        metavar="FILE",
        help="texts with one sentence per line (.gz is unpacked), or folders with such files",
    )
    lm.add_argument("--lm-name", default="lm", metavar="NAME", help="name of the prepared text (%(default)s)")
    parser.add_argument(
        "--workers", type=_at_least_one, default=os.cpu_count() or 1, metavar="N", help="processes (%(default)s)"
    )


def _at_least_one(text: str) -> int:
    """Type of an argument."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: expected at least 1")
    return value


def run(get_preparation: Callable[[], Preparation], args: argparse.Namespace, *, tool: str) -> int:
    """
    :param get_preparation: looks at the source
    :param args: see :func:`add_common_arguments`
    :param tool: name, for the record
    :return: exit code. Errors are printed
    """

    def work() -> int:
        try:
            return prepare(get_preparation(), args, tool=tool)
        except OSError as exc:
            where, what = exc.filename or args.dst, exc.strerror or exc
            raise CorpusError(f"{where}: {what}; start the same command again: finished parts are kept") from None
        except KeyboardInterrupt:
            raise CorpusError("interrupted; start the same command again: finished parts are kept") from None

    return run_main(work, errors=(CorpusError, RuntimeError))


def prepare(preparation: Preparation, args: argparse.Namespace, *, tool: str) -> int:
    """
    :param preparation:
    :param args: see :func:`add_common_arguments`
    :param tool: name, for the record
    :return: exit code
    :raises CorpusError: cannot go on
    """
    _check_arguments(args)
    lm_files = text_files(args.lm_text)
    wanted = args.parts or list(preparation.parts)
    for part in wanted:
        if part not in preparation.parts:
            raise CorpusError(f"no part {part!r} in {args.src}, only {', '.join(preparation.parts)}")
    os.makedirs(args.dst, exist_ok=True)
    manifest = Manifest(args.dst, preparation.corpus, created_by=f"{tool} {_version()}")
    infos, problems = _make_parts(preparation, args, manifest, wanted)
    if infos:
        print(summary_table(infos))
    if problems:
        print(f"\n{len(problems)} problems:", *(f"  {problem}" for problem in problems[:50]), sep="\n")
        if len(problems) > 50:
            print(f"  ... and {len(problems) - 50} more")
    if missing := [part for part in wanted if part not in infos]:
        print(
            f"error: not made: {', '.join(missing)}. Repair the {len(problems)} problems listed above, or start again"
            " with --skip-broken to leave these utterances out. What is finished is kept.",
            file=sys.stderr,
        )
        return 1
    for part, info in infos.items():
        if not info.complete and args.subset is None:
            print(
                f"warning: {part} has {info.num_seqs:,} utterances"
                + (f", published are {info.expected_num_seqs:,}" if info.expected_num_seqs else "")
                + f"; {len(info.skipped)} were left out",
                file=sys.stderr,
            )
    _make_vocabs(args, manifest)
    if lm_files:
        _make_lm_text(args, manifest, lm_files, preparation.normalise)
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    """:raises CorpusError: they do not go together"""
    for name in args.vocab:
        parse_vocab_name(name)
    bpe = (args.bpe_codes, args.bpe_vocab, args.vocab_name)
    if any(bpe) and not all(bpe):
        raise CorpusError("--bpe-codes, --bpe-vocab and --vocab-name belong together")
    if args.vocab_name in args.vocab:
        raise CorpusError(f"--vocab-name {args.vocab_name}: there is --vocab {args.vocab_name} as well")
    if not re.fullmatch(r"[\w-]+", args.lm_name):
        raise CorpusError(f"--lm-name {args.lm_name}: expected only letters, digits, _ and -")


def _version() -> str:
    """:return: of this package"""
    try:
        return version("returnn-joint-aed-ctc")
    except PackageNotFoundError:
        return "(not installed)"


def _make_parts(
    preparation: Preparation, args: argparse.Namespace, manifest: Manifest, wanted: list[str]
) -> tuple[dict[str, PartInfo], list[str]]:
    """:return: the parts that are there, problems"""
    options = {"subset": args.subset, "audio_format": args.audio_format, **preparation.options}
    infos: dict[str, PartInfo] = {}
    problems: list[str] = []
    for part in wanted:
        source = preparation.parts[part]
        info = manifest.part(part)
        if info is not None and not args.remake:
            if differing := {key: info.options.get(key) for key in options if info.options.get(key) != options[key]}:
                raise CorpusError(
                    f"{part} was made with other options ({_describe_options(differing)}): start again with the same"
                    " options, or with --remake to replace it"
                )
            if not info.skipped or args.skip_broken:
                infos[part] = info
                continue
        info, found = pack_part(
            manifest,
            part,
            source.jobs(),
            functools.partial(preparation.make_items, audio_format=args.audio_format),
            options=options,
            expected_num_seqs=source.expected_num_seqs,
            skip_broken=args.skip_broken,
            subset=args.subset,
            workers=args.workers,
        )
        problems += found
        if info is not None:
            infos[part] = info
    return infos, problems


def _describe_options(options: dict[str, Any]) -> str:
    """:return: as a user types them"""
    return ", ".join(f"--{key.replace('_', '-')} {value}" for key, value in options.items())


def _make_vocabs(args: argparse.Namespace, manifest: Manifest) -> None:
    """Trains or imports the vocabularies that are wanted and not there."""
    folder = os.path.join(args.dst, "vocab")
    parts = manifest.content["parts"]
    train_parts = sorted(part for part in parts if part.startswith("train"))

    def texts(of_parts: list[str]) -> Iterator[str]:
        for part in of_parts:
            yield from part_texts(os.path.join(args.dst, parts[part]["file"]))

    for name in args.vocab:
        before = manifest.content["vocabs"].get(name)
        if before is not None and os.path.isfile(os.path.join(folder, f"{name}.json")) and not args.remake:
            if before.get("trained_on") != train_parts:
                print(
                    f"warning: vocabulary {name} was trained on {', '.join(before.get('trained_on', ['?']))} and is"
                    " kept, so that models that use it stay valid. --remake trains it again",
                    file=sys.stderr,
                )
            continue
        if not train_parts:
            raise CorpusError(f"--vocab {name}: it is trained on the train parts, but none has been prepared")
        entry = make_vocab(folder, name, lambda: texts(train_parts))
        manifest.set("vocabs", name, {**entry, "trained_on": train_parts})
        print(f"vocabulary {name}: {entry['num_labels']:,} labels")
        characters = {character for text in texts(train_parts) for character in text}
        for part in parts:
            unknown = {character for text in texts([part]) for character in text} - characters
            if unknown:
                print(
                    f"warning: {part} has characters that {name} cannot write: {' '.join(sorted(unknown))}",
                    file=sys.stderr,
                )
    if args.vocab_name:
        entry = import_bpe(folder, args.vocab_name, args.bpe_codes, args.bpe_vocab)
        before = manifest.content["vocabs"].get(args.vocab_name)
        manifest.set("vocabs", args.vocab_name, {**entry, "trained_on": []})
        if before is None or before["sha256"] != entry["sha256"]:
            print(f"vocabulary {args.vocab_name}: {entry['num_labels']:,} labels")


def _make_lm_text(
    args: argparse.Namespace, manifest: Manifest, files: list[str], normalise: Callable[[str], str]
) -> None:
    """Writes the LM text, if it is not there."""
    before = manifest.content["lm_texts"].get(args.lm_name)
    if before and not args.remake and before.get("sources") == sources_of(files):
        if os.path.isfile(os.path.join(args.dst, before["file"])):
            return
    entry = write_lm_text(os.path.join(args.dst, "lm"), args.lm_name, files, normalise)
    manifest.set("lm_texts", args.lm_name, entry)
    print(f"LM text {args.lm_name}: {entry['num_sentences']:,} sentences, {entry['num_words']:,} words")
