"""
RETURNN's TensorFlow backend builds a network from our config, saves it, gives its outputs; the converted model agrees.

Needs the Python of an environment with TensorFlow in TF_PYTHON: ``make test-tf`` makes one and runs this.
"""

from __future__ import annotations

import os
import re
import subprocess

import numpy as np
import pytest
from tf.cases import cases, write_case

from tools import convert_tf_checkpoint
from tools.tf_conversion.bundle import BundleReader

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TF_PYTHON = os.environ.get("TF_PYTHON")

pytestmark = [
    pytest.mark.tf,
    pytest.mark.skipif(not TF_PYTHON, reason="needs TensorFlow: make test-tf"),
]


def run_tf(*args: str) -> str:
    env = {**os.environ, "PYTHONPATH": "", "DISABLE_CUDA": "1"}
    done = subprocess.run([TF_PYTHON, *args], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("name", cases())
def test_new_network(name, tmp_path, capsys):
    folder = str(tmp_path)
    case = write_case(name, folder)
    prefix, reference = os.path.join(folder, "network.007"), os.path.join(folder, "ref.npz")
    run_tf("tests/tf/make_checkpoint.py", f"{folder}/tf.config", prefix, "1")
    out = run_tf("tools/export_tf_reference.py", f"{folder}/tf.config", prefix + ".index", reference, *case.export)
    assert "utterances" in out
    args = [arg.format(folder=folder) for arg in case.convert]
    dst = os.path.join(folder, "out.pt")
    code = convert_tf_checkpoint.main([prefix, dst, "--model", case.model, *args, "--verify", reference])
    out = capsys.readouterr().out
    assert code == 0, out
    for stage in case.stages:
        assert re.search(rf"^{stage} ", out, re.MULTILINE), out
    assert "not compared" not in out


def test_reader_gives_what_tensorflow_gives(tmp_path):
    fixtures = os.path.join(ROOT, "tests", "fixtures", "tf")
    script = (
        "import sys, numpy, tensorflow.compat.v1 as tf; r = tf.train.NewCheckpointReader(sys.argv[1]);"
        "numpy.savez(sys.argv[2], **{n.replace('/', '|'): r.get_tensor(n) for n in r.get_variable_to_shape_map()})"
    )
    for name in sorted(os.listdir(fixtures)):
        reader = BundleReader(os.path.join(fixtures, name, "model"))
        run_tf("-c", script, reader.prefix, str(tmp_path / "values.npz"))
        with np.load(tmp_path / "values.npz") as values:
            assert sorted(reader.entries) == sorted(key.replace("|", "/") for key in values.files)
            for key in values.files:
                np.testing.assert_array_equal(reader.read(key.replace("|", "/")), values[key], strict=True)


def test_errors_of_the_exporter(tmp_path):
    def _error(*args: str) -> str:
        done = subprocess.run(
            [TF_PYTHON, "tools/export_tf_reference.py", *args], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        return next(line for line in done.stderr.splitlines() if line.startswith("error: "))

    folder = str(tmp_path)
    write_case("ted2_lstm_lm_small", folder)
    config, out = f"{folder}/tf.config", f"{folder}/x.npz"
    lm = os.path.join(ROOT, "tests", "fixtures", "tf", "ls_trafo_lm_small", "model", "network.023")
    assert "does not exist" in _error(f"{folder}/nothing", lm, out, "--random", "1")
    assert "nothing.index does not exist" in _error(config, f"{folder}/nothing", out, "--random", "1")
    assert "do not fit the network" in _error(config, lm, out, "--random", "1")
    assert "no layer abc" in _error(config, lm, out, "--random", "1", "--stage", "log_probs=abc")
    assert "expected NAME=LAYER" in _error(config, lm, out, "--random", "1", "--stage", "abc")
    assert not os.path.exists(out)
