"""A recognition run whose scales are those of a published row, as a user types it."""

from __future__ import annotations

import torch
from corpora import make_tedlium2
from runs import run_config
from tiny_models import AED, TRANSFORMER_LM, save_model

from recog.nbest import audit, load_nbest
from recog.prior import save_log_prior
from recog.vocab import load_vocab
from tools.prepare_tedlium2 import main as prepare_tedlium2


def test_scales_by_name(tmp_path):
    source, data = str(tmp_path / "source"), tmp_path / "data" / "tedlium2"
    make_tedlium2(source, {"train": 6, "dev": 3, "test": 3})
    assert prepare_tedlium2([source, str(data), "--workers", "1", "--vocab", "spm_unigram_40"]) == 0
    vocab = load_vocab(str(data / "vocab" / "spm_unigram_40.json"))
    opts = {"num_labels": vocab.num_labels, "eos_index": vocab.eos_index}
    models = {
        "load": save_model(str(tmp_path / "models" / "aed.pt"), AED, **opts),
        "lm_checkpoint": save_model(str(tmp_path / "models" / "lm.pt"), TRANSFORMER_LM, **opts),
    }
    prior = torch.randn(vocab.num_labels + 1, generator=torch.Generator().manual_seed(1)).log_softmax(0)
    save_log_prior(str(tmp_path / "prior.txt"), prior)
    options = {"recipe": "att_ctc_lm_opls", "model": "model_ctc0.3_att0.7", "vocab": "spm_unigram_40", "num_workers": 0}
    options |= {"prior_file": "prior.txt", "recog_parts": "dev", **models}
    run_config("ted2_recog_labelsync", tmp_path, **options, lm_scale=0.1)
    header, utterances = load_nbest(str(tmp_path / "output" / "ted2_recog_labelsync" / "nbest.jsonl"))
    assert header.scales == {"att": 0.67, "ctc": 0.33, "lm": 0.1} and header.options["prior_scale"] == 0.7
    assert (header.length_norm_exponent, header.length_norm_offset) == (1.0, 0)
    assert header.options["beam_size"] == 32 and header.options["recipe"] == "att_ctc_lm_opls"
    assert len(utterances) == 3 and not audit(header, utterances)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "data", "models", "output", "prior.txt"}

    del options["lm_checkpoint"]
    res = run_config("ted2_recog_labelsync", tmp_path, ok=False, **options, output_dir="other")
    assert res.returncode != 0 and "Traceback" not in res.stderr
    assert "recipe att_ctc_lm_opls of model_ctc0.3_att0.7 has the LM scale 0.5: give a language model" in res.stderr
