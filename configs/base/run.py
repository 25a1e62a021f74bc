"""
What every run does first: command line, output folder, log files, a record of its options.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from recog.json_file import JsonError, read_json_object
from rf_models.options import AedCtcOptions, AedCtcTrainOptions

from .corpus import CorpusOptions
from .failures import failure_messages
from .options import OptionError, returnn_literal
from .processes import num_processes
from .train_options import TrainOptions

__all__ = [
    "BEHAVIOR_VERSION",
    "Setup",
    "check_one_process",
    "command_line_options",
    "config_name",
    "log_config",
    "make_output_dir",
    "returnn_keys",
    "write_json",
]

BEHAVIOR_VERSION = 30
"""Of RETURNN. Below 24 the encoder's output for an utterance depends on the padding of its batch."""


@dataclass(frozen=True)
class Setup:
    """A corpus with the model and the training recipe that belong to it: what its configs start from."""

    corpus_name: str
    """Name of the folder of the prepared corpus, and what its manifest must say."""
    train_run: str
    """Name of the training config (without .config): recognition looks for its checkpoints."""
    prepare_command: str
    """What a user types to prepare the data."""
    corpus: CorpusOptions
    model: AedCtcOptions
    losses: AedCtcTrainOptions
    training: TrainOptions


def command_line_options() -> dict[str, str]:
    """:return: what was given as ``++name value`` (also ``-n``, ``-d`` ... of RETURNN), as texts"""
    from returnn.config import get_global_config

    # While the config file is loaded, this dict holds the command line only. RETURNN splits values at commas.
    return {
        key: ",".join(value) if isinstance(value, list) else value for key, value in get_global_config().dict.items()
    }


def config_name(namespace: dict[str, Any]) -> str:
    """:return: name of the config file without folder and ending, e.g. "demo_train" """
    return os.path.splitext(os.path.basename(namespace["__file__"]))[0]


def write_json(filename: str, content: Any) -> None:
    """
    Writes to a temporary name first (each process of a distributed run its own), so that the file is complete.

    :raises OptionError: if it cannot be written
    """
    temporary = f"{filename}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w", encoding="utf8") as file:
            json.dump(content, file, indent=2, sort_keys=True)
            file.write("\n")
        os.replace(temporary, filename)
    except OSError as exc:
        with suppress(OSError):
            os.remove(temporary)
        raise OptionError(f"{filename} cannot be written: {exc.strerror}") from None


def file_record(filename: str, *, name: str = "checkpoint") -> dict[str, Any]:
    """
    :param filename: of a file that the results of a run depend on
    :param name: what it is
    :return: what tells in ``options.json`` whether it is still the same: path, size in bytes, time of its last change
    """
    stat = os.stat(filename)
    return {name: os.path.abspath(filename), f"{name}_size": stat.st_size, f"{name}_time": stat.st_mtime}


def stop_if_finished(
    result_files: Sequence[str],
    record: dict[str, Any],
    *,
    overwrite: bool | None,
    ignore: Collection[str] = (),
    summary_file: str | None = None,
    write_record: bool = True,
) -> None:
    """
    Records what the results of a run depend on, in ``options.json`` beside them. If the same run has finished before,
    says so and ends the process.

    :param result_files: in one folder; where all are, the run is complete
    :param record: options and input files
    :param overwrite: replace finished results; None: this run has no such option
    :param ignore: keys of the record that may differ, since the results do not depend on them
    :param summary_file: results to be printed, if the run has finished before
    :param write_record: False: whoever writes the results writes it
    :raises OptionError: another run has finished in this folder
    """
    folder = os.path.dirname(result_files[0])
    record_file = os.path.join(folder, "options.json")
    record = json.loads(json.dumps(record))  # tuples become lists, as in the file
    if all(map(os.path.isfile, result_files)) and not overwrite:
        before = {}
        if os.path.isfile(record_file):
            try:
                before = read_json_object(record_file)
            except JsonError as exc:
                raise OptionError(f"{exc}: it is damaged, remove it") from None
        changed = [
            f"{key}: {before.get(key)!r} -> {value!r}"
            for key, value in record.items()
            if key != "overwrite" and key not in ignore and before.get(key) != value
        ]
        replace, repeat = "replace them with ++overwrite True", "++overwrite True"
        if overwrite is None:
            replace, repeat = "remove that one", "remove this folder"
        if changed:
            raise OptionError(
                f"{result_files[-1]} holds the results of a run with other {'; '.join(changed)}."
                f" Choose another folder with ++output_dir, or {replace}."
            )
        print(f"This run has finished before: {result_files[-1]}. To repeat it: {repeat}.")
        if summary_file is not None and os.path.isfile(summary_file):
            with open(summary_file, encoding="utf8") as file:
                print(file.read())
        sys.exit(0)
    for filename in result_files:  # if this run fails before it begins, old results must not be taken for its own
        with suppress(FileNotFoundError):
            os.remove(filename)
    if write_record:
        write_json(record_file, record)


