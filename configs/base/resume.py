"""
Before a training goes on: is the newest checkpoint whole?

RETURNN goes on after the last sub-epoch that has a file with the parameters and one with the optimiser's state, and
wants the losses of all sub-epochs before. It writes each file under a temporary name first, so a killed process leaves
no half file. A full disk, a quota, a broken machine or an incomplete copy can.
"""

from __future__ import annotations

import errno
import os
import shutil
import zipfile
import zlib
from contextlib import suppress

from recog.learning_rates import LearningRatesError, read_learning_rates
from rf_models.checkpoint import numbered_checkpoints

from .failures import remove_temporary_files
from .options import OptionError

__all__ = ["check_checkpoints", "keep_losses"]

LOSSES_FILE = "learning_rates"
"""RETURNN's record of losses and learning rates, in the output folder."""
LOSSES_COPY = LOSSES_FILE + ".copy"
"""Copy of it from the beginning of the sub-epoch."""


def check_checkpoints(output_dir: str, *, num_epochs: int, is_first_process: bool = True) -> None:
    """
    Finds the sub-epoch that training can go on from. What is damaged is renamed, with a message, so that RETURNN takes
    the checkpoint before.

    :param output_dir: of the training
    :param num_epochs: sub-epochs of this run
    :param is_first_process: of a distributed run: it prints and renames; the others come to the same result
    :raises OptionError: training cannot go on, and must not begin again over what is there
    """
    folder = os.path.join(output_dir, "models")
    if is_first_process:
        remove_temporary_files(output_dir)
    models, states = numbered_checkpoints(folder), numbered_checkpoints(folder, ending=".opt.pt")
    if not models:
        return
    if max(models) > num_epochs:
        raise OptionError(
            f"{models[max(models)]}: this training has come to sub-epoch {max(models)} already, but num_epochs ="
            f" {num_epochs}. Use a larger ++num_epochs, or another folder with ++output_dir."
        )
    both = sorted(models.keys() & states.keys(), reverse=True)
    damaged: list[tuple[str, str]] = []
    start = 0
    for epoch in both:
        found = [
            (filename, problem)
            for filename in (models[epoch], states[epoch])
            if (problem := checkpoint_problem(filename)) is not None
        ]
        if not found:
            start = epoch
            break
        damaged += found
    if start < max(models) - 1 and not damaged:
        raise OptionError(
            f"{models[max(models)]} is there without its optimiser state"
            f" ({os.path.basename(models[max(models)]).removesuffix('.pt')}.opt.pt), so the training cannot go on from"
            f" it. Bring that file back, or choose another folder with ++output_dir."
        )
    if damaged and not start:
        raise OptionError(
            f"{damaged[0][0]} is damaged ({damaged[0][1]}), and there is no earlier checkpoint with its optimiser state"
            f" to go on from. Bring the file back, or remove {folder} to begin again."
        )
    if start and (problem := _check_losses(output_dir, start, is_first_process=is_first_process)):
        raise OptionError(
            f"{os.path.join(output_dir, LOSSES_FILE)} {problem}: RETURNN cannot go on after sub-epoch {start} without."
            " Bring the file back, or choose another folder with ++output_dir."
        )
    if not is_first_process:
        return
    for filename, problem in damaged:
        with suppress(FileNotFoundError):
            os.replace(filename, filename + ".damaged")
        print(
            f"{filename} is damaged ({problem}): it is now {os.path.basename(filename)}.damaged, and the training goes"
            f" on after sub-epoch {start}."
        )
    if not damaged and start < max(models):
        print(f"The optimiser state of sub-epoch {max(models)} was not written: this sub-epoch is done again.")


def checkpoint_problem(filename: str) -> str | None:
    """
    :param filename: that torch has written: a zip file with a checksum for each part
    :return: what is wrong with it; None: it is whole
    """
    try:
        with zipfile.ZipFile(filename) as archive:
            broken = archive.testzip()
    except FileNotFoundError:
        return "missing"
    except (zipfile.BadZipFile, zlib.error, EOFError) as exc:
        return f"{os.path.getsize(filename)} bytes, {str(exc) or type(exc).__name__}"
    except OSError as exc:
        if exc.errno != errno.EIO:  # no permission, for example: nothing that an older checkpoint would help against
            raise OptionError(f"{filename} cannot be read: {exc.strerror}") from None
        return exc.strerror
    return f"wrong checksum of {broken}" if broken else None


def _check_losses(output_dir: str, epoch: int, *, is_first_process: bool) -> str | None:
    """
    :param output_dir:
    :param epoch: to go on after
    :param is_first_process: it brings back the copy, if that is needed
    :return: what is missing in RETURNN's record of losses; None: nothing
    """
    problem = losses_problem(os.path.join(output_dir, LOSSES_FILE), epoch)
    copy = os.path.join(output_dir, LOSSES_COPY)
    if problem is None or losses_problem(copy, epoch) is not None:
        return problem
    if is_first_process:
        print(f"{os.path.join(output_dir, LOSSES_FILE)} {problem}: it is replaced by {LOSSES_COPY}.")
        shutil.copyfile(copy, copy + ".tmp")
        os.replace(copy + ".tmp", os.path.join(output_dir, LOSSES_FILE))
    return None


def losses_problem(filename: str, epoch: int) -> str | None:
    """
    :param filename: RETURNN's record of losses
    :param epoch: to go on after
    :return: what is missing of what RETURNN needs then: train losses until this sub-epoch, dev losses until the one
        before; None: nothing
    """
    try:
        names = read_learning_rates(filename)
    except FileNotFoundError:
        return "is missing"
    except LearningRatesError as exc:
        return f"is damaged ({str(exc).removeprefix(filename + ': ')})"
    for number in range(1, epoch + 1):
        for kind in ("train", "dev") if number < epoch else ("train",):
            if not any(name.startswith(f"{kind}_") for name in names.get(number, ())):
                return f"lacks the {kind} losses of sub-epoch {number}"
    return None


def keep_losses(output_dir: str) -> None:
    """Copies RETURNN's record of losses: a machine that breaks down can leave it empty, and then nothing goes on."""
    filename, copy = os.path.join(output_dir, LOSSES_FILE), os.path.join(output_dir, LOSSES_COPY)
    if os.path.isfile(filename):
        with open(filename, "rb") as source, open(copy + ".tmp", "wb") as target:
            shutil.copyfileobj(source, target)
            target.flush()
            os.fsync(target.fileno())
        os.replace(copy + ".tmp", copy)
