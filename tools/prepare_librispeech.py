#!/usr/bin/env python3
"""
Prepares LibriSpeech, or any corpus of the same layout, for the configs.

  python tools/prepare_librispeech.py LibriSpeech data/librispeech --vocab spm_unigram_10k
  python tools/prepare_librispeech.py DOWNLOADS data/librispeech --vocab spm_unigram_10k \\
      --lm-text librispeech-lm-norm.txt.gz

SRC is the extracted tree (train-clean-100/19/198/19-198-0000.flac with 19-198.trans.txt) or a folder with the original
files (train-clean-100.tar.gz ...), which are not extracted. DST gets, for each part, a zip file that RETURNN reads
(FLAC bit by bit as it is, or Vorbis), the sub-word vocabularies (trained on the train parts) and the LM text.

Every audio file is decoded once. Files that cannot be read and missing transcripts are named; a part with such problems
is not made and the exit code is 1, unless --skip-broken is given. Can be interrupted and started again: finished parts
are kept.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tools.corpus.librispeech import EXPECTED_NUM_SEQS, chapters_of_tar, chapters_of_tree, find_parts, make_items
from tools.corpus.prepare import PartSource, Preparation, add_common_arguments, run


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module docstring. :return: exit code"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser)
    parser.add_argument(
        "--corpus", choices=("librispeech", "demo"), default="librispeech", help="whose data this is (%(default)s)"
    )
    args = parser.parse_args(argv)

    def get_preparation() -> Preparation:
        parts = {}
        for part, place in find_parts(args.src).items():
            parts[part] = PartSource(
                jobs=functools.partial(chapters_of_tree, place)
                if os.path.isdir(place)
                else functools.partial(chapters_of_tar, place, part),
                expected_num_seqs=EXPECTED_NUM_SEQS.get(part) if args.corpus == "librispeech" else None,
            )
        return Preparation(args.corpus, parts, make_items, normalise=_normalise, options={})

    return run(get_preparation, args, tool="prepare_librispeech.py")


def _normalise(text: str) -> str:
    """:return: LM text as the transcripts: upper case, single spaces"""
    return " ".join(text.upper().split())


if __name__ == "__main__":
    sys.exit(main())
