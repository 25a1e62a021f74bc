"""Training with several processes: the same as with one; the mean of parameters; what happens when one is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from distributed import VOCAB, distance, load_steps, make_corpus, write_config
from runs import REPO, SMALL_MODEL, environment, run_command

from configs.base.options import OptionError
from configs.base.run import returnn_keys
from configs.base.train_options import LoopOptions

OPTIONS = {
    **SMALL_MODEL,
    "vocab": VOCAB,
    "num_epochs": 2,
    "num_workers": 0,
    "max_seqs": 1,
    "output_dir": "output/param",
}


def test_equals_one_process(tmp_path):
    """Both comparisons of distributed.py, see there."""
    script = os.path.join(REPO, "tests", "distributed.py")
    res = run_command([sys.executable, script, "--folder", str(tmp_path)], str(tmp_path), timeout=900)
    assert res.stdout.count("relative distance") == 2 and res.stdout.count("between ranks 0.00e+00") == 3, res.stdout


def alive(pid: int) -> bool:
    """:return: whether there is such a process, which has not ended"""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_mean_of_parameters_and_lost_process(tmp_path):
    """Under torchrun, with a mean every second update. One process is killed in the second sub-epoch."""
    make_corpus(str(tmp_path), num_train=6)  # three updates of each process in a sub-epoch
    torchrun = os.path.join(os.path.dirname(sys.executable), "torchrun")
    config = write_config(str(tmp_path), "demo_train")
    command = [sys.executable, torchrun, "--nproc-per-node", "2", "--standalone", "-m", "returnn", config]
    for key, value in {**OPTIONS, "distributed": "param", "param_sync_step": 2}.items():
        command += [f"++{key}", str(value)]
    output = tmp_path / "output" / "param"
    with open(tmp_path / "terminal.log", "wb") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment(), stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    pids = []
    try:
        files = [output / "steps" / f"rank{rank}.step4.pt" for rank in (0, 1)]
        end = time.monotonic() + 300
        while not all(file.exists() for file in files):
            assert process.poll() is None and time.monotonic() < end, (tmp_path / "terminal.log").read_text()[-6000:]
            time.sleep(0.02)
        pids = [torch.load(file, weights_only=True)["pid"] for file in files]
        os.kill(pids[1], signal.SIGKILL)
        assert process.wait(timeout=120) != 0
    finally:
        for pid in (process.pid, *pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
    assert not any(map(alive, pids))
    printed = (tmp_path / "terminal.log").read_text()
    assert "error: another process of this distributed run has ended (rank 0" in printed or (
        "error: stopped by SIGTERM. The same command goes on" in printed
    ), printed[-6000:]
    assert "SIGKILL" in printed  # torchrun tells which one was lost
    # Parameters before each update, in the first sub-epoch and at the beginning of the second.
    first, second = load_steps(str(output), 0), load_steps(str(output), 1)
    params = [name for name in first[0] if "running" not in name]
    first, second = ([{name: step[name] for name in params} for step in rank[:4]] for rank in (first, second))
    apart = [distance(a, b) for a, b in zip(first, second, strict=True)]
    assert apart[0] == 0 and apart[1] > 0 and apart[2] == 0  # the start; one update; the mean after two
    assert apart[3] == 0  # at the end of the sub-epoch, though the mean was not due
    moved = distance(first[2], first[0])
    assert moved > 0
    saved = torch.load(output / "models" / "epoch.001.pt", weights_only=True)["model"]
    assert distance(first[3], {name: saved[name] for name in params}) == 0
    res = run_command(command, str(tmp_path))
    assert "Starting training at epoch 2, global train step 3" in res.stdout + res.stderr
    assert (output / "models" / "epoch.002.opt.pt").is_file()


def test_options(monkeypatch):
    """What is contradictory is an error; under torchrun, the options are what RETURNN wants."""
    for wrong in ({"distributed": "param"}, {"distributed": "param", "param_sync_step": 0}, {"param_sync_step": 5}):
        with pytest.raises(ValueError, match="param_sync_step = "):
            LoopOptions(**wrong)
    from configs.base.run import distributed_parameters

    opts = distributed_parameters(50)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(OptionError, match=r"has no effect in a single process\. Start the run with torchrun"):
        returnn_keys({}, distributed=opts)
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = returnn_keys({}, distributed=opts)["torch_distributed"]
    assert (config["reduce_type"], config["param_sync_step"], config["sync_at_epoch_end"]) == ("param", 50, True)
    given = {"torch_distributed": "{'reduce_type': 'grad', 'dataset_distribution': 'shard'}"}
    with pytest.raises(OptionError, match="both given"):
        returnn_keys(given, distributed=opts)
