#!/usr/bin/env python3
"""
Merges the shards of a recognition run (++shard i/N, or torchrun) into the n-best file that one process would have
written, and scores it.

  python tools/merge_nbest.py output/ls960_recog_labelsync

The shard that finishes last does this by itself: the tool is for the case that it was killed just then, and says which
shards are missing. Beside the n-best file it writes wer.txt, wer.json and options.json. The shards' folders can be
removed afterwards.
"""

from __future__ import annotations

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from recog.json_file import JsonError, read_json_object
from recog.shards import (
    NBEST_FILE,
    RECORD_FILE,
    Shard,
    ShardError,
    differences,
    merge_shards,
    read_record,
    shard_counts,
)
from tools.cli import make_parser, run_main

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: command line without the program; None: of this process
    :return: exit code
    """
    parser = make_parser(__doc__)
    parser.add_argument("output_dir", help="output folder of the run, in which there is the folder shards")
    parser.add_argument("--shards", type=int, metavar="N", help="number of shards, if there are several")
    parser.add_argument("--overwrite", action="store_true", help="replace the merged results of another run")
    args = parser.parse_args(argv)
    return run_main(lambda: _main(args), errors=(ShardError,))


def _main(args: argparse.Namespace) -> None:
    count = _count(args.output_dir, args.shards)
    nbest_file = os.path.join(args.output_dir, NBEST_FILE)
    if os.path.exists(nbest_file) and not args.overwrite:
        _check_same(args.output_dir, count)
    print(f"{merge_shards(args.output_dir, count)}{count} shards: n-best lists in {nbest_file}")


def _count(output_dir: str, given: int | None) -> int:
    """
    :return: number of shards
    :raises ShardError: there are none, or several numbers
    """
    counts = shard_counts(output_dir)
    if not counts:
        raise ShardError(f"{output_dir} has no folders of shards (shards/<i>-of-<N>)")
    if given is None and len(counts) > 1:
        raise ShardError(f"{output_dir} has runs of {' and '.join(map(str, counts))} shards: say which with --shards N")
    if given is not None and given not in counts:
        raise ShardError(f"{output_dir} has no shards i/{given}, only of {' and '.join(map(str, counts))}")
    return counts[0] if given is None else given


def _check_same(output_dir: str, count: int) -> None:
    """:raises ShardError: the merged results that there are, are of another run"""
    try:
        before = read_json_object(os.path.join(output_dir, RECORD_FILE))
    except (OSError, JsonError):
        before = {}
    record = read_record(Shard(1, count).folder(output_dir))
    record.pop("plan", None)
    if different := differences(before, record):
        raise ShardError(
            f"{os.path.join(output_dir, NBEST_FILE)} is of another run (there and in the shards:"
            f" {'; '.join(different)}): replace it with --overwrite"
        )


if __name__ == "__main__":
    sys.exit(main())
