"""Internal language models: what is trained and what is frozen, and the programs as users run them."""

import json
import os
from dataclasses import asdict

import returnn.frontend as rf
import torch
from returnn.tensor import Dim, Tensor, TensorDict, batch_dim
from test_language_models import ROOT, make_model, run, workplace  # noqa: F401 (fixture)

from rf_models.aed_ctc import AedCtcModel
from rf_models.checkpoint import INFO_KEY, ModelInfo, load_state_dict
from rf_models.lm_train import lm_train_step
from rf_models.options import AedCtcOptions

SIZES = dict(enc_num_layers=1, enc_dim=16, enc_ff_dim=16, enc_num_heads=2, ctc_layers=(1,), dec_embed_dim=12)
SIZES.update(dec_lstm_dim=20, dec_att_dim=24, dec_readout_dim=18, enc_frontend_channels=(4, 4, 4))


def asr_checkpoint(folder):
    """:return: file with a random ASR model"""
    rf.select_backend_torch()
    rf.set_random_seed(3)
    opts = AedCtcOptions(**SIZES)
    model = AedCtcModel(opts, num_labels=40, eos_index=0)
    for param in model.decoder.parameters():
        torch.nn.init.normal_(param.raw_tensor, std=0.5)
    state = {name: param.raw_tensor.detach().clone() for name, param in model.named_parameters()}
    info = ModelInfo("aed_ctc", asdict(opts), 40, 0).as_dict()
    torch.save({"model": state, INFO_KEY: info, "epoch": 1, "step": 1}, folder / "asr.pt")
    return str(folder / "asr.pt")


def test_frozen_parts_are_in_evaluation_mode():
    """In training, the loss is that of evaluation (no zoneout), and only the Mini-LSTM gets gradients."""
    model = make_model("mini_lstm_ilm")
    model.freeze_decoder()
    raw = torch.tensor([[1, 2, 3, 4], [2, 4, 1, 0]])
    lengths = Tensor("n", dims=[batch_dim], dtype="int32", raw_tensor=torch.tensor([4, 3], dtype=torch.int32))
    labels_dim = Dim(lengths, name="labels")
    batch_dim.reset_eager()
    losses = []
    for train in (False, True, True):
        rf.init_train_step_run_ctx(train_flag=train, step=0, epoch=1)
        data = TensorDict()
        vocab_dim = Dim(5, name="vocab")
        batch_dim.dyn_size_ext = Tensor("batch", dims=[], dtype="int32", raw_tensor=torch.tensor(2, dtype=torch.int32))
        data.data["data"] = Tensor(
            "data", dims=[batch_dim, labels_dim], dtype="int64", sparse_dim=vocab_dim, raw_tensor=raw
        )
        lm_train_step(model=model, extern_data=data)
        losses.append(rf.get_run_ctx().losses["ce"].get_summed_loss().raw_tensor)
    assert losses[0] == losses[1] == losses[2]
    losses[1].backward()
    with_gradient = {name for name, param in model.named_parameters() if param.raw_tensor.grad is not None}
    assert with_gradient == {name for name, _ in model.named_parameters() if name.startswith("mini_att")}


def test_training_and_comparison(workplace, tmp_path):  # noqa: F811
    asr = asr_checkpoint(tmp_path)
    config = os.path.join(ROOT, "configs", "demo_ilm_context.config")
    options = ("++vocab", "spm_unigram_40", "++asr_checkpoint", asr, "++num_workers", "0")
    code, output = run("-m", "returnn", config, *options, "++output_dir", tmp_path / "context", cwd=workplace)
    assert code == 0, output
    config = os.path.join(ROOT, "configs", "demo_ilm_train.config")
    train_options = ("++num_epochs", "10", "++output_dir", tmp_path / "train", "++train_texts", "lm")
    code, output = run("-m", "returnn", config, *options, *train_options, cwd=workplace)
    assert code == 0, output

    decoder = load_state_dict(asr)[0]
    files = {"zero": "context/zero.pt", "average": "context/average.pt", "trained": "train/models/epoch.010.pt"}
    states = {name: load_state_dict(str(tmp_path / file))[0] for name, file in files.items()}
    for state in states.values():
        assert torch.equal(state["prior_s.rec_weight"], decoder["decoder.s.rec_weight"])
        assert torch.equal(state["target_embed.weight"], decoder["decoder.target_embed.weight"])
        assert torch.equal(state["prior_output_prob.bias"], decoder["decoder.output_prob.bias"])
    assert states["zero"]["mini_att.bias"].abs().max() == 0 < states["average"]["mini_att.bias"].abs().max()

    config = os.path.join(ROOT, "configs", "demo_perplexity.config")
    models = ",".join(str(tmp_path / file) for file in files.values())
    options = ("++vocab", "spm_unigram_40", "++models", models, "++texts", "lm", "++output_dir", tmp_path / "ppl")
    code, output = run("-m", "returnn", config, *options, cwd=workplace)
    assert code == 0, output
    zero, average, trained = json.loads((tmp_path / "ppl" / "perplexity.json").read_text())["lm"][
        "perplexity_per_label"
    ].values()
    assert trained < 0.9 * min(zero, average)


def test_wrong_checkpoint(workplace, tmp_path):  # noqa: F811
    config = os.path.join(ROOT, "configs", "demo_ilm_train.config")
    asr = asr_checkpoint(tmp_path)
    options = ("++vocab", "spm_unigram_30", "++asr_checkpoint", asr)
    tool = os.path.join(ROOT, "tools", "prepare_librispeech.py")
    code, output = run(tool, "source", "data/demo", "--corpus", "demo", "--vocab", "spm_unigram_30", cwd=workplace)
    assert code == 0, output
    code, output = run("-m", "returnn", config, *options, cwd=workplace)
    assert code != 0 and "it has 40 labels (EOS is 0), but spm_unigram_30 has 30 (EOS is 0); choose" in output
