"""tools/show_config.py on all configs, without data."""

from __future__ import annotations

import glob
import json
import os

import pytest
from tool_runs import ROOT, call_tool, run_tool

CONFIGS = sorted(glob.glob(os.path.join(ROOT, "configs", "*.config")))


@pytest.mark.parametrize("config", CONFIGS, ids=os.path.basename)
def test_all_configs(tmp_path, config):
    done = call_tool("show_config", config, "++device", "cpu", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    options = json.loads(done.stdout)
    assert len(options) > 5 and options["device"] == "cpu" and "output_dir" in options
    assert not os.listdir(tmp_path)


def test_as_user(tmp_path):
    config = os.path.join(ROOT, "configs", "ted2_recog_labelsync.config")
    args = ("++recipe", "att_ctc_opls", "++model", "model_ctc0.3_att0.7", "++prior_file", "p", "++beam_size", "7")
    done = run_tool("show_config", config, *args, "--changed", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert {" * beam_size = 7", " * att_scale = 0.67", " * ctc_scale = 0.33", " * prior_scale = 0.7"} <= set(lines)
    assert "LabelSyncOptions (recog.options)" in lines and not any(line.startswith("   ") for line in lines)


def test_errors(tmp_path):
    config = os.path.join(ROOT, "configs", "demo_train.config")
    done = call_tool("show_config", config, "++num_epoch", "3", cwd=tmp_path)
    assert done.returncode == 1 and "unknown option 'num_epoch'; did you mean num_epochs" in done.stderr
    (tmp_path / "x.config").write_text("a = 1\n")
    done = call_tool("show_config", "x.config", cwd=tmp_path)
    assert done.returncode == 1 and "sets no options of this project" in done.stderr
    done = call_tool("show_config", "y.config", cwd=tmp_path)
    assert done.returncode == 1 and "No such file" in done.stderr
