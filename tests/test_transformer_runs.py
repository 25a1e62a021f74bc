"""Training and recognition with a Transformer decoder, run by rnn.py as users do; tools on its checkpoint."""

from __future__ import annotations

import os

import numpy as np
import pytest
from runs import SMALL_TRAINING, SMALL_TRANSFORMER_DECODER, run_config
from tiny_models import TRANSFORMER_AED, save_model
from tiny_setup import VOCAB, TinySetup, make_tiny_setup
from tool_runs import call_tool

from configs.base.lm import ilm_info
from configs.base.models import open_external_models
from configs.base.options import OptionError
from configs.base.run import BEHAVIOR_VERSION
from recog.analysis.alignment import view_utterance
from recog.nbest import audit, load_nbest
from recog.options import ExternalModelOptions, LabelSyncOptions
from recog.standalone import load_model
from rf_models.checkpoint import load_state_dict, read_model_info
from rf_models.options import DECODER_OPTIONS

DECODER = {"dec_kind": "transformer", "dec_num_layers": 2, **SMALL_TRANSFORMER_DECODER}
TRAINING = {name: value for name, value in SMALL_TRAINING.items() if name not in DECODER_OPTIONS["lstm"]}


@pytest.fixture(scope="module")
def setup(tmp_path_factory) -> TinySetup:
    return make_tiny_setup(str(tmp_path_factory.mktemp("transformer")))


@pytest.fixture(scope="module")
def checkpoint(setup) -> str:
    """:return: of a model with random parameters"""
    filename = os.path.join(setup.folder, "models", "transformer.pt")
    vocab = setup.vocab
    return save_model(filename, TRANSFORMER_AED, num_labels=vocab.num_labels, eos_index=vocab.eos_index)


def test_training_and_recognition(setup):
    """One sub-epoch with an auxiliary loss; what it is stands beside it, and recognition finds it there."""
    data = {"data_dir": setup.data_dir, "vocab": VOCAB}
    res = run_config("demo_train", setup.folder, **data, **TRAINING, **DECODER, dec_aux_layers=1)
    assert "ce_1" in res.stdout + res.stderr and "fer_1" in res.stdout + res.stderr
    trained = os.path.join(setup.folder, "output", "demo_train", "models", "epoch.001.pt")
    opts = read_model_info(trained).model_options()
    assert (opts.dec_kind, opts.dec_num_layers, opts.dec_aux_layers) == ("transformer", 2, (1,))
    state, _ = load_state_dict(trained)
    assert {"decoder.layers.1.cross_att.kv.weight", "decoder.aux_logits.layer1.weight"} <= set(state)
    for search in ("labelsync", "timesync"):
        run_config(f"demo_recog_{search}", setup.folder, **data, recog_parts="dev", beam_size=4, num_workers=0)
        header, utterances = load_nbest(os.path.join(setup.folder, "output", f"demo_recog_{search}", "nbest.jsonl"))
        assert len(utterances) == 5 and all(utt.hyps for utt in utterances)
        assert header.scales.keys() == {"att", "ctc"} and not audit(header, utterances)

    wrong = run_config("demo_train", setup.folder, **data, **TRAINING, **DECODER, dec_lstm_dim=16, ok=False)
    assert wrong.returncode != 0
    assert "dec_lstm_dim: only the lstm decoder has this, but dec_kind = transformer" in wrong.stderr


def test_transcription(setup, checkpoint, tmp_path):
    """With both searches, with the internal LM of this kind of decoder, and with the CTC scores of another model."""
    audio = os.path.join(setup.folder, "source", "dev", "119", "198", "119-198-0000.flac")
    vocab = os.path.join(setup.data_dir, "vocab", f"{VOCAB}.json")
    texts = []
    for args in (
        ("--search", "labelsync"),
        ("--search", "timesync"),
        ("--search", "labelsync", "++ilm_type", "avg", "++ilm_scale", 0.7),
    ):
        res = call_tool("transcribe", audio, "--checkpoint", checkpoint, "--vocab", vocab, *args, cwd=tmp_path)
        assert res.returncode == 0, res.stderr
        texts.append(res.stdout)
    assert texts[0] != texts[2]


def test_attention_weights_to_look_at(setup, checkpoint):
    """A distribution over the frames for each label and EOS."""
    model = load_model(checkpoint, behavior_version=BEHAVIOR_VERSION)
    waveform = np.random.default_rng(0).normal(size=9600).astype("float32") * 0.1
    view = view_utterance(model, waveform, [5, 5, 7])
    assert view.attention.shape == (4, view.ctc_probs.shape[0]) == (4, 10)
    np.testing.assert_allclose(view.attention.sum(axis=1), 1.0, rtol=1e-5)
    assert np.abs(view.attention[0] - view.attention[2]).max() > 1e-4


def test_what_only_an_lstm_decoder_has_is_refused(setup, checkpoint):
    with pytest.raises(OptionError, match="has a transformer decoder: this internal LM is made of the LSTM decoder"):
        ilm_info(checkpoint, setup.vocab, mini_lstm_dim=4)
    search = LabelSyncOptions(att_scale=0.7, ctc_scale=0.3, ilm_scale=0.2)
    external = ExternalModelOptions(ilm_checkpoint=setup.checkpoints["mini_ilm"])
    with pytest.raises(OptionError, match="is made of an LSTM decoder, but the ASR model has a transformer decoder"):
        open_external_models(external, search, asr=TRANSFORMER_AED, vocab=setup.vocab)
    # As a second model for CTC scores, its decoder is left out.
    external = ExternalModelOptions(ctc_checkpoint=checkpoint)
    search = LabelSyncOptions(att_scale=0.7, ctc_scale=0.3)
    found = open_external_models(external, search, asr=TRANSFORMER_AED, vocab=setup.vocab)
    assert found.build()["ctc_model"].decoder is None
