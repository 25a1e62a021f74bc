"""
Recognition, other runs without training, and tools that are killed with SIGKILL at random points, or that find a full
disk, and are started again by the same command: the results must be the same, byte by byte, as those of a run that
nobody disturbed. At no time has a file its final name before it is complete.

    OMP_NUM_THREADS=1 .venv/bin/python tests/kill_tools.py --kills 3
    OMP_NUM_THREADS=1 .venv/bin/python tests/kill_tools.py --kills 1 --only label-sync prior average

Each start is a fork of this script, which has imported all modules: else most kills would hit imports.
"""

from __future__ import annotations

import argparse
import functools
import glob
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from corpora import make_librispeech, make_tedlium2
from fork_server import import_everything
from forked import fork, printed_text, rnn, run_script
from runs import REPO

VOCAB = "spm_unigram_40"
CHANGING = ("returnn.log", "options.json", "wer.json", "wer.txt", "faulthandler")
"""Parts of the names of files with times or process ids, which differ between two runs."""
GROWING = ("corpus.json", "demo_corpus.json")
"""Files that are replaced by newer versions until the end."""


@dataclass
class Program:
    """Something to be killed."""

    name: str
    work: Callable[[], None]
    """Is called in a folder of its own."""
    seconds: float = 0.0
    """Of an undisturbed run."""
    limit: Callable[[], None] | None = None
    """Called first: lets files become so large only that the results cannot be written."""
    says: str = ""
    """What it must print then."""


def tool(name: str, *args: str) -> Callable[[], None]:
    """:return: a tool's main function with these arguments"""

    def work() -> None:
        sys.argv = [name, *args]
        vars(sys.modules["__main__"]).pop("__file__", None)
        sys.exit(importlib.import_module(f"tools.{name}").main())

    return work


