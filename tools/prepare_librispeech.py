#!/usr/bin/env python3
"""
Prepares LibriSpeech, or any corpus of the same layout, for the configs.

  python tools/prepare_librispeech.py LibriSpeech data/librispeech --vocab spm_unigram_10k
  python tools/prepare_librispeech.py DOWNLOADS data/librispeech --vocab spm_unigram_10k --lm-text
  librispeech-lm-norm.txt.gz

SRC is the extracted tree (train-clean-100/19/198/19-198-0000.flac with 19-198.trans.txt) or a folder with the original
files (train-clean-100.tar.gz ...), which are not extracted. DST gets, for each part, a zip file that RETURNN reads
(FLAC as it is, or OGG), the sub-word vocabularies (trained on the train parts) and the LM text.

Every audio file is decoded once. Files that cannot be read and missing transcripts are named; a part with such problems
is not made and the exit code is 1, unless --skip-broken is given. Finished parts are kept when the command is started
again.
"""

from __future__ import annotations

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tools.corpus.librispeech import EXPECTED_NUM_SEQS, chapters_of_tar, chapters_of_tree, find_parts, make_items
from tools.corpus.package import CorpusError
from tools.corpus.prepare import add_common_arguments, prepare


def main() -> None:
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser)
    parser.add_argument(
        "--corpus", choices=("librispeech", "demo"), default="librispeech", help="whose data this is (%(default)s)"
    )
    args = parser.parse_args()

    def sources():
        for part, source in find_parts(args.src).items():
            jobs = chapters_of_tree(source) if os.path.isdir(source) else chapters_of_tar(source, part)
            expected = EXPECTED_NUM_SEQS.get(part) if args.corpus == "librispeech" else None
            yield part, jobs, expected

    try:
        sys.exit(prepare(args, corpus=args.corpus, sources=sources, make_items=make_items, normalise=_normalise))
    except (CorpusError, OSError) as exc:
        sys.exit(f"error: {exc}")


def _normalise(text: str) -> str:
    """LM text as the transcripts: upper case"""
    return " ".join(text.upper().split())


if __name__ == "__main__":
    main()
