"""Converted models against outputs of RETURNN's TensorFlow backend, and what the converter says of wrong input."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch
from convert_bundle_writer import write_bundle
from returnn.util.basic import BehaviorVersion

from rf_models.checkpoint import read_model_info
from tools import convert_tf_checkpoint
from tools.tf_conversion.bundle import BundleReader
from tools.tf_conversion.verify import TOLERANCE, load_converted, model_outputs, read_reference, verify

FIXTURES = os.path.join(os.path.dirname(__file__), "fixtures", "tf")
AED = os.path.join(FIXTURES, "ls_aed_small", "model", "average")
LSTM_LM = os.path.join(FIXTURES, "ls_lstm_lm_small", "model", "network.035")
TRAFO_LM = os.path.join(FIXTURES, "ls_trafo_lm_small", "model", "network.023")
ILM = os.path.join(FIXTURES, "ls_mini_ilm_small", "model", "checkpoint")

KINDS = {
    "aed_ctc": ("ls_aed_small", []),
    "ctc": ("ls_aed_small", []),
    "lstm_lm": ("ls_lstm_lm_small", []),
    "transformer_lm": ("ls_trafo_lm_small", ["--set", "num_heads=4"]),
    "mini_lstm_ilm": ("ls_mini_ilm_small", ["--asr-checkpoint", AED]),
    # Made by tests/tf/cases.py: mel normalisation, zoneout output, no CTC; gelu, no positions; output not transposed.
    "ted2_aed_ctc": (
        "ted2_aed_small",
        [
            *("--mel-mean", os.path.join(FIXTURES, "ted2_aed_small", "mean.txt")),
            *("--mel-stddev", os.path.join(FIXTURES, "ted2_aed_small", "std_dev.txt")),
            *("--set", "dec_use_zoneout_output=True"),
        ],
    ),
    "ted2_lstm_lm": ("ted2_lstm_lm_small", []),
    "ted2_transformer_lm": (
        "ted2_trafo_lm_small",
        ["--set", "num_heads=3", "--set", "activation=gelu", "--set", "positional_encoding=False"],
    ),
    "ted2_mini_lstm_ilm": ("ted2_mini_ilm_small", ["--set", "dec_use_zoneout_output=True"]),
}


def ref(name: str) -> str:
    return os.path.join(FIXTURES, name, "ref.npz")


def convert(src, dst, *args) -> int:
    return convert_tf_checkpoint.main([str(src), str(dst), *map(str, args)])


def refused(capsys, src, dst, *args) -> str:
    """:return: the error message; there is no output"""
    capsys.readouterr()
    assert convert(src, dst, *args) == 1
    assert not os.path.exists(dst) and not [n for n in os.listdir(os.path.dirname(dst)) if n.endswith(".tmp")]
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


def read_all(prefix: str) -> dict[str, np.ndarray]:
    reader = BundleReader(prefix)
    return {name: reader.read(name) for name in reader.entries}


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("converted")
    files = {}
    for kind, (name, args) in KINDS.items():
        files[kind] = str(folder / f"{kind}.pt")
        assert (
            convert(os.path.join(FIXTURES, name, "model"), files[kind], "--model", kind.removeprefix("ted2_"), *args)
            == 0
        )
    return files


@pytest.mark.parametrize("kind", KINDS)
def test_same_outputs_as_tensorflow(converted, kind):
    """Every utterance alone and all in one batch, at the behavior version of the configs."""
    assert BehaviorVersion.get() >= 24
    name, _ = KINDS[kind]
    results, skipped = verify(converted[kind], ref(name))
    stages = {r.stage: r for r in results}
    expected = {"aed_ctc": {"log_mel", "encoder", "ctc_log_probs", "dec_log_probs"}}
    expected["ctc"] = expected["aed_ctc"] - {"dec_log_probs"}
    expected["ted2_aed_ctc"] = expected["aed_ctc"] - {"ctc_log_probs"}
    assert set(stages) == expected.get(kind, {"log_probs"})
    assert skipped == (["dec_log_probs"] if kind == "ctc" else [])
    for r in results:
        assert r.num_seqs == {"ls": 4 if "ctc" in kind else 2, "ted2": 6 if "ctc" in kind else 4}[name.split("_")[0]]
        assert not r.note
        assert r.alone <= 1e-4 and r.in_batch <= 1e-4, r


def test_batch_with_garbage_behind_the_end(converted):
    """What stands in the padding does not matter, nor which other utterances there are."""
    _, model = load_converted(converted["aed_ctc"])
    seqs = read_reference(ref("ls_aed_small"), "aed_ctc").inputs
    alone = [model_outputs(model, [seq])[0] for seq in seqs]
    for indices in ([0, 1, 2, 3], [2, 0], [3, 2, 1]):
        in_batch = model_outputs(model, [seqs[i] for i in indices], padding_value=0.7)
        for i, found in zip(indices, in_batch, strict=True):
            for stage in ("encoder", "ctc_log_probs", "dec_log_probs"):
                np.testing.assert_allclose(found[stage], alone[i][stage], atol=5e-5, rtol=0)


def test_all_lengths_alone_and_in_a_batch(converted):
    """Lengths modulo the strides (6 frames), with a batch of all of them."""
    _, model = load_converted(converted["aed_ctc"])
    audio = read_reference(ref("ls_aed_small"), "aed_ctc").inputs[0]["audio"]
    seqs = [{"audio": audio[: 8000 + 160 * i]} for i in range(7)] + [{"audio": audio[:400]}, {"audio": audio[:560]}]
    in_batch = model_outputs(model, seqs)
    for seq, found in zip(seqs, in_batch, strict=True):
        (expected,) = model_outputs(model, [seq])
        assert len(expected["encoder"]) == -(-len(expected["log_mel"]) // 6)
        np.testing.assert_allclose(found["encoder"], expected["encoder"], atol=5e-5, rtol=0)


def test_other_padding_is_visible(converted, tmp_path):
    """The option tf_same is what makes the encoder agree."""
    content = torch.load(converted["aed_ctc"], weights_only=True)
    assert content["model_info"]["options"]["enc_frontend_padding"] == "tf_same"
    content["model_info"]["options"]["enc_frontend_padding"] = "same"
    torch.save(content, tmp_path / "same.pt")
    results, _ = verify(str(tmp_path / "same.pt"), ref("ls_aed_small"))
    worst = {r.stage: r.alone for r in results}
    assert worst["log_mel"] < TOLERANCE and worst["encoder"] > 0.1


def test_checkpoint_says_what_it_is(converted):
    for kind, filename in converted.items():
        info = read_model_info(filename)
        assert info.kind == {"ctc": "aed_ctc"}.get(kind, kind.removeprefix("ted2_"))
        assert (info.num_labels, info.eos_index) == (37 if "ted2" in kind else 83, 0)
        assert info.source["checkpoint"].startswith(os.path.join(FIXTURES, KINDS[kind][0], "model"))
        content = torch.load(filename, weights_only=True)
        assert content["step"] == 123456
        assert content["epoch"] == {
            "lstm_lm": 35,
            "transformer_lm": 23,
            "ted2_lstm_lm": 30,
            "ted2_transformer_lm": 30,
        }.get(kind, 1)
        assert all(value.dtype == torch.float32 for value in content["model"].values())
    aed = read_model_info(converted["aed_ctc"]).model_options()
    with open(os.path.join(FIXTURES, "ls_aed_small", "config.json"), encoding="utf8") as file:
        sizes = json.load(file)
    assert aed.enc_frontend_channels == tuple(sizes["conv"]) and aed.enc_num_layers == sizes["num_layers"]
    assert (aed.enc_dim, aed.enc_ff_dim, aed.enc_num_heads) == (sizes["model"], sizes["ff"], sizes["heads"])
    assert (aed.enc_rel_pos_clipping, aed.enc_conv_kernel_size) == (sizes["clipping"], sizes["kernel"])
    assert (aed.dec_embed_dim, aed.dec_lstm_dim) == (sizes["embed"], sizes["lstm"])
    assert (aed.dec_att_dim, aed.dec_readout_dim) == (sizes["key"], sizes["readout"])
    assert aed.dec_use_zoneout_output is False and aed.ctc_layers == (2,) and aed.with_decoder
    assert read_model_info(converted["ctc"]).model_options().with_decoder is False
    ted2 = read_model_info(converted["ted2_aed_ctc"]).model_options()
    assert ted2.mel_normalization and ted2.dec_use_zoneout_output and ted2.ctc_layers == ()
    assert (ted2.num_mel_filters, ted2.enc_num_layers, ted2.enc_rel_pos_clipping) == (40, 3, 5)
    assert read_model_info(converted["mini_lstm_ilm"]).source["asr_checkpoint"] == AED


def test_wrong_options_are_found_by_verify(tmp_path, capsys):
    """They are what a checkpoint does not show; the converter does not write the file."""
    wrong = {
        "dec_use_zoneout_output=True": (AED, "ls_aed_small", "dec_log_probs is the first", []),
        "log_mel_base=10.5": (AED, "ls_aed_small", "log_mel is the first", []),
        "enc_frontend_time_strides=1,2,3": (AED, "ls_aed_small", "encoder is the first", []),
        "ctc_layers=1": (AED, "ls_aed_small", "ctc_log_probs is the first", []),
        "dec_use_zoneout_output=False": (
            os.path.join(FIXTURES, "ted2_aed_small", "model"),
            "ted2_aed_small",
            "dec_log_probs is the first",
            KINDS["ted2_aed_ctc"][1][:4],
        ),
        "mel_normalization=False": (
            os.path.join(FIXTURES, "ted2_aed_small", "model"),
            "ted2_aed_small",
            "log_mel is the first",
            ["--set", "dec_use_zoneout_output=True"],
        ),
        "activation=gelu_tanh": (
            os.path.join(FIXTURES, "ted2_trafo_lm_small", "model"),
            "ted2_trafo_lm_small",
            "log_probs is the first",
            ["--set", "num_heads=3", "--set", "positional_encoding=False"],
        ),
        "num_heads=2": (TRAFO_LM, "ls_trafo_lm_small", "log_probs is the first", []),
        "activation=gelu": (TRAFO_LM, "ls_trafo_lm_small", "log_probs is the first", ["--set", "num_heads=4"]),
        "positional_encoding=False": (TRAFO_LM, "ls_trafo_lm_small", "log_probs", ["--set", "num_heads=4"]),
    }
    for setting, (src, name, message, args) in wrong.items():
        dst = tmp_path / "x.pt"
        assert convert(src, dst, "--set", setting, *args, "--verify", ref(name)) == 1
        out, err = capsys.readouterr()
        assert message in out and "DIFFERS" in out and "was not written" in err, setting
        assert not os.listdir(tmp_path)


def test_verify_a_converted_file(converted, tmp_path, capsys):
    args = ["--verify", ref("ls_aed_small"), converted["aed_ctc"], "--json", str(tmp_path / "r.json")]
    assert convert_tf_checkpoint.main(args) == 0
    assert "encoder" in capsys.readouterr().out
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["agrees"] and content["stages"]["encoder"]["in_batch"] < TOLERANCE
    assert convert_tf_checkpoint.main([*args, "--tolerance", "1e-7"]) == 1
    assert convert_tf_checkpoint.main(["--verify", ref("ls_lstm_lm_small"), converted["aed_ctc"]]) == 1
    assert "has no reference for a model of the kind aed_ctc" in capsys.readouterr().err
    assert convert_tf_checkpoint.main(["--verify", AED + ".index", converted["aed_ctc"]]) == 1
    assert "no .npz file" in capsys.readouterr().err
    assert convert_tf_checkpoint.main(["--verify", ref("ls_aed_small"), AED + ".index"]) == 1
    assert "not a readable PyTorch checkpoint" in capsys.readouterr().err


def test_inputs_as_index_prefix_folder(tmp_path, converted):
    expected = torch.load(converted["aed_ctc"], weights_only=True)["model"]
    for i, src in enumerate((AED, AED + ".index", AED + ".data-00000-of-00001", os.path.dirname(AED))):
        assert convert(src, tmp_path / f"{i}.pt") == 0  # the kind is seen from the names
        found = torch.load(tmp_path / f"{i}.pt", weights_only=True)["model"]
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], expected[name]) for name in found)


def test_other_names_and_additional_variables(tmp_path, converted):
    """Without and with the scope output/rec/, BatchNorm of newer RETURNN, optimizer state, moving averages."""
    variables = {}
    for name, value in read_all(AED).items():
        if name.startswith("conv0/"):
            variables[f"{name}/Adam"] = variables[f"{name}/Adam_1"] = value
            variables[f"optimize/gradients/{name}_accum_grad/var"] = value
        if "/batch_norm/" in name:
            layer, _, param = name.rpartition("/")
            kind = param.rpartition("_")[2]
            if "block_01" in name:
                name, value = f"{layer}/v2_{kind}", value.reshape(-1)
            else:
                name = f"{layer}/{kind}"
        variables[name.removeprefix("output/rec/").replace("target_embed0", "target_embed")] = value
    variables |= {"beta1_power": np.float32(0.9), "learning_rate": np.float32(1e-3), "epoch_step": np.int64(3)}
    write_bundle(str(tmp_path / "m"), variables, num_shards=2)
    assert convert(tmp_path / "m", tmp_path / "m.pt", "--model", "aed_ctc", "--verify", ref("ls_aed_small")) == 0
    found, expected = (torch.load(f, weights_only=True)["model"] for f in (tmp_path / "m.pt", converted["aed_ctc"]))
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    in_scope = {f"output/rec/{name}": value for name, value in read_all(LSTM_LM).items() if name != "global_step"}
    write_bundle(str(tmp_path / "lm"), in_scope)
    assert convert(tmp_path / "lm", tmp_path / "lm.pt", "--verify", ref("ls_lstm_lm_small")) == 0
    bare = {name.removeprefix("output/rec/"): value for name, value in read_all(TRAFO_LM).items()}
    write_bundle(str(tmp_path / "tlm"), bare)
    args = ("--set", "num_heads=4", "--verify", ref("ls_trafo_lm_small"))
    assert convert(tmp_path / "tlm", tmp_path / "tlm.pt", *args) == 0


def test_lstm_lm_output_matrix_either_way(tmp_path, capsys):
    variables = read_all(LSTM_LM)
    variables["output/W"] = np.ascontiguousarray(variables["output/W"].T)
    write_bundle(str(tmp_path / "m"), variables)
    assert convert(tmp_path / "m", tmp_path / "m.pt", "--verify", ref("ls_lstm_lm_small")) == 0
    message = refused(capsys, tmp_path / "m", tmp_path / "x.pt", "--set", "transposed=True")
    assert "output/W" in message and "[40, 83]" in message and "[83, 40]" in message

    square = {"input/W": np.zeros((4, 3)), "input/b": np.zeros(3), "output/W": np.eye(4) * 2, "output/b": np.zeros(4)}
    square |= {"lstm0/rec/W": np.zeros((3, 16)), "lstm0/rec/W_re": np.zeros((4, 16)), "lstm0/rec/b": np.zeros(16)}
    square["output/W"][0, 1] = 1
    write_bundle(str(tmp_path / "s"), {name: np.float32(value) for name, value in square.items()})
    assert "--set transposed=True or False" in refused(capsys, tmp_path / "s", tmp_path / "x.pt")
    for transposed in (True, False):
        dst = tmp_path / f"{transposed}.pt"
        assert convert(tmp_path / "s", dst, "--set", f"transposed={transposed}") == 0
        found = torch.load(dst, weights_only=True)["model"]["output.weight"].numpy()
        np.testing.assert_array_equal(found, square["output/W"].T if transposed else square["output/W"])


def test_ilm_with_and_without_asr_checkpoint(tmp_path, converted, capsys):
    dst = tmp_path / "m.pt"
    assert convert(ILM, dst, "--verify", ref("ls_mini_ilm_small")) == 0  # from the frozen copies
    expected = torch.load(converted["mini_lstm_ilm"], weights_only=True)["model"]
    found = torch.load(dst, weights_only=True)["model"]
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    only_ilm = {name: value for name, value in read_all(ILM).items() if "/att" in name}
    write_bundle(str(tmp_path / "only"), only_ilm)
    assert "--asr-checkpoint" in refused(capsys, tmp_path / "only", tmp_path / "x.pt")
    args = ("--asr-checkpoint", AED + ".index", "--verify", ref("ls_mini_ilm_small"))
    assert convert(tmp_path / "only", tmp_path / "only.pt", *args) == 0

    other = read_all(AED)
    other["output/rec/readout_in/b"] = other["output/rec/readout_in/b"] + 1
    write_bundle(str(tmp_path / "other"), other)
    capsys.readouterr()
    assert convert(ILM, tmp_path / "other.pt", "--asr-checkpoint", tmp_path / "other") == 0
    out = capsys.readouterr().out
    assert "Warning" in out and "output/rec/readout_in/b" in out
    found = torch.load(tmp_path / "other.pt", weights_only=True)["model"]
    np.testing.assert_array_equal(found["prior_readout_in.bias"], other["output/rec/readout_in/b"])


def test_mel_statistics(tmp_path, capsys):
    """They are applied as the TensorFlow setup did, and part of the checkpoint."""
    rng = np.random.default_rng(4)
    mean, stddev = rng.normal(size=80), rng.uniform(0.5, 2.0, size=80)
    np.savetxt(tmp_path / "mean.txt", mean)
    np.savetxt(tmp_path / "std_dev.txt", stddev)
    args = ["--mel-mean", tmp_path / "mean.txt", "--mel-stddev", tmp_path / "std_dev.txt"]
    assert convert(AED, tmp_path / "m.pt", *args) == 0
    assert "If this one had it as well: --set dec_use_zoneout_output=True" in capsys.readouterr().out
    _, model = load_converted(str(tmp_path / "m.pt"))
    reference = read_reference(ref("ls_aed_small"), "aed_ctc")
    found = model_outputs(model, reference.inputs[2:3])[0]
    expected = (reference.outputs[2]["log_mel"] - mean) / stddev
    np.testing.assert_allclose(found["log_mel"], expected, atol=2e-4)
    # references may have been taken before the normalisation
    results, _ = verify(str(tmp_path / "m.pt"), ref("ls_aed_small"))
    assert results[0].stage == "log_mel" and results[0].agrees() and "before" in results[0].note
    assert not results[1].agrees()

    capsys.readouterr()
    np.savetxt(tmp_path / "short.txt", mean[:40])
    bad = tmp_path / "bad.txt"
    bad.write_text("no numbers\n")
    x = tmp_path / "x.pt"
    std = ("--mel-stddev", tmp_path / "std_dev.txt")
    message = refused(capsys, AED, x, "--mel-mean", tmp_path / "short.txt", *std)
    assert "40 values" in message and "80 mel filters" in message
    assert "bad.txt is no text file of numbers" in refused(capsys, AED, x, "--mel-mean", bad, *std)
    assert "nothing.txt" in refused(capsys, AED, x, "--mel-mean", tmp_path / "nothing.txt", *std)
    swapped = ("--mel-mean", tmp_path / "std_dev.txt", "--mel-stddev", tmp_path / "mean.txt")
    assert "swapped" in refused(capsys, AED, x, *swapped)
    assert "for models of audio" in refused(capsys, LSTM_LM, x, *args)
    assert "--mel-mean FILE" in refused(capsys, AED, x, "--set", "mel_normalization=True")
    with pytest.raises(SystemExit):
        convert(AED, x, *args[:2])


def test_wrong_input(tmp_path, capsys):
    x = tmp_path / "x.pt"
    assert "neither" in refused(capsys, tmp_path / "nothing", x)
    assert "no Conformer encoder" in refused(capsys, LSTM_LM, x, "--model", "aed_ctc")
    assert "no LSTM language model" in refused(capsys, AED, x, "--model", "lstm_lm")
    assert "no Transformer language model" in refused(capsys, AED, x, "--model", "transformer_lm")
    assert "no Mini-LSTM" in refused(capsys, AED, x, "--model", "mini_lstm_ilm")
    assert "--set num_heads=N" in refused(capsys, TRAFO_LM, x)
    assert "num_heads" in refused(capsys, TRAFO_LM, x, "--set", "num_heads=5")
    assert "did you mean num_heads" in refused(capsys, TRAFO_LM, x, "--set", "num_head=4")
    assert "expected a whole number" in refused(capsys, TRAFO_LM, x, "--set", "num_heads=many")
    assert "expected OPTION=VALUE" in refused(capsys, TRAFO_LM, x, "--set", "num_heads")
    assert "has enc_dim = 48" in refused(capsys, AED, x, "--set", "enc_dim=512")
    assert "ctc_layers = (3,)" in refused(capsys, AED, x, "--set", "ctc_layers=3")
    assert "one CTC softmax" in refused(capsys, AED, x, "--set", "ctc_layers=1,2")
    assert "0 ... 82" in refused(capsys, AED, x, "--eos-index", 83)
    assert "not a regular expression" in refused(capsys, AED, x, "--ignore", "(")
    assert "is for mini_lstm_ilm" in refused(capsys, AED, x, "--asr-checkpoint", AED)
    assert "does not exist" in refused(capsys, AED, x, "--verify", tmp_path / "ref.npz")
    assert "PyTorch checkpoint" in refused(capsys, x, tmp_path / "y.pt")
    assert convert(AED, tmp_path / "no" / "x.pt") == 1
    assert "does not exist" in capsys.readouterr().err
    for args in ([AED], [AED, "x.index"], ["--list", AED, "x.pt"], [AED, "x.pt", "--model", "rnnt"]):
        with pytest.raises(SystemExit) as info:
            convert_tf_checkpoint.main(args)
        assert info.value.code == 2


def test_existing_output_is_kept(tmp_path, capsys):
    dst = tmp_path / "x.pt"
    dst.write_text("mine")
    assert convert(LSTM_LM, dst) == 1
    assert "--force" in capsys.readouterr().err and dst.read_text() == "mine"
    assert convert(LSTM_LM, dst, "--force") == 0
    assert os.listdir(tmp_path) == ["x.pt"] and dst.stat().st_size > 1000


def change(tmp_path, src: str, changes: dict) -> str:
    """A checkpoint as src with other variables (None: without)."""
    variables = {**read_all(src), **changes}
    write_bundle(str(tmp_path / "changed"), {name: value for name, value in variables.items() if value is not None})
    return str(tmp_path / "changed")


def test_every_variable_and_parameter_has_its_place(tmp_path, capsys):
    x = tmp_path / "x.pt"
    f32 = np.float32
    src = change(tmp_path, AED, {"output/rec/new_layer/W": np.zeros((3, 4), f32)})
    message = refused(capsys, src, x)
    assert "output/rec/new_layer/W [3, 4]" in message and "--ignore REGEX" in message
    assert convert(src, x, "--ignore", "new_.*") == 0
    assert "ignored: output/rec/new_layer/W: as you wish" in capsys.readouterr().out
    x.unlink()
    src = change(tmp_path, AED, {"conformer_block_02_self_att/QKV": None})
    message = refused(capsys, src, x)
    assert "conformer_block_02_self_att/QKV" in message and "encoder.layers.1.self_att.qkv.weight [48, 144]" in message
    src = change(tmp_path, AED, {"conformer_block_02_ffmod_1_ff1/W": np.zeros((48, 81), f32)})
    message = refused(capsys, src, x)
    assert "[48, 81]" in message and "encoder.layers.1.ffn1.linear_ff.weight [48, 80]" in message
    src = change(tmp_path, AED, {"ctc/W": np.zeros((48, 83), f32)})
    assert "84 with blank were expected" in refused(capsys, src, x)
    src = change(tmp_path, AED, {"output/rec/target_embed0/W": np.zeros((80, 24), f32)})
    assert "the embedding has 80 labels" in refused(capsys, src, x)
    src = change(tmp_path, AED, {"output/rec/s/rec/lstm_cell/kernel": np.zeros((127, 224), f32)})
    assert "[127, 224]" in refused(capsys, src, x)
    src = change(tmp_path, AED, {"conv0/W": np.zeros((5, 5, 1, 8), f32)})
    assert "[5, 5]" in refused(capsys, src, x)
    src = change(tmp_path, AED, {"source_linear/W": np.zeros((481, 48), f32)})
    assert "do not fit each other" in refused(capsys, src, x)
    src = change(tmp_path, AED, {"conv0/bias": np.full(8, np.nan, f32)})
    assert "not finite" in refused(capsys, src, x)
    src = change(tmp_path, AED, {"conv0/bias": np.zeros(8, np.int32)})
    assert "conv0/bias is of the type int32" in refused(capsys, src, x)
    src = change(tmp_path, AED, {"readout_in/W": np.zeros((128, 44), f32)})
    assert "has both" in refused(capsys, src, x)
    src = change(tmp_path, AED, {"subsample_conv1/W": None, "subsample_conv1/bias": None})
    assert "--set enc_frontend_time_strides" in refused(capsys, src, x)
    src = change(tmp_path, AED, {n: None for n in read_all(AED) if n.startswith("conformer_block_01")})
    assert "blocks [2]: some are missing" in refused(capsys, src, x)
    src = change(tmp_path, TRAFO_LM, {n: None for n in read_all(TRAFO_LM) if "rec/dec_" in n and "dec_1" not in n})
    assert "is of no model that is known here" in refused(capsys, src, x)
    src = change(tmp_path, LSTM_LM, {"lstm3/rec/W": np.zeros((41, 160), f32)})
    assert "[41, 160]" in refused(capsys, src, x)


def test_damaged_data(tmp_path, capsys):
    for suffix in (".index", ".data-00000-of-00001"):
        shutil.copy(LSTM_LM + suffix, tmp_path / f"m{suffix}")
    data = bytearray((tmp_path / "m.data-00000-of-00001").read_bytes())
    data[1000] ^= 1
    (tmp_path / "m.data-00000-of-00001").write_bytes(data)
    assert "is damaged: the CRC of" in refused(capsys, tmp_path / "m", tmp_path / "x.pt")


def test_published_sizes(tmp_path, capsys):
    """Options that a checkpoint does not show are known for the published models."""
    from tools.tf_conversion.published import find_published

    aed = {"enc_dim": 512, "dec_lstm_dim": 1024, "enc_num_layers": 12}
    ls = find_published("aed_ctc", {**aed, "num_labels": 10025, "dec_embed_dim": 640})
    ted = find_published("aed_ctc", {**aed, "num_labels": 1057, "dec_embed_dim": 256})
    assert ls.options == {"dec_use_zoneout_output": False} and not ls.mel_normalization
    assert ted.options == {"dec_use_zoneout_output": True} and ted.mel_normalization
    assert find_published("aed_ctc", {**aed, "num_labels": 5000, "dec_embed_dim": 640}) is None
    lm = find_published("transformer_lm", {"num_labels": 1057, "num_layers": 30, "model_dim": 768, "ff_dim": 4096})
    assert lm.options == {"num_heads": 12, "activation": "gelu", "positional_encoding": False}


def test_list(tmp_path, capsys):
    assert convert_tf_checkpoint.main(["--list", AED + ".index", "--json", str(tmp_path / "l.json")]) == 0
    out = capsys.readouterr().out
    assert "all 85 parameters are filled, 1 ignored, nothing is left over" in out
    assert "dec_use_zoneout_output = False" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["output/rec/s/rec/lstm_cell/kernel", "128x224", "decoder.s.ff_weight", "224x72"] in [x[:4] for x in lines]
    assert ["global_step", "scalar", "-"] in [x[:3] for x in lines]
    content = json.loads((tmp_path / "l.json").read_text())
    assert content["model"] == "aed_ctc" and content["problem"] is None
    params = {record["parameter"] for record in content["variables"] if "parameter" in record}
    assert len(params) == 85

    # also what cannot be converted is listed
    src = change(tmp_path, TRAFO_LM, {"output/rec/other/W": np.zeros((2, 3), np.float32)})
    assert convert_tf_checkpoint.main(["--list", src]) == 0
    out = capsys.readouterr().out
    assert "output/rec/other/W" in out and "Cannot be converted as it is" in out and "num_heads" in out
    assert convert_tf_checkpoint.main(["--list", src, "--set", "num_heads=4"]) == 0
    out = capsys.readouterr().out
    assert "layers.1.ff.linear_ff.weight" in out and "left over" in out
    write_bundle(str(tmp_path / "unknown"), {"a/W": np.zeros((2, 3), np.float32)})
    assert convert_tf_checkpoint.main(["--list", str(tmp_path / "unknown")]) == 0
    out = capsys.readouterr().out
    assert "a/W" in out and "2x3" in out and "no model that is known here" in out
    assert convert_tf_checkpoint.main(["--list", ILM, "--asr-checkpoint", AED]) == 0
    assert "mini_att_lstm.ff_weight" in capsys.readouterr().out