def limit_files(size: int) -> None:
    """No file can become larger than so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def limit_when_finishing(cls: str, module: str) -> None:
    """No file can become larger than 50 bytes from when the results are written."""
    callback = getattr(importlib.import_module(module), cls)
    finish = callback.finish

    def limited(self: Any) -> None:
        limit_files(50)
        finish(self)

    callback.finish = limited


def programs(folder: str, setup: Any) -> list[Program]:
    """
    :param folder: with the sources of corpora
    :param setup: a :class:`tiny_setup.TinySetup`: prepared corpus, and models
    """
    models = setup.checkpoints
    corpus = {"data_dir": setup.data_dir, "vocab": VOCAB, "num_workers": 0}
    recog = {**corpus, "recog_parts": "dev", "load": models["aed"]}
    no_space = "error: output/{} cannot be written: File too large"
    recog_full = functools.partial(limit_when_finishing, "RecogCallback", "recog.callback")
    prior_full = functools.partial(limit_when_finishing, "PriorCallback", "recog.prior_callback")
    prepare = ("--workers", "2", "--vocab", VOCAB)
    text = os.path.join(folder, "text.txt")
    res = []
    for name, config, options in (
        ("ctc", "demo_recog_ctc", recog),
        ("label-sync", "demo_recog_labelsync", {**recog, "beam_size": 4}),
        ("time-sync", "demo_recog_timesync", {**recog, "beam_size": 4}),
        ("forced", "demo_forced_labelsync", recog),
    ):
        res.append(
            Program(name, functools.partial(rnn, config, options), limit=recog_full, says=no_space.format(config))
        )
    res += [
        Program(
            "prior",
            functools.partial(rnn, "demo_prior", {**corpus, "load": models["aed"]}),
            limit=prior_full,
            says=no_space.format("demo_prior"),
        ),
        Program(
            "perplexity",
            functools.partial(
                rnn,
                "demo_perplexity",
                {"data_dir": setup.data_dir, "vocab": VOCAB, "models": models["lstm_lm"], "texts": "dev"},
            ),
        ),
        Program("context", functools.partial(rnn, "demo_ilm_context", {**corpus, "asr_checkpoint": models["aed"]})),
        Program(
            "librispeech",
            tool(
                *("prepare_librispeech", os.path.join(folder, "librispeech"), "data", "--corpus", "demo", *prepare),
                *("--lm-text", text),
            ),
            limit=functools.partial(limit_files, 60_000),
            says="error: data: File too large; start the same command again",
        ),
        Program(
            "tedlium",
            tool("prepare_tedlium2", os.path.join(folder, "tedlium"), "data", *prepare),
            limit=functools.partial(limit_files, 60_000),
            says="error: data: File too large; start the same command again",
        ),
        Program(
            "demo-corpus",
            tool(
                *("make_demo_corpus", "data", "--num-train", "12", "--num-eval", "4", "--num-lm", "100"),
                *("--workers", "2"),
            ),
            limit=functools.partial(limit_files, 4_000),
            says="it continues",
        ),
        Program(
            "average",
            tool("average_checkpoints", os.path.join(folder, "epochs"), "--out", "average.pt"),
            limit=functools.partial(limit_files, 4_000),
            says="average.pt: it cannot be written: no space left",
        ),
        Program(
            "convert",
            tool(
                *("convert_tf_checkpoint", "--model", "aed_ctc", "--force"),  # it may be killed when all is written
                *(os.path.join(REPO, "tests", "fixtures", "tf", "ls_aed_small", "model", "average"), "tf.pt"),
            ),
            limit=functools.partial(limit_files, 4_000),
            says="it cannot be written: no space left",
        ),
    ]
    return res


def contents(folder: str) -> dict[str, bytes]:
    """:return: content of each file that is the same in each run"""
    res = {}
    for place, _, names in os.walk(folder):
        for name in names:
            if not any(part in name for part in CHANGING):
                with open(os.path.join(place, name), "rb") as file:
                    res[os.path.relpath(os.path.join(place, name), folder)] = file.read()
    return res


def check(program: Program, folder: str, expected: dict[str, bytes], *, complete: bool) -> None:
    """
    :param program:
    :param folder: where it was running
    :param expected: of the undisturbed run
    :param complete: all results must be there; else, what has its final name must be complete
    """
    found = contents(folder)
    for name, content in found.items():
        if not complete and (".tmp" in name or name.endswith((".new", ".new_tmp")) or ".spool" in name):
            continue
        if "text" in name.split(os.sep):  # what the run reads, written by it in two steps
            continue
        if not complete and os.path.basename(name) in GROWING:
            json.loads(content)
            continue
        assert name in expected, f"{program.name}: {name} is left"
        assert content == expected[name], (
            f"{program.name}: {name} differs ({len(content)}, {len(expected[name])} bytes)"
        )
    if complete:
        assert not (missing := expected.keys() - found.keys()), f"{program.name}: no {', '.join(missing)}"


def start(program: Program, folder: str, *, limited: bool = False) -> int:
    """:return: process id"""

    def work() -> None:
        if limited:
            program.limit()
        program.work()

    os.makedirs(folder, exist_ok=True)
    return fork(work, folder, folder + ".terminal.log")


def terminal(folder: str) -> str:
    """:return: what was printed there"""
    return printed_text(folder + ".terminal.log")


def finish(program: Program, folder: str) -> None:
    """Runs it until the end."""
    _, status = os.waitpid(start(program, folder), 0)
    assert os.waitstatus_to_exitcode(status) == 0, f"{program.name}:\n{terminal(folder)[-4000:]}"


def try_program(program: Program, folder: str, rng: random.Random, num_kills: int) -> None:
    """Undisturbed, killed, and with a full disk."""
    undisturbed, killed, full = (os.path.join(folder, program.name, name) for name in ("whole", "killed", "full"))
    begin = time.monotonic()
    finish(program, undisturbed)
    program.seconds = time.monotonic() - begin
    expected = contents(undisturbed)
    assert expected, program.name
    hits = 0
    for _ in range(num_kills):
        pid = start(program, killed)
        time.sleep(rng.uniform(0.0, program.seconds))
        ended, _ = os.waitpid(pid, os.WNOHANG)
        if not ended:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            hits += 1
            _wait_for_orphans(killed)
        check(program, killed, expected, complete=bool(ended))
        if ended:
            shutil.rmtree(killed)
    finish(program, killed)
    check(program, killed, expected, complete=True)
    message = ""
    if program.limit is not None:
        _, status = os.waitpid(start(program, full, limited=True), 0)
        printed = terminal(full)
        assert os.waitstatus_to_exitcode(status) == 1, f"{program.name}:\n{printed[-4000:]}"
        assert program.says in printed and "Traceback" not in printed, f"{program.name}:\n{printed[-4000:]}"
        check(program, full, expected, complete=False)
        left = [name for name in contents(full) if name.endswith((".tmp", ".new"))]  # temporary folders: next time
        assert not left, f"{program.name}: {left} takes space"
        finish(program, full)
        check(program, full, expected, complete=True)
        message = "; full disk"
    print(f"{program.name}: {program.seconds:.1f} s, {hits} kills{message}: same results", flush=True)


def _wait_for_orphans(folder: str) -> None:
    """Processes of a program that was killed notice it and end; until then they might still write."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        orphans = [link for link in glob.glob("/proc/[0-9]*/cwd") if _target(link) == os.path.realpath(folder)]
        if not orphans:
            return
        time.sleep(0.1)
    raise AssertionError(f"{folder}: {len(orphans)} processes are left after a minute")


