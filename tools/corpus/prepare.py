"""
What the preparation of all corpora has in common: arguments, parts, vocabularies, LM text, summary.
"""

from __future__ import annotations

import argparse
import ast
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .package import CorpusError, Item, Manifest, PartInfo, pack_part, summary_table
from .vocabulary import import_bpe, make_vocab, parse_vocab_name, write_lm_text

__all__ = ["add_common_arguments", "part_texts", "prepare"]


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of all preparation tools."""
    parser.add_argument("src", metavar="SRC", help="the corpus as it is distributed")
    parser.add_argument("dst", metavar="DST", help="folder for the prepared corpus")
    parser.add_argument("--parts", nargs="+", metavar="PART", help="only these parts (all that are there)")
    parser.add_argument("--subset", type=int, metavar="N", help="only the first N utterances of each part, for tests")
    parser.add_argument("--skip-broken", action="store_true", help="leave out utterances with problems")
    parser.add_argument(
        "--audio-format", choices=("flac", "ogg"), default="flac", help="lossless, or a third of the size (%(default)s)"
    )
    parser.add_argument(
        "--vocab",
        action="append",
        default=[],
        metavar="NAME",
        help="vocabulary to train on the train parts: spm_unigram_10k, spm_bpe_1k, bpe_5k ... Can be repeated",
    )
    parser.add_argument(
        "--bpe-import",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "CODES", "VOCAB"),
        help="take over a subword-nmt vocabulary of an old setup under this name",
    )
    parser.add_argument(
        "--lm-text", nargs="+", default=[], metavar="FILE", help="texts for the language model, one sentence per line"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")


def prepare(
    args: argparse.Namespace,
    *,
    corpus: str,
    sources: Callable[[], Iterable[tuple[str, Any, int | None]]],
    make_items: Callable[[Any], list[Item]],
    normalise: Callable[[str], str],
) -> int:
    """
    :param args: see :func:`add_common_arguments`
    :param corpus: name for the manifest
    :param sources: returns (part, jobs, published number of utterances) of all parts
    :param make_items: makes the utterances of a job
    :param normalise: for LM text
    :return: exit code
    :raises CorpusError:
    """
    for name in args.vocab:
        parse_vocab_name(name)
    if args.subset is not None and args.subset < 1:
        raise CorpusError(f"--subset {args.subset}: expected at least 1")
    for filename in [*args.lm_text, *(file for _, *files in args.bpe_import for file in files)]:
        if not os.path.isfile(filename):
            raise CorpusError(f"{filename} does not exist")
    os.makedirs(args.dst, exist_ok=True)
    manifest = Manifest(args.dst, corpus)
    all_sources = {part: (jobs, expected) for part, jobs, expected in sources()}
    wanted = args.parts or list(all_sources)
    for part in wanted:
        if part not in all_sources:
            raise CorpusError(f"no part {part!r} in {args.src}, only {', '.join(all_sources)}")
    options = {"subset": args.subset, "audio_format": args.audio_format, "skip_broken": args.skip_broken}
    infos: dict[str, PartInfo] = {}
    all_problems: list[str] = []
    changed = False
    for part in wanted:
        jobs, expected = all_sources[part]
        info = manifest.finished_part(part, options)
        if info is None:
            changed = changed or part.startswith("train")
            num_jobs = len(jobs) if hasattr(jobs, "__len__") else None
            jobs = (_with_format(job, args.audio_format) for job in jobs)
            info, problems = pack_part(
                manifest,
                part,
                jobs,
                make_items,
                options=options,
                expected_num_seqs=expected,
                skip_broken=args.skip_broken,
                subset=args.subset,
                workers=args.workers,
                num_jobs=num_jobs,
            )
            all_problems += problems
        if info is not None:
            infos[part] = info
    if infos:
        print(summary_table(infos))
    if all_problems:
        print(f"\n{len(all_problems)} utterances with problems:")
        for problem in all_problems[:50]:
            print(f"  {problem}")
        if len(all_problems) > 50:
            print(f"  ... and {len(all_problems) - 50} more")
    if all_problems and not args.skip_broken:
        missing = [part for part in wanted if part not in infos]
        print(
            f"error: {', '.join(missing)} not made. Repair the files, or start again with --skip-broken to leave these"
            " utterances out."
        )
        return 1
    _make_vocabs(args, manifest, remake=changed)
    if args.lm_text:
        entry = write_lm_text(os.path.join(args.dst, "lm"), "lm", args.lm_text, normalise)
        manifest.set("lm_texts", "lm", entry)
        print(f"LM text: {entry['num_sentences']:,} sentences, {entry['num_words']:,} words")
    return 0


def _with_format(job: Any, audio_format: str) -> Any:
    """:return: the job, which is told the audio format"""
    job.audio_format = audio_format
    return job


def _make_vocabs(args: argparse.Namespace, manifest: Manifest, *, remake: bool) -> None:
    """Trains or imports the vocabularies that are wanted and not there."""
    folder = os.path.join(args.dst, "vocab")
    train_parts = [part for part in manifest.content["parts"] if part.startswith("train")]

    def texts() -> Iterator[str]:
        for part in sorted(train_parts):
            yield from part_texts(os.path.join(args.dst, manifest.content["parts"][part]["file"]), part)

    for name in args.vocab:
        if name in manifest.content["vocabs"] and os.path.isfile(os.path.join(folder, f"{name}.json")) and not remake:
            continue
        if not train_parts:
            raise CorpusError(f"--vocab {name}: it is trained on the train parts, but none has been prepared")
        entry = make_vocab(folder, name, texts)
        manifest.set("vocabs", name, entry)
        print(f"vocabulary {name}: {entry['num_labels']} labels")
    for name, codes, vocab in args.bpe_import:
        entry = import_bpe(folder, name, codes, vocab)
        manifest.set("vocabs", name, entry)
        print(f"vocabulary {name}: {entry['num_labels']} labels")


def part_texts(zip_file: str, part: str) -> Iterator[str]:
    """
    :param zip_file:
    :param part:
    :return: transcripts of a packed part
    """
    try:
        with zipfile.ZipFile(zip_file) as archive:
            listing = ast.literal_eval(archive.read(f"{part}.txt").decode("utf8"))
    except (zipfile.BadZipFile, KeyError, ValueError, SyntaxError) as exc:
        raise CorpusError(f"{zip_file} is damaged ({exc}): remove it and prepare the part again") from None
    for entry in listing:
        yield entry["text"]
