"""Training and perplexity of language models: the maths, and the programs as users run them."""

import json
import math
import os
import subprocess
import sys

import pytest
import returnn.frontend as rf
import torch
from corpora import make_librispeech
from returnn.config import Config, global_config_ctx
from returnn.tensor import Dim, Tensor
from tool_runs import call_tool

from configs.base import demo
from configs.base.options import OptionError
from configs.base.perplexity import perplexity_run
from recog.nbest import Hypothesis, NBestHeader, NBestWriter, Utterance
from recog.vocab import load_vocab
from rf_models.checkpoint import ModelInfo, build_model
from rf_models.lm_train import lm_log_probs
from rf_models.sequences import append_eos

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NUM_LABELS = 5
VOCAB = "data/demo/vocab/spm_unigram_40.json"
SMALL = {
    "lstm_lm": dict(num_layers=2, embed_dim=6, lstm_dim=8),
    "transformer_lm": dict(num_layers=2, embed_dim=6, model_dim=8, ff_dim=8, num_heads=2, att_dim=8),
    "mini_lstm_ilm": dict(mini_lstm_dim=4, enc_dim=6, dec_embed_dim=6, dec_lstm_dim=8, dec_readout_dim=8),
}


def make_model(kind):
    rf.select_backend_torch()
    rf.set_random_seed(1)
    model = build_model(ModelInfo(kind, SMALL[kind], NUM_LABELS, 0))
    for param in model.parameters():
        torch.nn.init.normal_(param.raw_tensor, std=0.5)
    rf.init_forward_step_run_ctx(step=0, epoch=1)
    return model


def log_probs_of(model, sequences):
    """:return: for each sequence [L + 1, V], log-probs of the next labels"""
    batch_dim = Dim(len(sequences), name="batch")
    sizes = torch.tensor([len(s) for s in sequences], dtype=torch.int32)
    lengths = Tensor("lengths", dims=[batch_dim], dtype="int32", raw_tensor=sizes)
    dim = Dim(lengths, name="labels")
    raw = torch.nn.utils.rnn.pad_sequence([torch.tensor(s) for s in sequences], batch_first=True, padding_value=3)
    vocab_dim = Dim(NUM_LABELS, name="vocab")
    labels = Tensor("labels", dims=[batch_dim, dim], dtype="int64", sparse_dim=vocab_dim, raw_tensor=raw)
    labels, dim = append_eos(labels, dim, eos_index=0, target_dim=model.target_dim)
    with torch.no_grad():
        log_probs = lm_log_probs(model, labels, spatial_dim=dim)
    log_probs = log_probs.copy_transpose([batch_dim, dim, model.target_dim]).raw_tensor
    return [log_probs[i, : size + 1] for i, size in enumerate(sizes.tolist())]


@pytest.mark.parametrize("kind", list(SMALL))
def test_a_distribution_that_depends_on_the_past_only(kind):
    model = make_model(kind)
    long, changed, short = log_probs_of(model, [[2, 4, 1, 1, 3], [2, 4, 1, 2, 2], [4]])
    torch.testing.assert_close(long.exp().sum(dim=1), torch.ones(6))
    torch.testing.assert_close(long[:4], changed[:4], atol=1e-6, rtol=0)
    assert (long[4] - changed[4]).abs().max() > 1e-3
    # the same in any batch, whatever stands in the padding
    torch.testing.assert_close(log_probs_of(model, [[4]])[0], short, atol=1e-6, rtol=0)


