"""
Trainings that are killed with SIGKILL and started again by the same command must end with the same parameters, bit by
bit, as trainings that nobody disturbed.

    OMP_NUM_THREADS=1 .venv/bin/python tests/kill_resume.py --kills 20 --seed 1
    OMP_NUM_THREADS=1 .venv/bin/python tests/kill_resume.py --chosen

A model on audio (dropout, zoneout, SpecAugment, mixup, speed perturbation, audio padding; loader in the main process,
and in a process of its own) and a language model, on a tiny corpus that the script makes. Points are random, or chosen:
in the middle of a sub-epoch, and while a file of a checkpoint is written; there, SIGINT, SIGTERM and a full disk are
tried as well (this is what make test does). Each start of a training is a fork of this script, which has imported all
modules: else most of the time would go into imports.
"""

from __future__ import annotations

import argparse
import functools
import glob
import json
import os
import random
import re
import resource
import signal
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from corpora import make_librispeech
from fork_server import import_everything
from forked import Training, run_script
from runs import SMALL_MODEL, run_tool

VOCAB = "spm_unigram_40"
AUDIO_OPTIONS = {
    **SMALL_MODEL,
    "vocab": VOCAB,
    "enc_dropout": 0.1,
    "enc_att_dropout": 0.1,
    "dec_dropout": 0.1,
    "dec_zoneout_cell": 0.15,
    "dec_zoneout_output": 0.05,
    "speed_perturbation": "0.9,1.0,1.1",
    "audio_padding": 400,
    "use_mixup": True,
    "mixup_buffer_frames": 1000,
    "specaugment_steps": "2,4,6",
    "batch_size": 6 * 16_000,
    "keep_last_n": 2,
}
"""Of demo_train: all that is random is on."""
LM_OPTIONS = {"vocab": VOCAB, "dropout": 0.1, "batch_size": 60, "num_layers": 1, "embed_dim": 16, "lstm_dim": 32}
"""Of demo_lm_train."""


def make_corpus(folder: str, *, num_train: int, seconds: float = 1.5) -> None:
    """
    :param folder: gets data/demo
    :param num_train: utterances
    :param seconds: of each
    """
    make_librispeech(os.path.join(folder, "source"), {"train": num_train, "dev": 4}, seconds=seconds)
    with open(os.path.join(folder, "text.txt"), "w", encoding="utf8") as file:
        for number in range(10 * num_train):
            file.write(f"{'THE QUICK BROWN FOX ' * (1 + number % 3)}IT'S A QUESTION OF TIME\n")
    args = ("--workers", "1", "--corpus", "demo", "--vocab", VOCAB, "--lm-text", "text.txt")
    run_tool("prepare_librispeech", "source", "data/demo", *args, cwd=folder)


def differences(first: Any, second: Any, name: str = "") -> list[str]:
    """:return: names of what differs in two checkpoints, however little"""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [] if first.dtype == second.dtype and torch.equal(first, second) else [name]
    if isinstance(first, dict) and isinstance(second, dict):
        keys = list(dict.fromkeys([*first, *second]))
        return [d for key in keys for d in differences(first.get(key), second.get(key), f"{name}/{key}")]
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)) and len(first) == len(second):
        return [d for i, (a, b) in enumerate(zip(first, second, strict=True)) for d in differences(a, b, f"{name}/{i}")]
    return [] if first == second else [name]


def run_differences(first: str, second: str, epoch: int) -> list[str]:
    """
    :param first: output folder of a run
    :param second: of another one
    :param epoch: number of the last checkpoint
    :return: what differs in parameters, statistics, optimiser, step and losses
    """
    found = []
    for ending in (".pt", ".opt.pt"):
        states = [
            torch.load(os.path.join(run, "models", f"epoch.{epoch:03}{ending}"), weights_only=True)
            for run in (first, second)
        ]
        found += differences(*states, name=f"epoch.{epoch:03}{ending}")
    rates = []
    for run in (first, second):
        with open(os.path.join(run, "learning_rates"), encoding="utf8") as file:
            rates.append(re.findall(r"'(?:train|dev)_loss_[^']*': [^,\n}]*", file.read()))
    return found + ([] if rates[0] == rates[1] else ["learning_rates"])