def _target(link: str) -> str | None:
    try:
        return os.readlink(link)
    except OSError:
        return None


def make_inputs(folder: str) -> Any:
    """:return: a :class:`tiny_setup.TinySetup`, and beside it what the tools need"""
    import torch
    from tiny_setup import make_tiny_setup

    make_librispeech(os.path.join(folder, "librispeech"), {"train": 8, "dev": 4}, seconds=1.0)
    make_tedlium2(os.path.join(folder, "tedlium"), {"train": 9, "dev": 3}, segment_seconds=1.0)
    with open(os.path.join(folder, "text.txt"), "w", encoding="utf8") as file:
        file.writelines(f"a question of time number {number}\n" for number in range(20_000))
    os.makedirs(os.path.join(folder, "epochs"))
    for epoch in range(1, 6):
        content = {"model": {f"w{i}": torch.full((100, 100), float(epoch * i)) for i in range(20)}, "epoch": epoch}
        torch.save({**content, "step": epoch}, os.path.join(folder, "epochs", f"epoch.{epoch:03}.pt"))
    return make_tiny_setup(os.path.join(folder, "setup"))


def main() -> int:
    """:return: exit code"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3, help="of each program")
    parser.add_argument("--seed", type=int, default=1, help="of the points where they are killed")
    parser.add_argument("--only", nargs="+", help="names of programs")
    parser.add_argument("--folder", help="keep all files here instead of a temporary folder")
    args = parser.parse_args()
    folder = os.path.abspath(args.folder or tempfile.mkdtemp(prefix="kill_tools_"))
    import_everything()
    sys.path[:0] = [os.path.join(REPO, "tests"), REPO]
    for name in ("prepare_librispeech", "prepare_tedlium2", "make_demo_corpus", "average_checkpoints"):
        importlib.import_module(f"tools.{name}")
    importlib.import_module("tools.convert_tf_checkpoint")
    setup = make_inputs(folder)
    rng = random.Random(args.seed)
    chosen = [p for p in programs(folder, setup) if not args.only or p.name in args.only]
    for program in chosen:
        try_program(program, folder, rng, args.kills)
    print(f"{len(chosen)} programs: all the same")
    return 0


if __name__ == "__main__":
    run_script(main)