def run(*args, cwd, **env):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT, **env}
    result = subprocess.run([sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True)
    return result.returncode, result.stdout + result.stderr


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with data/demo: a prepared corpus with text for language models."""
    folder = tmp_path_factory.mktemp("lm")
    make_librispeech(str(folder / "source"), {"train": 6, "dev": 4})
    (folder / "lm.txt").write_text("PACK MY BOX\nTHE LAZY DOG JUMPS\nA B C\nIT'S THE WEATHER\n" * 20)
    tool = os.path.join(ROOT, "tools", "prepare_librispeech.py")
    options = ("--corpus", "demo", "--vocab", "spm_unigram_40", "--lm-text", "lm.txt")
    code, output = run(tool, "source", "data/demo", *options, cwd=folder)
    assert code == 0, output
    return folder


def test_training_and_perplexity(workplace):
    config = os.path.join(ROOT, "configs", "demo_lm_train.config")
    options = ("++vocab", "spm_unigram_40", "++lstm_dim", "16", "++num_epochs", "2", "++train_texts", "lm,transcripts")
    code, output = run("-m", "returnn", config, *options, cwd=workplace)
    assert code == 0, output
    assert "net params" in output and "Finished training at epoch 2" in output
    models = workplace / "output" / "demo_lm_train" / "models"
    assert json.loads((models / "model_info.json").read_text())["options"]["lstm_dim"] == 16

    (workplace / "my.txt").write_text("A  B C\n\nTHE LAZY DOG\n")
    (workplace / "a.pt").write_bytes((models / "epoch.002.pt").read_bytes())
    (workplace / "model_info.json").write_bytes((models / "model_info.json").read_bytes())
    config = os.path.join(ROOT, "configs", "demo_perplexity.config")
    options = ("++vocab", "spm_unigram_40", "++texts", "dev,lm,my.txt", "++models", "demo_lm_train,a.pt")
    code, output = run("-m", "returnn", config, *options, cwd=workplace)
    assert code == 0, output
    folder = workplace / "output" / "demo_perplexity"
    result = json.loads((folder / "perplexity.json").read_text())
    assert (folder / "perplexity.txt").read_text() in output
    sentences = [json.loads(line) for line in (folder / "sentences.jsonl").read_text().splitlines()]
    assert [s["tag"] for s in sentences if s["text"] == "my.txt"] == ["line-1", "line-3"]
    assert {s["tag"] for s in sentences if s["text"] == "dev"} == {
        "dev/119-198-0000", "dev/119-198-0001", "dev/119-198-0002", "dev/120-198-0000"
    }  # fmt: skip
    assert (result["my.txt"]["num_sentences"], result["my.txt"]["num_words"], result["lm"]["num_words"]) == (2, 6, 260)
    for name, text in result.items():
        of_text = [s for s in sentences if s["text"] == name]
        total = sum(s["log_prob"]["demo_lm_train"] for s in of_text)
        for per, count in (("label", sum(s["num_labels"] for s in of_text)), ("word", text["num_words"])):
            perplexity = text[f"perplexity_per_{per}"]
            assert perplexity["demo_lm_train"] == pytest.approx(math.exp(-total / (count + len(of_text))))
            assert perplexity["a.pt"] == perplexity["demo_lm_train"]
    assert result["lm"]["perplexity_per_word"]["a.pt"] < result["dev"]["perplexity_per_word"]["a.pt"]
    # what the training said of the dev transcripts
    log = (workplace / "output" / "demo_lm_train" / "returnn.log").read_text()
    exponential = float(log.split("dev: ce ")[-1].split("ce:exp ")[1].split()[0])
    assert result["dev"]["perplexity_per_label"]["a.pt"] == pytest.approx(exponential, rel=1e-3)

    code, output = run("-m", "returnn", config, *options, cwd=workplace)
    assert code == 0 and "has finished before" in output and "Forward" not in output

    # the tool says the same without a config, in batches of another size
    tool = call_tool(
        "perplexity", "a.pt", "--vocab", VOCAB, "--text", "lm.txt", "my.txt", "--batch-size", "7", "--json", "ppl.json",
        cwd=workplace,
    )  # fmt: skip
    assert tool.returncode == 0, tool.stderr
    of_tool = json.loads((workplace / "ppl.json").read_text())
    for mine, theirs in (("lm.txt", "lm"), ("my.txt", "my.txt")):
        score, expected = of_tool[mine], result[theirs]
        assert {key: value for key, value in score.items() if key.startswith("num_")} == {
            key: value for key, value in expected.items() if key.startswith("num_")
        }
        assert score["log_prob"]["a.pt"] == pytest.approx(expected["log_prob"]["a.pt"], rel=1e-6)
        assert f"{score['perplexity_per_word']['a.pt']:.2f}" in tool.stdout


def test_perplexity_of_an_nbest_file(workplace, tmp_path):
    """References, or the best hypotheses; utterances without text are no sentences."""
    hyps = [Hypothesis([3, 4], text, -1.0, {"att": -1.0}) for text in ("A B", "")]
    with NBestWriter(str(tmp_path / "nbest.jsonl"), NBestHeader(search="label_sync", scales={"att": 1.0})) as writer:
        for i, (ref, hyp) in enumerate(zip(("C", "A B C"), hyps, strict=True)):
            writer.write(Utterance(seq_tag=f"dev/{i}", duration=1.0, enc_len=9, ref=ref, hyps=[hyp]))
        writer.write(Utterance(seq_tag="dev/2", duration=1.0, enc_len=9, ref=None, hyps=[], error="broken"))
    info = ModelInfo("lstm_lm", SMALL["lstm_lm"], load_vocab(str(workplace / VOCAB)).num_labels, 0)
    params = {name: param.raw_tensor.detach() for name, param in build_model(info).named_parameters()}
    torch.save({"model": params, "model_info": info.as_dict()}, tmp_path / "lm.pt")
    args = ("perplexity", "lm.pt", "--vocab", workplace / VOCAB, "--text", "nbest.jsonl")
    done = call_tool(*args, "--hyps", "--json", "hyps.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    score = json.loads((tmp_path / "hyps.json").read_text())["nbest.jsonl"]
    assert (score["num_sentences"], score["num_words"]) == (1, 2)
    done = call_tool(*args, "--json", "refs.json", cwd=tmp_path)
    assert done.returncode == 0 and "1 utterances without reference or hypotheses are left out" in done.stderr
    assert json.loads((tmp_path / "refs.json").read_text())["nbest.jsonl"]["num_sentences"] == 2
    (tmp_path / "empty.txt").write_text("\n")
    done = call_tool(*args[:-1], "empty.txt", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr == "error: empty.txt: there is no sentence in it\n"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"texts": "nothing.txt"}, "no text 'nothing.txt': it is neither a file nor one of lm, transcripts, dev"),
        ({"texts": "cut.txt"}, "the last line has no end"),
        ({"models": "nothing"}, "no checkpoint in"),
        ({"speed_perturbation": "1.0"}, "unknown option 'speed_perturbation'"),
    ],
)
def test_errors(workplace, options, message, monkeypatch):
    (workplace / "cut.txt").write_text("A B C")
    monkeypatch.chdir(workplace)
    command_line = Config()
    command_line.dict.update({"vocab": "spm_unigram_40", "texts": "dev", **options})
    with global_config_ctx(command_line), pytest.raises(OptionError, match=message):
        perplexity_run({"__file__": "demo_perplexity.config"}, demo.lm_setup)
