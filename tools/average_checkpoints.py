#!/usr/bin/env python3
"""
Averages the parameters of the last or best checkpoints of a training run, for recognition with ++checkpoint average.

  python tools/average_checkpoints.py output/ls960_train/models --last 5
  python tools/average_checkpoints.py output/ls960_train/models --epochs 1920 1940 1960 1980 2000
  python tools/average_checkpoints.py output/ted2_train/models --best 4

Writes average.pt into the same folder, or --out. Whether it helps must be measured: in the demo it does not.
"""

from __future__ import annotations

import argparse
import math
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from recog.learning_rates import LearningRatesError, read_learning_rates
from rf_models.checkpoint import numbered_checkpoints
from tools.cli import make_parser, run_main

__all__ = ["average", "main"]


class AverageError(Exception):
    """The message is for the user."""


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module docstring. :return: exit code"""
    parser = make_parser(__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="with epoch.NNN.pt")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--last", type=int, default=5, metavar="N", help="the last N sub-epochs (%(default)s)")
    which.add_argument("--best", type=int, metavar="N", help="the N best sub-epochs that are kept, see --measure")
    which.add_argument("--epochs", type=int, nargs="+", metavar="N", help="just these sub-epochs")
    parser.add_argument(
        "--measure",
        default="dev_loss_ce",
        metavar="NAME",
        help="of the file learning_rates: with --best, the smaller the better (%(default)s)",
    )
    parser.add_argument("--out", metavar="FILE", help="file to write (FOLDER/average.pt)")
    args = parser.parse_args(argv)
    return run_main(lambda: _main(args), errors=(AverageError, ValueError))


def _main(args: argparse.Namespace) -> None:
    epochs = args.epochs
    if args.best is not None:
        epochs = best_epochs(args.folder, num=args.best, measure=args.measure)
    files = find_checkpoints(args.folder, last=args.last, epochs=epochs)
    out = args.out or os.path.join(args.folder, "average.pt")
    average(files, out)
    print(f"{out}: average of {', '.join(os.path.basename(file) for file in files)}")


def _existing(folder: str) -> dict[int, str]:
    """
    :return: number of the sub-epoch -> its checkpoint
    :raises AverageError: there is none
    """
    if not os.path.isdir(folder):
        raise AverageError(f"{folder} is no folder")
    found = numbered_checkpoints(folder)
    if not found:
        raise AverageError(f"no checkpoint (epoch.NNN.pt) in {folder}: has the training ended its first sub-epoch?")
    return found


def best_epochs(folder: str, *, num: int, measure: str) -> list[int]:
    """
    :param folder: of a training run; the file learning_rates is in the one above
    :param num: number of checkpoints
    :param measure: key of that file
    :return: the sub-epochs with the smallest values, of those that still have a checkpoint
    :raises AverageError: there are not so many, or the measure is unknown
    """
    if num < 1:
        raise AverageError(f"--best {num}: expected at least 1")
    filename = os.path.join(folder, os.pardir, "learning_rates")
    try:
        measured = read_learning_rates(filename)
    except (OSError, LearningRatesError) as exc:
        raise AverageError(f"--best needs the file learning_rates of the training: {exc}") from None
    names = sorted({name for values in measured.values() for name in values if not name.startswith(":")})
    if measure not in names:
        raise AverageError(f"--measure {measure}: the training has measured {', '.join(names)}")
    found = _existing(folder)
    values = {
        epoch: row[measure]
        for epoch, row in measured.items()
        if epoch in found and isinstance(row.get(measure), (int, float)) and math.isfinite(row[measure])
    }
    if len(values) < num:
        raise AverageError(
            f"--best {num}, but {folder} holds only {len(values)} checkpoints with {measure}"
            " (a training keeps as many as its options keep_best_n and keep_last_n say)"
        )
    return sorted(values, key=lambda epoch: (values[epoch], epoch))[:num]


def find_checkpoints(folder: str, *, last: int, epochs: list[int] | None) -> list[str]:
    """
    :param folder: of a training run
    :param last: number of checkpoints
    :param epochs: just these
    :return: file names, in the order of the sub-epochs
    :raises AverageError: they are not there
    """
    found = _existing(folder)
    if epochs is None:
        if last < 1:
            raise AverageError(f"--last {last}: expected at least 1")
        if last > len(found):
            raise AverageError(
                f"--last {last}, but {folder} holds only the sub-epochs {', '.join(map(str, sorted(found)))}"
                " (a training keeps as many as its option keep_last_n says)"
            )
        epochs = sorted(found)[-last:]
    if missing := [epoch for epoch in epochs if epoch not in found]:
        raise AverageError(f"no checkpoint of sub-epoch {', '.join(map(str, missing))} in {folder}")
    return [found[epoch] for epoch in sorted(set(epochs))]


def average(files: list[str], out: str) -> None:
    """
    :param files: checkpoints of one model
    :param out: gets the mean of each parameter (summed in float64); integers, such as counters, are those of the last
        file. Epoch and step are those of the last file, and so is the description of the model.
    :raises AverageError: their parameters differ in name or shape
    """
    import torch

    from rf_models.checkpoint import INFO_KEY, load_state_dict, read_model_info, save_checkpoint

    sums: dict[str, torch.Tensor] = {}
    for file in files:
        state, rest = load_state_dict(file)
        if sums and {name: value.shape for name, value in state.items()} != {n: v.shape for n, v in sums.items()}:
            raise AverageError(f"{file} and {files[0]} do not hold the same parameters")
        for name, value in state.items():
            if not value.is_floating_point():
                sums[name] = value.clone()
            else:
                sums[name] = sums[name].add_(value) if name in sums else value.double()
    types = {name: value.dtype for name, value in state.items()}
    mean = {
        name: (value / len(files) if value.is_floating_point() else value).to(types[name])
        for name, value in sums.items()
    }
    content = {**{key: rest[key] for key in ("epoch", "step") if key in rest}, "model": mean}
    if info := read_model_info(files[-1]):
        content[INFO_KEY] = info.as_dict()
    content["averaged"] = [os.path.basename(file) for file in files]
    save_checkpoint(content, out)


if __name__ == "__main__":
    sys.exit(main())
