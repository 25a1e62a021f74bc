"""Recognition configs with external models, run by rnn.py as users do, and the messages for wrong combinations."""

from __future__ import annotations

import os

import pytest
import torch
from tiny_setup import ROOT, TinySetup, make_tiny_setup

from configs.base.models import ExternalModels, check_combination
from configs.base.options import OptionError
from configs.base.run import stop_if_finished
from recog.nbest import Hypothesis, NBestHeader, NBestWriter, Utterance, audit, load_nbest
from recog.options import CtcOptions, LabelSyncOptions, RescoreOptions
from recog.rescore import given_hypotheses, load_hypotheses
from rf_models.options import AedCtcOptions


@pytest.fixture(scope="module")
def setup(tmp_path_factory) -> TinySetup:
    return make_tiny_setup(str(tmp_path_factory.mktemp("tiny")))


def nbest_of(setup, config):
    filename = os.path.join(setup.folder, "output", config.removesuffix(".config"), "nbest.jsonl")
    header, utterances = load_nbest(filename)
    assert len(utterances) == 5 and all(utt.hyps for utt in utterances)
    assert not audit(header, utterances)
    return header, {utt.seq_tag: utt for utt in utterances}


def test_label_sync_with_all_models(setup):
    """LM, Mini-LSTM ILM, and CTC of another checkpoint whose encoder has another frame rate."""
    config = "demo_recog_labelsync_lm.config"
    done = setup.run(
        *(config, "++lm_checkpoint", setup.checkpoints["transformer_lm"], "++max_len_ratio", 0.5),
        *("++ilm_checkpoint", setup.checkpoints["mini_ilm"], "++ilm_scale", 0.2),
        *("++ctc_checkpoint", setup.checkpoints["second_aed"]),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    header, _ = nbest_of(setup, config)
    assert header.scales == {"att": 0.7, "ctc": 0.3, "lm": 0.3, "ilm": -0.2}
    assert header.options["ctc_checkpoint"] == setup.checkpoints["second_aed"]


def test_time_sync_with_language_model(setup):
    """LSTM LM, average-context ILM without EOS, no decoder's score at all: CTC, LM and ILM."""
    config = "demo_recog_timesync_lm.config"
    done = setup.run(
        *(config, "++lm_checkpoint", setup.checkpoints["lstm_lm"], "++att_scale", 0, "++ctc_scale", 1),
        *("++ilm_type", "avg", "++ilm_scale", 0.2, "++ilm_eos", False),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    header, _ = nbest_of(setup, config)
    assert header.scales == {"ctc": 1.0, "lm": 0.3, "ilm": -0.2}


def test_old_results_are_not_taken_for_those_of_a_run_that_failed(tmp_path):
    """With ++overwrite: the options are recorded, then the run fails before it begins; the same is started again."""
    for number, names in enumerate((["nbest.jsonl"], ["prior.json"], ["perplexity.json"], ["zero.pt", "average.pt"])):
        files = [str(tmp_path / str(number) / name) for name in names]
        os.mkdir(os.path.dirname(files[0]))
        for file in files:
            with open(file, "w", encoding="utf8") as stream:
                stream.write("of beam 12")
        stop_if_finished(files, {"beam_size": 4}, overwrite=True)
        stop_if_finished(files, {"beam_size": 4}, overwrite=False)  # had ended: "has finished before"


def options_error(setup, monkeypatch, tmp_path, search, *, run="recognition_run", **options):
    """:return: message that the run ends with before it begins"""
    from configs.base import demo, recog
    from configs.base.options import OptionError

    command_line = {"data_dir": setup.data_dir, "vocab": "spm_unigram_40", "recog_parts": "dev"}
    command_line |= {"load": setup.checkpoints["aed"], "output_dir": str(tmp_path)}
    command_line |= {name: str(value) for name, value in options.items()}
    monkeypatch.setattr(recog, "command_line_options", lambda: command_line)
    with pytest.raises(OptionError) as info:
        getattr(recog, run)({"__file__": "x.config"}, demo.setup, search)
    return str(info.value)


def test_checkpoint_that_does_not_say_what_it_is(setup, monkeypatch, tmp_path):
    content = torch.load(setup.checkpoints["lstm_lm"], weights_only=True)
    del content["model_info"]
    torch.save(content, tmp_path / "lm.pt")
    message = options_error(
        setup, monkeypatch, tmp_path, LabelSyncOptions(), lm_scale=0.3, lm_checkpoint=tmp_path / "lm.pt"
    )
    assert "does not say what model it holds" in message


def test_forced_scores_and_second_pass(setup):
    """
    Time-synchronous search; forced scores of what it found equal its own; references are scored; a second pass with
    the first pass's scores, full-sum CTC and a density ratio.
    """
    search = ("++blank_scale", "ctc", "++recombination", "sum", "++exact_ctc", True, "++beam_size", 4)
    lm = ("++lm_checkpoint", setup.checkpoints["lstm_lm"], "++lm_scale", 0.3)
    done = setup.run("demo_recog_timesync_lm.config", *lm, *search, "++output_dir", "output/first")
    assert done.returncode == 0, done.stdout + done.stderr
    first_file = os.path.join(setup.folder, "output/first/nbest.jsonl")
    header, first = load_nbest(first_file)

    done = setup.run("demo_forced_timesync.config", *lm, *search, "++nbest_file", first_file, "++batch_size", 20_000)
    assert done.returncode == 0, done.stdout + done.stderr
    forced_header, forced = nbest_of(setup, "demo_forced_timesync.config")
    assert forced_header.search == "forced_time_sync" and forced_header.scales == header.scales
    for utt in first:
        for found, again in zip(utt.hyps, forced[utt.seq_tag].hyps, strict=True):
            assert found.labels == again.labels and found.text == again.text
            assert again.score == pytest.approx(found.score, abs=1e-4)
            assert again.scores == pytest.approx(found.scores, abs=1e-4)

    done = setup.run("demo_forced_labelsync.config")
    assert done.returncode == 0, done.stdout + done.stderr
    header, references = load_nbest(os.path.join(setup.folder, "output/demo_forced_labelsync/nbest.jsonl"))
    assert header.search == "forced_label_sync"
    assert len(references) == 5 and not audit(header, references)
    for utt in references:
        if len(setup.vocab.text_to_labels(utt.ref)) > utt.enc_len:
            assert not utt.hyps and "too many labels" in utt.error
            continue
        (hyp,) = utt.hyps
        assert hyp.labels == setup.vocab.text_to_labels(utt.ref) and hyp.text == utt.ref
    assert 0 < sum(not utt.hyps for utt in references) < 5

    done = setup.run(
        *("demo_rescore.config", "++nbest_file", first_file, "++first_pass_scale", 0.5, "++att_scale", 0),
        *("++lm_checkpoint", setup.checkpoints["transformer_lm"], "++lm_scale", 0.4, "++n_best", 3),
        *("++ilm_checkpoint", setup.checkpoints["lstm_lm"], "++ilm_scale", 0.2),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    header, second = nbest_of(setup, "demo_rescore.config")
    assert header.search == "rescore"
    assert header.scales == {"first_pass": 0.5, "ctc": 0.3, "lm": 0.4, "ilm": -0.2}
    for utt in first:
        before = {tuple(hyp.labels): hyp for hyp in utt.hyps}
        assert len(second[utt.seq_tag].hyps) == min(3, len(before))
        for hyp in second[utt.seq_tag].hyps:
            assert hyp.scores["first_pass"] == pytest.approx(before[tuple(hyp.labels)].score, abs=1e-4)
            assert hyp.scores["ilm"] == pytest.approx(before[tuple(hyp.labels)].scores["lm"], abs=1e-4)
            assert hyp.scores["ctc"] == pytest.approx(before[tuple(hyp.labels)].scores["ctc"], abs=1e-4)


def write_nbest(filename, seq_tags, **vocab):
    header = NBestHeader("label_sync", {"att": 1.0}, vocab=vocab)
    with NBestWriter(filename, header) as writer:
        for tag in seq_tags:
            writer.write(Utterance(tag, 1.0, 9, None, [Hypothesis([1, 2], "x", -1.0, {"att": -1.0})]))
    return filename


def test_second_pass_without_a_right_first_pass(setup, monkeypatch, tmp_path):
    search = RescoreOptions(att_scale=1.0)

    def message(**options):
        return options_error(setup, monkeypatch, tmp_path / "out", search, run="rescore_run", **options)

    vocab = setup.vocab.describe()
    assert "give its n-best file with ++nbest_file" in message()
    assert "No such file" in message(nbest_file=tmp_path / "none.jsonl")
    other = write_nbest(str(tmp_path / "other.jsonl"), ["dev/1"], **{**vocab, "num_labels": 99})
    assert "num_labels 99 instead of 40" in message(nbest_file=other)
    test = write_nbest(str(tmp_path / "test.jsonl"), ["test/1"], **vocab)
    assert "has no utterances of dev, only of test" in message(nbest_file=test)
    right = write_nbest(str(tmp_path / "right.jsonl"), ["dev/1"], **vocab)
    assert "nothing to rescore with" in message(nbest_file=right, att_scale=0)
    with pytest.raises(SystemExit, match=r"utterance 'dev/2' is not in the n-best file, which has 1 others"):
        given_hypotheses(load_hypotheses(right, vocab=setup.vocab), ["dev/1", "dev/2"], device=torch.device("cpu"))


def test_internal_lm_of_another_decoder_is_noticed(setup, tmp_path, capsys):
    from configs.base.models import warn_of_other_decoder

    assert warn_of_other_decoder(setup.checkpoints["aed"], setup.checkpoints["mini_ilm"])
    assert "is not made of the decoder in" in capsys.readouterr().out
    content = torch.load(setup.checkpoints["mini_ilm"], weights_only=True)
    asr = torch.load(setup.checkpoints["aed"], weights_only=True)["model"]
    content["model"]["prior_output_prob.bias"] = asr["decoder.output_prob.bias"]
    torch.save(content, tmp_path / "ilm.pt")
    assert not warn_of_other_decoder(setup.checkpoints["aed"], str(tmp_path / "ilm.pt"))
    assert not capsys.readouterr().out


CONFIGS = [
    name
    for name in sorted(os.listdir(os.path.join(ROOT, "configs")))
    if any(kind in name for kind in ("_recog_", "_forced_", "_rescore"))
]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_gets_as_far_as_the_missing_corpus(name, monkeypatch, tmp_path):
    """Options of the config are valid, and the first thing that is missing is named with what to do."""
    from configs.base import recog
    from configs.base.options import OptionError

    filename = os.path.join(ROOT, "configs", name)
    monkeypatch.setattr(recog, "command_line_options", lambda: {"data_dir": str(tmp_path)})
    with open(filename, encoding="utf8") as file, pytest.raises(OptionError) as info:
        exec(compile(file.read(), filename, "exec"), {"__file__": filename, "__name__": "__returnn_config__"})
    assert "no prepared corpus" in str(info.value) and "Prepare it with" in str(info.value)
    with open(filename, encoding="utf8") as file:
        assert f"rnn.py configs/{name}\n" in file.read() or "combination" in name


def test_options_of_ctc_need_ctc():
    """They had been taken and had no effect."""
    no_models = ExternalModels(infos={}, checkpoints={}, ilm_type=None)
    model = AedCtcOptions(enc_num_layers=2, ctc_layers=(1, 2))
    search = LabelSyncOptions(att_scale=1.0, ctc_scale=0.0)
    check_combination(model, CtcOptions(), search, no_models)
    for name, value in {"ctc_layer": 1, "blank_penalty": 0.5, "soft_collapse_threshold": 0.8}.items():
        with pytest.raises(OptionError, match=f"{name} = {value}, but ctc_scale = 0"):
            check_combination(model, CtcOptions(**{name: value}), search, no_models)
    check_combination(model, CtcOptions(ctc_layer=1), LabelSyncOptions(ctc_scale=0.3), no_models)
