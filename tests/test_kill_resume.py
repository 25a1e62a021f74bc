"""Trainings that end in the middle go on as if nothing had happened, or say why they cannot."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from runs import REPO, run_command

from configs.base.options import OptionError
from configs.base.resume import check_checkpoints, losses_problem


def test_chosen_kills(tmp_path):
    """SIGKILL in a sub-epoch and in a checkpoint, SIGINT, SIGTERM, full disk: the same parameters in the end."""
    script = os.path.join(REPO, "tests", "kill_resume.py")
    command = [sys.executable, script, "--chosen", "--train", "12", "--folder", str(tmp_path)]
    res = run_command(command, str(tmp_path), timeout=1500)
    assert res.stdout.count("equal bit by bit") == 2, res.stdout
    assert res.stdout.count("SIGKILL after 'ep 2 train'") == 2 and "disk full at epoch.002.pt" in res.stdout
    assert res.stdout.count("written") == 2 and "SIGINT" in res.stdout and "SIGTERM" in res.stdout


def losses(epochs: int, *, without_dev: tuple[int, ...] = ()) -> str:
    """:return: as RETURNN writes its record"""
    lines = []
    for epoch in range(1, epochs + 1):
        dev = "" if epoch in without_dev else "'dev_loss_ce': 3.5,\n"
        lines.append(f"{epoch}: EpochData(learningRate=0.002, error={{\n'train_loss_ce': nan,\n{dev}}}),\n")
    return "{\n" + "".join(lines) + "}\n"


def make_training(folder, models, states, *, num_losses=None):
    """:return: folder of a training with these checkpoints"""
    (folder / "models").mkdir()
    for numbers, ending in ((models, "pt"), (states, "opt.pt")):
        for number in numbers:
            torch.save({"step": number, "w": torch.arange(1000.0)}, folder / "models" / f"epoch.{number:03}.{ending}")
    (folder / "learning_rates").write_text(losses(max(models) if num_losses is None else num_losses))
    return str(folder)


def cut(file, *, part=0.5):
    """Cuts a file off."""
    file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])


def flip(file):
    """Changes a byte of the numbers in a checkpoint."""
    content = file.read_bytes()
    where = content.index(torch.arange(1000.0).numpy().tobytes()) + 500
    file.write_bytes(content[:where] + bytes([content[where] ^ 1]) + content[where + 1 :])


def names(folder):
    """:return: files with checkpoints"""
    return {file.name for file in (folder / "models").iterdir()}


def test_whole(tmp_path, capsys):
    output = make_training(tmp_path, [3, 4, 5], [4, 5])
    before = names(tmp_path)
    check_checkpoints(output, num_epochs=6)
    assert names(tmp_path) == before and not capsys.readouterr().out


@pytest.mark.parametrize("harm", [cut, flip, lambda file: cut(file, part=0.0)])
@pytest.mark.parametrize("ending", ["pt", "opt.pt"])
def test_damaged(tmp_path, capsys, harm, ending):
    """The checkpoint before is taken, and the message names the file."""
    output = make_training(tmp_path, [3, 4, 5], [4, 5])
    harm(tmp_path / "models" / f"epoch.005.{ending}")
    check_checkpoints(output, num_epochs=6, is_first_process=False)  # it leaves that to the first
    assert f"epoch.005.{ending}" in names(tmp_path) and not capsys.readouterr().out
    check_checkpoints(output, num_epochs=6)
    assert f"epoch.005.{ending}.damaged" in names(tmp_path) and f"epoch.005.{ending}" not in names(tmp_path)
    out = capsys.readouterr().out
    assert f"epoch.005.{ending} is damaged" in out and "goes on after sub-epoch 4" in out
    check_checkpoints(output, num_epochs=6)  # and now all is well


def test_all_damaged(tmp_path):
    """Training does not begin again by itself over what took days."""
    output = make_training(tmp_path, [4, 5], [4, 5])
    for number in (4, 5):
        cut(tmp_path / "models" / f"epoch.{number:03}.pt")
    before = names(tmp_path)
    for _ in range(2):
        with pytest.raises(OptionError, match=r"epoch\.005\.pt is damaged .* no earlier checkpoint"):
            check_checkpoints(output, num_epochs=6)
    assert names(tmp_path) == before


def test_no_optimiser_state(tmp_path, capsys):
    output = make_training(tmp_path, [3, 4, 5], [3, 4])
    check_checkpoints(output, num_epochs=6)
    assert "sub-epoch 5 was not written: this sub-epoch is done again" in capsys.readouterr().out
    for number in (3, 4):
        os.remove(tmp_path / "models" / f"epoch.{number:03}.opt.pt")
    with pytest.raises(OptionError, match=r"epoch\.005\.pt is there without its optimiser state"):
        check_checkpoints(output, num_epochs=6)


def test_fewer_epochs_than_done(tmp_path):
    """RETURNN would look at the first 4 only, find no optimiser state there, and begin again."""
    output = make_training(tmp_path, [4, 5, 6], [5, 6])
    with pytest.raises(OptionError, match=r"has come to sub-epoch 6 already, but num_epochs = 4"):
        check_checkpoints(output, num_epochs=4)


def test_losses(tmp_path, capsys):
    """RETURNN's record of losses: the copy is used if the record is damaged; without both it is an error."""
    output = make_training(tmp_path, [4, 5], [4, 5])
    record = tmp_path / "learning_rates"
    (tmp_path / "learning_rates.copy").write_text(losses(5))
    cut(record)
    check_checkpoints(output, num_epochs=6)
    assert record.read_text() == losses(5) and "learning_rates is damaged" in capsys.readouterr().out
    record.write_text(losses(5, without_dev=(5,)))  # killed when it was about to be evaluated
    check_checkpoints(output, num_epochs=6)
    record.write_text(losses(5, without_dev=(4,)))
    (tmp_path / "learning_rates.copy").write_text("")
    with pytest.raises(OptionError, match="lacks the dev losses of sub-epoch 4"):
        check_checkpoints(output, num_epochs=6)
    record.write_text("__import__('os').system('true')")  # parsed, never evaluated
    assert "is damaged" in losses_problem(str(record), 5)


def test_temporary_files_are_removed(tmp_path):
    output = make_training(tmp_path, [1], [1])
    (tmp_path / "models" / "epoch.002.pt.tmp_write").write_bytes(b"half")
    old = tmp_path / "options.json.123.tmp"
    old.write_text("{")
    os.utime(old, (0, 0))
    new = tmp_path / "options.json.124.tmp"  # perhaps another process is just writing it
    new.write_text("{")
    check_checkpoints(output, num_epochs=6)
    assert "epoch.002.pt.tmp_write" not in names(tmp_path) and not old.exists() and new.exists()
