"""tools/average_checkpoints.py"""

from __future__ import annotations

import json

import pytest
import torch

from rf_models.checkpoint import INFO_FILE, ModelInfo, load_state_dict, read_model_info
from tools.average_checkpoints import main


def save(folder, epoch, value, **more):
    model = {"w": torch.full((2, 3), value), "count": torch.tensor(epoch)}
    torch.save({"model": {**model, **more}, "epoch": epoch, "step": 10 * epoch}, folder / f"epoch.{epoch:03}.pt")


def test_average(tmp_path, capsys):
    for epoch, value in ((1, 100.0), (2, 1.0), (3, 2.0), (4, 6.0)):
        save(tmp_path, epoch, value)
    (tmp_path / "epoch.004.opt.pt").write_bytes(b"not a model")
    info = ModelInfo("lstm_lm", {"num_layers": 1}, 10, 0)
    (tmp_path / INFO_FILE).write_text(json.dumps(info.as_dict()))
    assert main([str(tmp_path), "--last", "3"]) == 0
    state, rest = load_state_dict(str(tmp_path / "average.pt"))
    assert torch.equal(state["w"], torch.full((2, 3), 3.0)) and state["count"] == 4 and rest["epoch"] == 4
    assert "epoch.002.pt, epoch.003.pt, epoch.004.pt" in capsys.readouterr().out
    other = tmp_path / "other" / "mean.pt"
    other.parent.mkdir()
    assert main([str(tmp_path), "--epochs", "1", "4", "--out", str(other)]) == 0
    assert torch.equal(load_state_dict(str(other))[0]["w"], torch.full((2, 3), 53.0))
    assert read_model_info(str(other)) == info  # travels with the file


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--last", "3"], "holds only the sub-epochs 1, 2"),
        (["--last", "0"], "expected at least 1"),
        (["--epochs", "1", "7"], "no checkpoint of sub-epoch 7"),
        (["--last", "2"], "do not hold the same parameters"),
    ],
)
def test_errors(tmp_path, capsys, args, message):
    save(tmp_path, 1, 1.0)
    save(tmp_path, 2, 1.0, more=torch.zeros(1))
    assert main([str(tmp_path), *args]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "average.pt").exists()


def test_nothing_there(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "no checkpoint" in capsys.readouterr().err
    assert main([str(tmp_path / "none")]) == 1
    assert "is no folder" in capsys.readouterr().err


def _write_learning_rates(folder, losses):
    rows = [f"{epoch}: EpochData(learningRate=0.1, error={{'dev_loss_ce': {ce}, 'x': 1}})" for epoch, ce in losses]
    (folder / "learning_rates").write_text("{" + ",\n".join(rows) + "}\n")


def test_best(tmp_path, capsys):
    folder = tmp_path / "models"
    folder.mkdir()
    for epoch in (2, 3, 5, 6):
        save(folder, epoch, float(epoch))
    # The best of all, 4, has no checkpoint any more.
    _write_learning_rates(tmp_path, [(1, 0.2), (2, 0.5), (3, 0.9), (4, 0.1), (5, 0.4), (6, 0.6)])
    assert main([str(folder), "--best", "2"]) == 0
    assert torch.equal(load_state_dict(str(folder / "average.pt"))[0]["w"], torch.full((2, 3), 3.5))
    assert "epoch.002.pt, epoch.005.pt" in capsys.readouterr().out
    _write_learning_rates(tmp_path, [(2, "nan"), (3, 0.9), (5, 0.4), (6, "None")])
    assert main([str(folder), "--best", "2"]) == 0  # what was not measured is not among the best
    assert "epoch.003.pt, epoch.005.pt" in capsys.readouterr().out
    _write_learning_rates(tmp_path, [(1, 0.2), (2, 0.5), (3, 0.9), (4, 0.1), (5, 0.4), (6, 0.6)])
    for args, message in (
        (["--best", "5"], "only 4 checkpoints"),
        (["--best", "0"], "at least 1"),
        (["--best", "1", "--measure", "wer"], "has measured dev_loss_ce, learning_rate, x"),
    ):
        assert main([str(folder), *args]) == 1
        assert message in capsys.readouterr().err
    (tmp_path / "learning_rates").unlink()
    assert main([str(folder), "--best", "1"]) == 1
    assert "learning_rates" in capsys.readouterr().err
