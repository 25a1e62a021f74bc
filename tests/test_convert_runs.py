"""Converted checkpoints in recognition runs, as users start them; time and memory of a large conversion."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
import soundfile
from convert_bundle_writer import write_bundle
from corpora import make_librispeech
from fork_server import fork_config
from runs import REPO, run_command, run_config, run_tool

from recog.nbest import audit, load_nbest
from tools.tf_conversion.bundle import BundleReader

FIXTURES = os.path.join(REPO, "tests", "fixtures", "tf")
AED = os.path.join(FIXTURES, "ls_aed_small", "model", "average")


def with_40_labels(src: str, dst: str) -> None:
    """The checkpoint of a fixture without its labels 40 ... 82, but with blank."""
    reader = BundleReader(os.path.join(FIXTURES, src, "model"))
    keep = {83: [*range(40)], 84: [*range(40), 83]}
    variables = {}
    for name in reader.entries:
        value = reader.read(name)
        for axis, size in enumerate(value.shape):
            if size in keep:
                value = value.take(keep[size], axis=axis)
        variables[name] = value
    write_bundle(dst, variables)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """:return: with a prepared corpus and tf.index, the small published-style model with a vocabulary of 40 labels"""
    folder = tmp_path_factory.mktemp("convert_runs")
    make_librispeech(str(folder / "LibriSpeech"), {"train-clean-100": 6, "dev-clean": 4}, seconds=4.0)
    args = ("LibriSpeech", "data/librispeech", "--vocab", "spm_unigram_40", "--subset", "6")
    run_tool("prepare_librispeech", *args, cwd=folder)
    with_40_labels("ls_aed_small", str(folder / "tf"))
    return folder


def test_recognition_with_a_converted_checkpoint(folder):
    """The run has what the model gives for each utterance alone, and the padding of TensorFlow."""
    run_tool("convert_tf_checkpoint", "--model", "aed_ctc", "tf.index", "tf.pt", cwd=folder)
    options = {"vocab": "spm_unigram_40", "data_dir": "data", "num_workers": 0, "recog_parts": "dev-clean"}
    run_config("ls960_recog_ctc", folder, load="tf.pt", **options)
    header, utterances = load_nbest(str(folder / "output" / "ls960_recog_ctc" / "nbest.jsonl"))
    assert header.options["enc_frontend_padding"] == "tf_same" and header.options["dec_use_zoneout_output"] is False
    assert header.options["enc_dim"] == 48
    assert len(utterances) == 4

    from tools import convert_tf_checkpoint
    from tools.tf_conversion.verify import load_converted, model_outputs

    convert_tf_checkpoint._set_up_returnn()
    _, model = load_converted(str(folder / "tf.pt"))
    for utt in utterances:
        speaker, chapter, _ = utt.seq_tag.split("/")[-1].split("-")
        name = os.path.join("LibriSpeech", "dev-clean", speaker, chapter, utt.seq_tag.split("/")[-1] + ".flac")
        audio, _ = soundfile.read(folder / name, dtype="float32")
        audio /= np.abs(audio).max()
        (outputs,) = model_outputs(model, [{"audio": audio}])
        log_probs = outputs["ctc_log_probs"]
        # As the published recognition: EOS, which the model was trained to give at the end, counts as blank.
        log_probs[:, 40] = np.logaddexp(log_probs[:, 40], log_probs[:, 0])
        log_probs[:, 0] = -np.inf
        path = log_probs.argmax(-1).tolist()
        expected = [label for label, before in zip(path, [40, *path], strict=False) if label not in (40, before)]
        assert expected and utt.hyps[0].labels == expected
        assert utt.hyps[0].score == pytest.approx(log_probs.max(-1).sum(), abs=1e-3)


def test_language_models_in_a_search(folder):
    """All converted kinds in one search: joint model, Transformer LM, Mini-LSTM internal LM."""
    from tools import convert_tf_checkpoint

    with_40_labels("ls_trafo_lm_small", str(folder / "tf_lm"))
    with_40_labels("ls_mini_ilm_small", str(folder / "tf_ilm"))
    for src, *args in (("tf",), ("tf_lm", "--set", "num_heads=4"), ("tf_ilm", "--asr-checkpoint", str(folder / "tf"))):
        assert convert_tf_checkpoint.main([str(folder / src), str(folder / f"lm_{src}.pt"), *args]) == 0
    options = {"vocab": "spm_unigram_40", "data_dir": "data", "num_workers": 0, "recog_parts": "dev-clean"}
    options |= {"lm_checkpoint": "lm_tf_lm.pt", "ilm_checkpoint": "lm_tf_ilm.pt", "lm_scale": 0.4, "ilm_scale": 0.2}
    run_config("ls960_recog_labelsync_lm", folder, load="lm_tf.pt", beam_size=4, **options)
    filename = folder / "output" / "ls960_recog_labelsync_lm" / "nbest.jsonl"
    header, utterances = load_nbest(str(filename))
    assert header.scales["lm"] == 0.4 and header.scales["ilm"] == -0.2
    assert len(utterances) == 4 and all(utt.hyps for utt in utterances) and not audit(header, utterances)


def test_fine_tuning(folder):
    """Begins with all converted values, and with the sizes that the checkpoint says; goes on when started again."""
    from rf_models.checkpoint import load_state_dict

    run_tool("convert_tf_checkpoint", "--model", "aed_ctc", "tf.index", "start.pt", cwd=folder)
    options = {"vocab": "spm_unigram_40", "dev_parts": "dev-clean", "train_parts": "train-clean-100", "num_workers": 0}
    options |= {"init_checkpoint": "start.pt", "num_epochs": 1, "partition_epoch": 1, "accum_grad_multiple_step": 1}
    fork_config("ls960_train_finetune", folder, **options, peak_learning_rate=1e-12, enc_dropout=0.2)
    models = folder / "output" / "ls960_train_finetune" / "models"
    info = json.loads((models / "model_info.json").read_text())["options"]
    assert info["enc_dim"] == 48 and info["enc_frontend_padding"] == "tf_same" and info["enc_dropout"] == 0.2
    assert json.loads((folder / "output" / "ls960_train_finetune" / "options.json").read_text())["enc_dim"] == 48
    start, _ = load_state_dict(str(folder / "start.pt"))
    end, rest = load_state_dict(str(models / "epoch.001.pt"))
    assert set(start) <= set(end) and rest["epoch"] == 1 and rest["step"] > 0
    for name, value in start.items():
        if "running_" not in name:
            np.testing.assert_allclose(end[name], value, atol=1e-8, err_msg=name)

    options |= {"peak_learning_rate": 1e-4, "output_dir": "output/tuned"}
    fork_config("ls960_train_finetune", folder, **options)
    first = folder / "output" / "tuned" / "models" / "epoch.001.pt"
    moved, _ = load_state_dict(str(first))
    changes = [float(abs(moved[name] - value).max()) for name, value in start.items() if "running_" not in name]
    assert 1e-6 < max(changes) < 1e-2
    before = first.read_bytes()
    done = fork_config("ls960_train_finetune", folder, **{**options, "num_epochs": 2})
    assert "Pre-load" not in done.stdout + done.stderr and first.read_bytes() == before
    assert (first.parent / "epoch.002.pt").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"enc_dim": 64}, "enc_dim = 64, but the model in fit_tf.pt has 48: leave this option out"),
        ({"init_checkpoint": "fit_full.pt"}, "fit_full.pt was trained with another vocabulary: it has 83 labels"),
        ({"init_checkpoint": "nosuch.pt"}, "init_checkpoint = nosuch.pt: no such checkpoint"),
        (
            {"init_checkpoint": "fit_lm.pt"},
            "fit_lm.pt holds a model of the kind transformer_lm, but this run needs aed_ctc",
        ),
        ({"init_checkpoint": "fit_half.pt"}, "fit_half.pt does not fit the model of this run"),
    ],
)
def test_fine_tuning_of_what_does_not_fit(folder, options, message):
    """Said before the training begins."""
    import torch

    from tools.convert_tf_checkpoint import main as convert

    sources = {
        "tf": (str(folder / "tf"),),
        "full": (AED,),
        "lm": (os.path.join(FIXTURES, "ls_trafo_lm_small", "model"),),
    }
    for name, args in sources.items():
        if not (folder / f"fit_{name}.pt").exists():
            more = ["--set", "num_heads=4"] if name == "lm" else []
            assert convert([args[0], str(folder / f"fit_{name}.pt"), *more]) == 0
    content = torch.load(folder / "fit_tf.pt", weights_only=True)
    content["model"] = dict(list(content["model"].items())[::2])
    torch.save(content, folder / "fit_half.pt")
    options = {"vocab": "spm_unigram_40", "dev_parts": "dev-clean", "train_parts": "train-clean-100", **options}
    options = {"init_checkpoint": "fit_tf.pt", "num_workers": 0, "output_dir": "output/wrong", **options}
    done = fork_config("ls960_train_finetune", folder, ok=False, **options)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("error: ") and message in last
    assert not list((folder / "output" / "wrong").glob("models/*.pt"))


def test_other_vocabulary_is_refused(folder):
    run_tool("convert_tf_checkpoint", AED + ".index", "full.pt", cwd=folder)
    options = {"vocab": "spm_unigram_40", "data_dir": "data", "recog_parts": "dev-clean", "output_dir": "output/full"}
    done = run_config("ls960_recog_labelsync", folder, load="full.pt", ok=False, **options)
    message = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and message.startswith("error: ")
    assert "trained with another vocabulary: it has 83 labels" in message and "has 40" in message
    assert not (folder / "output" / "full" / "nbest.jsonl").exists()


def test_large_checkpoint_needs_little_time_and_memory(tmp_path):
    """103.5 M parameters, the published LibriSpeech sizes: below 30 s of CPU time and 1.5 GB."""
    from rf_models.checkpoint import ModelInfo
    from tools import convert_tf_checkpoint
    from tools.tf_conversion.convert import make_plan, parameter_shapes
    from tools.tf_conversion.variables import Variables

    convert_tf_checkpoint._set_up_returnn()
    plan = make_plan("aed_ctc", Variables(BundleReader(AED)))
    rng = np.random.default_rng(1)
    noise = rng.normal(size=2176 * 4096).astype(np.float32)
    shapes = published_shapes()
    variables = {name: noise[: np.prod(shape)].reshape(shape) for name, shape in shapes.items()}
    assert {n for n in variables if "block_01" in n or "block" not in n} == {
        n for n in plan.variables.reader.entries if "block_01" in n or ("block" not in n and n != "global_step")
    }
    write_bundle(str(tmp_path / "large"), variables)
    del variables
    script = (
        "import os, sys, json, time; from tools import convert_tf_checkpoint as c; code = c.main(sys.argv[1:]);"
        "status = open('/proc/self/status').read() if os.path.exists('/proc/self/status') else 'VmHWM: 0';"
        "kib = int(status.split('VmHWM:')[1].split()[0]); print(json.dumps([code, kib * 1024, time.process_time()]))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "large.index"), str(tmp_path / "large.pt")]
    out = run_command(command, REPO).stdout
    code, memory, seconds = json.loads(out.splitlines()[-1])
    print(f"{memory / 1e9:.2f} GB, {seconds:.1f} s of CPU time")
    assert code == 0 and memory < 1.5e9 and seconds < 30
    assert "published model LibriSpeech" in out and "103.54 M values" in out
    shapes = parameter_shapes(ModelInfo("aed_ctc", {}, num_labels=10025, eos_index=0))
    from rf_models.checkpoint import load_state_dict

    state, _ = load_state_dict(str(tmp_path / "large.pt"))
    assert {name: tuple(value.shape) for name, value in state.items()} == shapes


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Variables of the LibriSpeech model as in the list that comes with the small one, with its own sizes."""
    sizes = {"conv": (32, 64, 64), "model": 512, "ff": 2048, "head": 64, "labels": 10025, "embed": 640, "lstm": 1024}
    with open(os.path.join(os.path.dirname(os.path.dirname(AED)), "tf_params.tsv"), encoding="utf8") as file:
        small = {name: json.loads(shape) for name, shape, _ in map(str.split, small_lines(file.read()))}
    # sizes of the small model are all different from each other, but for these
    rename = {8: 32, 12: 64, 48: 512, 80: 2048, 96: 1024, 144: 1536, 83: 10025, 84: 10026, 24: 640, 56: 1024, 40: 1024}
    rename |= {44: 1024, 22: 512, 480: 2560, 72: 1152, 128: 640 + 512 + 1024, 224: 4096}
    assert sizes["labels"] == rename[83]
    shapes = {}
    for name, shape in small.items():
        if name == "global_step":
            continue
        shapes[name] = tuple(rename.get(size, size) for size in shape)
    layers = {}
    for name, shape in shapes.items():
        if "block_02" in name:
            layers |= {name.replace("block_02", f"block_{i:02}"): shape for i in range(3, 13)}
    return shapes | layers


def small_lines(text: str) -> list[str]:
    return [line.replace(", ", ",") for line in text.splitlines() if line.count("\t") == 2]
