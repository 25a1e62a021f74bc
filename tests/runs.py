"""Runs of the project's programs as users start them: in a process of their own, from any folder."""

from __future__ import annotations

import os
import subprocess
import sys

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

SMALL_MODEL = {
    "num_mel_filters": 20,
    "enc_num_layers": 2,
    "enc_dim": 32,
    "enc_ff_dim": 32,
    "enc_num_heads": 2,
    "enc_frontend_channels": "4,4,4",
    "ctc_layers": "1,2",
    "dec_embed_dim": 8,
    "dec_lstm_dim": 16,
    "dec_att_dim": 16,
    "dec_readout_dim": 16,
}
"""Options that make a model tiny."""
SMALL_TRANSFORMER_DECODER = {"dec_dim": 16, "dec_num_heads": 2, "dec_ff_dim": 16}
"""The same for a Transformer decoder, whose number of layers is what a config says."""
SMALL_TRAINING = {"num_epochs": 1, "partition_epoch": 1, "num_workers": 0, "batch_size": 100_000, **SMALL_MODEL}


def environment() -> dict[str, str]:
    """:return: without PYTHONPATH: configs and tools must find their packages themselves"""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "DATA_DIR")}
    env.setdefault("OMP_NUM_THREADS", "1")
    return env


def run_command(command: list[str], cwd: str, *, ok: bool = True, timeout: float = 300) -> subprocess.CompletedProcess:
    """
    :param command:
    :param cwd: current folder
    :param ok: whether it must succeed
    :param timeout: seconds
    """
    res = subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
    )
    if ok:
        assert res.returncode == 0, f"{' '.join(command)}\n{res.stdout[-6000:]}\n{res.stderr[-6000:]}"
    return res


def config_file(name: str) -> str:
    """:return: path of a config"""
    return os.path.join(REPO, "configs", f"{name}.config")


def run_config(name: str, cwd: str, *, ok: bool = True, repo: str = REPO, **options) -> subprocess.CompletedProcess:
    """
    :param name: of a config, without ".config"
    :param cwd: current folder, which gets the output
    :param ok: whether it must succeed
    :param repo: where the config is
    :param options: ``++name value``
    """
    rnn = os.path.join(os.path.dirname(sys.executable), "rnn.py")
    command = [rnn, os.path.join(repo, "configs", f"{name}.config")]
    for key, value in options.items():
        command += [f"++{key}", str(value)]
    return run_command(command, str(cwd), ok=ok)


def run_tool(name: str, *args: str, cwd: str, ok: bool = True) -> subprocess.CompletedProcess:
    """
    :param name: of a tool, without ".py"
    :param args: its arguments
    :param cwd: current folder
    :param ok: whether it must succeed
    """
    tool = os.path.join(REPO, "tools", f"{name}.py")
    return run_command([sys.executable, tool, *map(str, args)], str(cwd), ok=ok)