def _die_at(ending: str) -> None:
    """SIGKILL when the file with this ending has been written by half."""
    rename = os.rename

    def rename_or_die(source: str, target: str) -> None:
        if target.endswith(ending):
            os.truncate(source, os.path.getsize(source) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.rename = rename_or_die


def _full_disk_at(ending: str) -> None:
    """No file can become larger than 4 KB from when torch saves the file with this ending."""
    save = torch.save

    def limited_save(content: Any, filename: str) -> None:
        if filename.endswith(ending + ".tmp_write"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        save(content, filename)

    torch.save = limited_save


@dataclass
class KilledTraining(Training):
    """A training that ends in the middle again and again."""

    places: list[str] = field(default_factory=list)
    """Where each kill hit."""

    def kill_in_write(self, ending: str) -> None:
        """Starts it; it is killed when half of a file with this ending is written."""
        _, status = os.waitpid(self.start(prepare=functools.partial(_die_at, ending)), 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, self.terminal()[-4000:]
        self.places.append(f"half of {ending} written")

    def fail_in_write(self, ending: str) -> None:
        """Starts it; the disk is full when it writes the file with this ending."""
        before, checkpoints = len(self.terminal()), self._checkpoints()
        _, status = os.waitpid(self.start(prepare=functools.partial(_full_disk_at, ending)), 0)
        printed = self.terminal()[before:]
        assert os.waitstatus_to_exitcode(status) == 1, printed[-4000:]
        assert "cannot be written: no space left" in printed and "Earlier checkpoints are intact" in printed, printed
        assert "Traceback" not in printed and "EXCEPTION" not in printed, printed
        assert self._checkpoints() == checkpoints  # intact, and nothing else
        self.places.append(f"disk full at {ending}")

    def _checkpoints(self) -> dict[str, bytes]:
        """:return: content of all files with checkpoints, also of temporary ones"""
        res = {}
        for filename in glob.glob(os.path.join(self.output, "models", "epoch*")):
            with open(filename, "rb") as file:
                res[os.path.basename(filename)] = file.read()
        return res

    def stop_after(self, text: str, number: signal.Signals) -> None:
        """Starts it, and sends a signal when a text is in the log."""
        before = len(self.terminal())
        assert self.kill_after(text, number=number), "ended before the signal could be sent"
        printed = self.terminal()[before:]
        assert f"error: stopped by {number.name}" in printed and "Traceback" not in printed, printed

    def kill_after(self, text: str, seconds: float = 0.0, *, number: signal.Signals = signal.SIGKILL) -> bool:
        """
        Starts it, and kills it some time after a text has come.

        :param text: in the log; "": from the start
        :param seconds:
        :param number: signal. Other signals than SIGKILL must give the exit code 1 within a minute.
        :return: whether it was alive then
        """
        before = len(self.log())
        pid = self.start()
        kill_time = None if text else time.monotonic() + seconds
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if kill_time is None and text in self.log()[before:]:
                kill_time = time.monotonic() + seconds
            if kill_time is not None and time.monotonic() >= kill_time:
                os.kill(pid, number)
                signal_time = time.monotonic()
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                assert code == (-number if number == signal.SIGKILL else 1), f"{number.name}: exit code {code}"
                assert time.monotonic() < signal_time + 60, f"{number.name}: took longer than a minute"
                self.places.append(f"{number.name} {_place(self.log()[before:], self.output)}")
                return True
            time.sleep(0.01)
        return False


def _place(log: str, output: str) -> str:
    """:return: where a kill hit, as far as log and files tell"""
    models = os.path.join(output, "models")
    if os.path.isdir(models) and any(name.endswith(".tmp_write") for name in os.listdir(models)):
        return "while a checkpoint is written"
    lines = [line for line in log.splitlines() if line.startswith(("start epoch", "ep ", "Save", "Evaluat", "Load"))]
    if not lines or lines[-1].startswith("Load"):
        return "before the first step"
    match = re.match(r"(start epoch \d+|ep \d+ \w+|Save \w+|Evaluat\w+)", lines[-1])
    return f"after {match.group(1)!r}" if match else lines[-1][:40]


def random_kills(
    run: KilledTraining, rng: random.Random, *, num_kills: int, start_time: float, epoch_time: float
) -> None:
    """
    :param run:
    :param rng: draws the points
    :param num_kills: at least so many; then the run may end
    :param start_time: seconds until training begins
    :param epoch_time: seconds of a sub-epoch
    """
    while len(run.places) < num_kills:
        if rng.random() < 0.15:  # while it starts
            alive = run.kill_after("", rng.uniform(0.0, start_time))
        else:
            alive = run.kill_after(" train, step 0,", rng.uniform(0.0, 2.5 * epoch_time))
        if not alive:
            raise SystemExit(f"the training ended after {len(run.places)} of {num_kills} kills: use more --epochs")
        print(f"  kill {len(run.places):2}: {run.places[-1]}", flush=True)
    run.finish()


def chosen_kills(run: KilledTraining) -> None:
    """Reasons to end in the second sub-epoch and when its checkpoint is written; others for audio than for text."""
    middle = "ep 2 train, step 1"
    assert run.kill_after(middle), "ended before it could be killed"
    if run.config == "demo_train":
        run.kill_in_write("epoch.002.opt.pt")  # the file with the parameters is complete then
        run.stop_after(middle, signal.SIGINT)
    else:
        run.kill_in_write("epoch.002.pt")
        run.stop_after(middle, signal.SIGTERM)
        run.fail_in_write("epoch.002.pt")
    for place in run.places:
        print(f"  {place}", flush=True)
    run.finish()


def main() -> int:
    """:return: 0 if all are equal"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of all trainings together")
    parser.add_argument("--chosen", action="store_true", help="kill at chosen points instead")
    parser.add_argument("--seed", type=int, default=1, help="of the points where they are killed")
    parser.add_argument("--epochs", type=int, default=14, help="sub-epochs of each training")
    parser.add_argument("--train", type=int, default=40, help="utterances of the corpus")
    parser.add_argument("--folder", help="keep all files here instead of a temporary folder")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    folder = os.path.abspath(args.folder or tempfile.mkdtemp(prefix="kill_resume_"))
    os.makedirs(folder, exist_ok=True)
    if not os.path.isdir(os.path.join(folder, "data")):
        make_corpus(folder, num_train=args.train)
    import_everything()
    epochs = 3 if args.chosen else args.epochs
    audio = {**AUDIO_OPTIONS, "num_epochs": epochs}
    text = {**LM_OPTIONS, "num_epochs": epochs, "keep_last_n": 2}
    trainings = {
        "audio, loader in the main process": ("demo_train", {**audio, "num_workers": 0}, 0.35),
        "audio, loader in its own process": ("demo_train", {**audio, "num_workers": 1}, 0.35),
        "language model": ("demo_lm_train", {**text, "num_workers": 0}, 0.3),
    }
    if args.chosen:
        del trainings["audio, loader in the main process"]
    results, left = [], args.kills
    reference: Training | None = None
    for number, (name, (config, options, share)) in enumerate(trainings.items()):
        num_kills = left if number == len(trainings) - 1 else round(args.kills * share)
        left -= num_kills
        if reference is None or reference.config != config:  # the processes that load data must not matter
            reference = Training(config, {**options, "num_workers": 0}, folder, f"output/reference_{number}")
            duration = reference.finish()
            epoch_time = _training_seconds(reference.log()) / epochs
            print(f"{name}: undisturbed {duration:.0f} s", flush=True)
        run = KilledTraining(config, options, folder, f"output/killed_{number}")
        print(f"{name}:", flush=True)
        if args.chosen:
            chosen_kills(run)
        else:
            start_time = max(duration - epochs * epoch_time, 1.0)
            random_kills(run, rng, num_kills=num_kills, start_time=start_time, epoch_time=epoch_time)
        found = run_differences(reference.output, run.output, epochs)
        print(f"  {'DIFFERENT: ' + ', '.join(found[:5]) if found else 'equal bit by bit'}", flush=True)
        results.append({"training": name, "kills": run.places, "different": found})
    with open(os.path.join(folder, "kill_resume.json"), "w", encoding="utf8") as file:
        json.dump({"seed": args.seed, "trainings": results}, file, indent=2)
    print(f"{sum(len(r['kills']) for r in results)} kills; {os.path.join(folder, 'kill_resume.json')}")
    return 1 if any(result["different"] for result in results) else 0


def _training_seconds(log: str) -> float:
    """:return: duration of all sub-epochs, from the log's last line about it"""
    hours, minutes, seconds = re.findall(r"^elapsed: (\d+):(\d+):([\d.]+)", log, re.MULTILINE)[-1]
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


if __name__ == "__main__":
    run_script(main)
