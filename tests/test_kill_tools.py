"""Recognition and tools that are killed, or find a full disk: see kill_tools.py, of which this is a part."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from runs import REPO, run_command

from rf_models.checkpoint import save_checkpoint

PROGRAMS = ("label-sync", "librispeech", "average", "convert")


def test_programs(tmp_path):
    script = os.path.join(REPO, "tests", "kill_tools.py")
    command = [sys.executable, script, "--kills", "1", "--folder", str(tmp_path), "--only", *PROGRAMS]
    res = run_command(command, str(tmp_path), timeout=1500)
    assert res.stdout.count("full disk: same results") == len(PROGRAMS), res.stdout


def test_save_checkpoint(tmp_path, monkeypatch):
    """The same content, the same bytes; what cannot be written leaves nothing and is an OSError with the name."""
    content = {"model": {"w": torch.ones(5)}, "step": 3}
    for name in ("a", "b"):
        os.makedirs(tmp_path / name)
        save_checkpoint(content, str(tmp_path / name / "x.pt"))
    assert (tmp_path / "a" / "x.pt").read_bytes() == (tmp_path / "b" / "x.pt").read_bytes()

    def fail(_content, filename):
        with open(filename, "wb") as file:
            file.write(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space left") as info:
        save_checkpoint(content, str(tmp_path / "c.pt"))
    assert info.value.filename == str(tmp_path / "c.pt") and sorted(os.listdir(tmp_path)) == ["a", "b"]