def make_output_dir(path: str) -> None:
    """:raises OptionError: if the folder cannot be made"""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as exc:
        raise OptionError(f"cannot make the output folder {path}: {exc.strerror}") from None


def log_config(output_dir: str, *, goes_on: str = "begins again") -> dict[str, Any]:
    """
    :param output_dir: of the run
    :param goes_on: what the same command does after the run has failed
    :return: RETURNN's options for the log (everything to a file, the essential to the terminal) and for the messages
        of a run that cannot go on
    """
    return {
        "log": [os.path.join(output_dir, "returnn.log")],
        "log_verbosity": [5, 3],
        "startup_callback": failure_messages(output_dir, goes_on=goes_on),
    }


def returnn_keys(
    values: dict[str, Any], *, training: bool = True, distributed: dict[str, Any] | None = None
) -> dict[str, Any]:
    """
    :param values: RETURNN keys from config file and command line
    :param training: False: each process works for itself
    :param distributed: RETURNN's torch_distributed of this training under torchrun
    :return: as Python values; distributed training is checked and, under torchrun, switched on
    """
    # torch loads checkpoints with weights_only=True, unless told otherwise here: then they could run any code.
    if os.environ.get(UNSAFE_LOAD, "0").lower() not in ("", "0", "n", "no", "false", "off"):
        raise OptionError(
            f"the environment variable {UNSAFE_LOAD} is set, so that checkpoints could run code: unset it"
        )
    distributed = DISTRIBUTED_GRADIENTS if distributed is None else distributed
    # RETURNN applies the command line once more after the config: only what it would take as text needs care.
    typed_keys = ("torch_distributed", "torch_dataloader_opts", "max_seq_length", "min_seq_length", "grad_scaler")
    res = {key: returnn_literal(values[key], name=key) for key in typed_keys if key in values}
    if not training:
        if "torch_distributed" in res:
            raise OptionError("torch_distributed is an option of trainings: this run needs none, leave it out")
        if num_processes() > 1 and values.get("device") in ("gpu", "cuda"):
            raise OptionError("device: leave it out under torchrun, so that each process takes a GPU of its own")
        if num_processes() > 1 and "device" not in values:
            import torch

            if num_gpus := torch.cuda.device_count():
                res["device"] = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % num_gpus}"
        return res
    if "torch_distributed" in res:
        opts = res["torch_distributed"]
        if not isinstance(opts, dict) or not {"reduce_type", "dataset_distribution"} <= set(opts):
            raise OptionError(
                f"torch_distributed = {opts!r}: expected a dict with reduce_type and dataset_distribution, for example"
                f" {DISTRIBUTED_GRADIENTS}. Without this option torchrun uses just that."
            )
        if distributed["reduce_type"] == "param":
            raise OptionError("torch_distributed and distributed = param are both given: expected one of them")
    elif num_processes() > 1:
        res["torch_distributed"] = dict(distributed)
    elif distributed["reduce_type"] == "param" and "WORLD_SIZE" not in os.environ:
        raise OptionError(
            "distributed = param has no effect in a single process. Start the run with torchrun, for example\n"
            "  torchrun --nproc-per-node 2 --standalone -m returnn CONFIG ++distributed param ++param_sync_step 100"
        )
    if "torch_distributed" in res:
        import torch

        if not torch.cuda.is_available():
            # torch's default wants NCCL, which builds for CPUs do not have; RETURNN wants to hear that a CPU is meant.
            res["torch_distributed"].setdefault("backend", "gloo")
            res["device"] = values.get("device", "cpu")
    return res


def check_one_process(what: str) -> None:
    """
    :param what: the run does
    :raises OptionError: under torchrun with several processes
    """
    if (number := num_processes()) != 1:
        raise OptionError(f"{what} is done by one process, not by {number}: start it with rnn.py, not torchrun")


UNSAFE_LOAD = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
DISTRIBUTED_GRADIENTS = {"dataset_distribution": "shard", "reduce_type": "grad_explicit", "sync_complete_frac": True}
"""
Data-parallel training with synchronised gradients; each rank reads its shard of the data. The last option is RETURNN's
default from behaviour version 33 on: without it each rank has a learning rate of its own, as it is elsewhere in its
shard, and so the ranks get other parameters.
"""


def distributed_parameters(every: int) -> dict[str, Any]:
    """
    :param every: updates between two means
    :return: data-parallel training where the mean of all parameters is taken now and then, and at the end of a
        sub-epoch that of the optimiser's state, too: so the checkpoint is what all ranks go on with.
    """
    return {
        "dataset_distribution": "shard",
        "reduce_type": "param",
        "param_sync_step": every,
        "sync_complete_frac": True,
        "sync_at_epoch_end": True,
    }


def asdicts(groups: dict[type, Any]) -> dict[str, Any]:
    """:return: all options of a run as one flat dict"""
    return {key: value for group in groups.values() for key, value in asdict(group).items()}
