#!/usr/bin/env python3
"""
Prepares TED-LIUM release 2 for the configs.

  python tools/prepare_tedlium2.py TEDLIUM_release2 data/tedlium2 --vocab spm_unigram_1k --lm-text TEDLIUM_release2/LM

SRC has train, dev and test with sph (audio in NIST SPHERE) and stm (segments). DST gets, for each part, a zip file with
all segments that RETURNN reads, the sub-word vocabularies (trained on the train part) and the LM text.

Segments marked ignore_time_segment_in_scoring are left out. <unk> and other marks are removed from the texts, and
contractions are joined ("it 's" is written "it's") unless --contractions split is given; the LM text is written in the
same way. Training segments are extended a little into the silence around them, see --train-padding.

Audio and segment files that cannot be read are named; a part with such problems is not made and the exit code is 1,
unless --skip-broken is given. Can be interrupted and started again: finished parts are kept.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tools.corpus.package import CorpusError
from tools.corpus.prepare import PartSource, Preparation, add_common_arguments, run
from tools.corpus.tedlium2 import EXPECTED_NUM_SEQS, clean_text, find_parts, make_items, talks_of_part


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module docstring. :return: exit code"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser)
    parser.add_argument(
        "--contractions",
        choices=("joined", "split"),
        default="joined",
        help="it's, or it 's as in the setups of RWTH (%(default)s)",
    )
    parser.add_argument(
        "--train-padding",
        nargs=2,
        type=float,
        default=(0.15, 0.1),
        metavar=("BEGIN", "END"),
        help="seconds by which training segments are extended, but not into their neighbours (0.15 0.1)",
    )
    args = parser.parse_args(argv)

    def get_preparation() -> Preparation:
        padding = tuple(args.train_padding)
        if not all(0 <= seconds <= 10 for seconds in padding):
            raise CorpusError(f"--train-padding {padding[0]} {padding[1]}: expected 0 ... 10 seconds")
        parts = {}
        for part, folder in find_parts(args.src).items():
            of_part = padding if part == "train" else (0.0, 0.0)
            jobs = functools.partial(talks_of_part, folder, args.contractions, of_part)
            parts[part] = PartSource(jobs=jobs, expected_num_seqs=EXPECTED_NUM_SEQS[part])
        return Preparation(
            "tedlium2",
            parts,
            make_items,
            normalise=functools.partial(clean_text, contractions=args.contractions),
            options={"contractions": args.contractions, "train_padding": list(padding)},
        )

    return run(get_preparation, args, tool="prepare_tedlium2.py")


if __name__ == "__main__":
    sys.exit(main())
