"""
Options, models and files that do not belong together: one line says so, before any work. The tables are the list of
what is refused; :mod:`test_untrusted` and :mod:`test_bad_data` have files that are broken in themselves.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields, replace
from typing import get_type_hints

import pytest
import torch
from fork_server import fork_config
from returnn.config import Config, global_config_ctx
from runs import config_file
from tiny_models import AED, LSTM_LM, make_model, save_model
from tiny_setup import VOCAB, TinySetup, make_tiny_setup

from configs.base.options import OptionError
from recog.nbest import Hypothesis, NBestHeader, NBestWriter, Utterance
from recog.prior import save_log_prior
from recog.vocab import load_vocab
from tools.show_config import read_options

GREEDY, LABEL_SYNC, TIME_SYNC = "demo_recog_ctc", "demo_recog_labelsync", "demo_recog_timesync"
LM = {"lm_scale": 0.3}
ILM = {"ilm_scale": 0.3}
PUBLISHED = {"published_scoring": True, "blank_scale": 1, "repeat_scale": 1, "recombination": "max"}


@dataclass
class Files:
    """A corpus, and files by name: right ones, and each kind of wrong one."""

    setup: TinySetup
    names: dict[str, str]


def write_nbest(filename: str, tags: list[str], vocab: dict) -> None:
    with NBestWriter(filename, NBestHeader("label_sync", {"att": 1.0}, vocab=vocab)) as writer:
        for tag in tags:
            writer.write(Utterance(tag, 1.0, 9, None, [Hypothesis([1, 2], "x", -1.0, {"att": -1.0})]))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    folder = str(tmp_path_factory.mktemp("wrong"))
    setup = make_tiny_setup(folder)
    vocab = load_vocab(os.path.join(setup.data_dir, "vocab", VOCAB + ".json"))
    size = {"num_labels": vocab.num_labels, "eos_index": vocab.eos_index}
    names = dict(setup.checkpoints)

    def save(name, opts, **change):
        names[name] = save_model(os.path.join(folder, "wrong", name + ".pt"), opts, **{**size, **change})
        return torch.load(names[name], weights_only=True)

    def save_as(name, content):
        names[name] = os.path.join(folder, "wrong", name + ".pt")
        torch.save(content, names[name])

    save("aed_77", AED, num_labels=77), save("lm_77", LSTM_LM, num_labels=77)
    save("aed_eos_1", AED, eos_index=1)
    save("no_ctc", replace(AED, ctc_layers=())), save("no_decoder", replace(AED, with_decoder=False))
    for name, opts in (("aed", AED), ("lm", LSTM_LM)):  # as many labels, but others
        content = save(f"{name}_other_labels", opts)
        content["model_info"]["labels_hash"] = "0" * 16
        save_as(f"{name}_other_labels", content)
    content = save("bare_large", replace(AED, enc_dim=32))
    save_as("says_small", {**content, "model_info": {**content["model_info"], "options": asdict(AED)}})
    del content["model_info"]
    save_as("bare_large", content)
    content = save("bare_77", AED, num_labels=77)
    del content["model_info"]
    save_as("bare_77", content)
    save_as("state_only", make_state(AED, size))
    names["text"] = os.path.join(folder, "wrong", "text.pt")
    with open(names["text"], "w", encoding="utf8") as file:
        file.write("hello\n")

    log_prior = torch.randn(vocab.num_labels + 1, generator=torch.Generator().manual_seed(1)).log_softmax(0).double()
    for name, prior in {"prior": log_prior, "prior_short": log_prior[1:].log_softmax(0)}.items():
        names[name] = os.path.join(folder, name + ".txt")
        save_log_prior(names[name], prior)
    with open(names["prior"], encoding="utf8") as file:
        content = file.read()
    linear = "\n".join([content.splitlines()[0], *map(str, log_prior.exp().tolist())]) + "\n"
    for name, text in {
        "prior_log_as_linear": content.replace("domain=log", "domain=linear"),
        "prior_linear_as_log": linear,
        "prior_without_header": content.partition("\n")[2],
    }.items():
        names[name] = os.path.join(folder, name + ".txt")
        with open(names[name], "w", encoding="utf8") as file:
            file.write(text)

    describe = vocab.describe()
    for name, (tags, its) in {
        "nbest": (["dev/1"], describe),
        "nbest_other_part": (["test/1"], describe),
        "nbest_77": (["dev/1"], {**describe, "num_labels": 77}),
        "nbest_other_labels": (["dev/1"], {**describe, "labels_hash": "0" * 16}),
    }.items():
        names[name] = os.path.join(folder, name + ".jsonl")
        write_nbest(names[name], tags, its)
    return Files(setup, names)


def make_state(opts, size):
    from returnn.torch.frontend.bridge import rf_module_to_pt_module

    return rf_module_to_pt_module(make_model(opts, **size)).state_dict()


def words(options: dict[str, object]) -> list[str]:
    """:return: of the command line, with a space before "-": RETURNN would take the word for an option of its own"""
    texts = {name: str(value) for name, value in options.items()}
    return [word for name, text in texts.items() for word in (f"++{name}", f" {text}" if text[:1] == "-" else text)]


def run_until_model(config: str, options: dict[str, object], folder: str) -> None:
    """What RETURNN does with a config before it opens the data: config file with command line, then the model."""
    filename = config_file(config)
    returnn_config = Config()
    returnn_config.parse_cmd_args(words(options))
    namespace = {"__file__": filename, "__name__": "__returnn_config__", "config": {}}
    before = os.getcwd()
    os.chdir(folder)
    try:
        with open(filename, encoding="utf8") as file, global_config_ctx(returnn_config):
            exec(compile(file.read(), filename, "exec"), namespace)
            namespace["get_model"](epoch=1, step=0)
    finally:
        os.chdir(before)


def refusal(files: Files, folder: object, config: str, **options) -> str:
    """:return: the message"""
    given = {"data_dir": files.setup.data_dir, "vocab": VOCAB, "device": "cpu", "output_dir": os.path.join(folder, "x")}
    if not any(kind in config for kind in ("_train", "_perplexity", "_ilm_context")):
        given["load"] = "aed"
    if any(kind in config for kind in ("_recog_", "_forced_", "_rescore")):
        given["recog_parts"] = "dev"
    if "_train" in config and "_ilm_" not in config:
        given["train_texts" if "_lm_" in config else "dev_parts"] = "dev"
    given.update(options)
    given = {name: files.names.get(value, value) for name, value in given.items()}
    with pytest.raises(OptionError) as info:
        run_until_model(config, given, str(folder))
    message = str(info.value)
    assert message.startswith("error: ")
    return message


# (config, options, part of the message); a value that is a name of :class:`Files` stands for that file
MODELS = [
    # another kind of model, or none
    (LABEL_SYNC, {"load": "lstm_lm"}, "holds a model of the kind lstm_lm, but this run needs aed_ctc"),
    (LABEL_SYNC, {"load": "text"}, "is not a readable PyTorch checkpoint"),
    (LABEL_SYNC, {"load": "state_only"}, "no checkpoint with the parameters of a model"),
    (LABEL_SYNC, {"load": "nowhere.pt"}, "checkpoint nowhere.pt does not exist"),
    (LABEL_SYNC, {**LM, "lm_checkpoint": "mini_ilm"}, "holds a model of the kind mini_lstm_ilm, but an external"),
    (LABEL_SYNC, {**LM, "lm_checkpoint": "aed"}, "must be lstm_lm or transformer_lm"),
    (LABEL_SYNC, {**LM, "lm_checkpoint": "nowhere"}, "no such checkpoint"),
    (LABEL_SYNC, {**LM, "lm_checkpoint": "bare_large"}, "does not say what model it holds"),
    (LABEL_SYNC, {**ILM, "ilm_type": "density_ratio", "ilm_checkpoint": "mini_ilm"}, "ilm_type density_ratio must"),
    (LABEL_SYNC, {"ctc_scale": 0.3, "ctc_checkpoint": "lstm_lm"}, "kind lstm_lm, but CTC scores must be aed_ctc"),
    ("demo_prior", {"load": "lstm_lm"}, "holds a model of the kind lstm_lm, but this run needs aed_ctc"),
    ("demo_perplexity", {"models": "aed"}, "holds a model of the kind aed_ctc, but this run needs one of"),
    ("demo_ilm_train", {"asr_checkpoint": "lstm_lm"}, "(kind lstm_lm) has no attention decoder, and so no internal LM"),
    # other sizes
    (LABEL_SYNC, {"enc_dim": 32}, "enc_dim = 32, but the model in"),
    (LABEL_SYNC, {"load": "bare_large"}, "does not fit the model of this run: "),
    (LABEL_SYNC, {"load": "says_small"}, "does not fit the model of this run: "),
    ("demo_prior", {"load": "says_small"}, "does not fit the model of this run: "),
    # another vocabulary
    (LABEL_SYNC, {"load": "aed_77"}, "was trained with another vocabulary: it has 77 labels (EOS is 0), but"),
    (LABEL_SYNC, {"load": "aed_eos_1"}, "was trained with another vocabulary: it has 40 labels (EOS is 1), but"),
    (LABEL_SYNC, {"load": "aed_other_labels"}, "it has 40 labels, as spm_unigram_40 has, but they are other sub-words"),
    (LABEL_SYNC, {**LM, "lm_checkpoint": "lm_77"}, "was trained with another vocabulary: it has 77 labels"),
    (LABEL_SYNC, {**LM, "lm_checkpoint": "lm_other_labels"}, "but they are other sub-words; choose the right one"),
    (LABEL_SYNC, {**ILM, "ilm_checkpoint": "lm_other_labels"}, "but they are other sub-words"),
    (LABEL_SYNC, {"ctc_scale": 0.3, "ctc_checkpoint": "aed_77"}, "was trained with another vocabulary: it has 77"),
    (LABEL_SYNC, {"ctc_scale": 0.3, "ctc_checkpoint": "aed_other_labels"}, "but they are other sub-words"),
    ("demo_prior", {"load": "aed_other_labels"}, "but they are other sub-words"),
    ("demo_perplexity", {"models": "lm_77"}, "was trained with another vocabulary: it has 77 labels"),
    ("demo_perplexity", {"models": "lm_other_labels"}, "but they are other sub-words"),
    ("demo_ilm_train", {"asr_checkpoint": "aed_77"}, "was trained with another vocabulary: it has 77 labels"),
    ("demo_ilm_train", {"asr_checkpoint": "aed_other_labels"}, "but they are other sub-words"),
    ("demo_ilm_context", {"asr_checkpoint": "aed_other_labels"}, "but they are other sub-words"),
    ("demo_rescore", {"nbest_file": "nbest_77"}, "num_labels 77 instead of 40"),
    ("demo_rescore", {"nbest_file": "nbest_other_labels"}, "labels_hash '0000000000000000' instead of"),
    ("demo_forced_labelsync", {"nbest_file": "nbest_other_labels"}, "has labels of another vocabulary"),
    ("demo_rescore", {"nbest_file": "nbest_other_part"}, "has no utterances of dev, only of test"),
    # a score that the model does not have
    (GREEDY, {"load": "no_ctc"}, "this search needs a CTC head, but the model has none"),
    (TIME_SYNC, {"load": "no_ctc"}, "this search needs a CTC head, but the model has none"),
    (LABEL_SYNC, {"load": "no_ctc", "ctc_scale": 0.3}, "this search needs a CTC head, but the model has none"),
    (LABEL_SYNC, {"ctc_scale": 0.3, "ctc_checkpoint": "no_ctc"}, "this model has no CTC head"),
    (LABEL_SYNC, {"ctc_scale": 0.3, "ctc_layer": 2}, "ctc_layer = 2: the model has CTC heads on the layers (1,) only"),
    ("demo_prior", {"load": "no_ctc"}, "a prior needs a CTC head, but the model has none"),
    ("demo_prior", {"ctc_layer": 2}, "ctc_layer = 2: the model has CTC heads on (1,) only"),
    (LABEL_SYNC, {"load": "no_decoder"}, "att_scale = 0.7, but the model has no decoder"),
    (LABEL_SYNC, {**ILM, "load": "no_decoder", "att_scale": 0, "ctc_scale": 1, "ilm_type": "zero"}, "no attention dec"),
    ("demo_ilm_train", {"asr_checkpoint": "no_decoder"}, "has no attention decoder, and so no internal LM"),
    # priors
    (TIME_SYNC, {"prior_scale": 0.3}, "prior_scale = 0.3 needs prior_file"),
    (TIME_SYNC, {"prior_file": "prior"}, "but prior_scale = 0, so it would have no effect"),
    (TIME_SYNC, {"prior_scale": 0.3, "prior_file": "prior_short"}, "40 values, but the CTC head has 41"),
    (TIME_SYNC, {"prior_scale": 0.3, "prior_file": "prior_log_as_linear"}, "the header says domain=linear"),
    (TIME_SYNC, {"prior_scale": 0.3, "prior_file": "prior_linear_as_log"}, "wrong domain in the header?"),
    (TIME_SYNC, {"prior_scale": 0.3, "prior_file": "prior_without_header"}, "the first line must be '# ctc-prior"),
    (TIME_SYNC, {"prior_scale": 0.3, "prior_file": "nowhere.txt"}, "nowhere.txt"),
    (GREEDY, {"prior_scale": 0.3, "prior_file": "prior", "prior_type": "label"}, "no meaning in greedy search"),
]

OPTIONS = [
    # unknown names
    (LABEL_SYNC, {"lm_checkpont": "x"}, "unknown option 'lm_checkpont'; did you mean lm_checkpoint"),
    (GREEDY, {"beam_size": 4}, "unknown option 'beam_size'"),
    (GREEDY, {"lm_scale": 0.3}, "unknown option 'lm_scale'"),
    ("demo_train", {"beam_size": 4}, "unknown option 'beam_size'"),
    ("demo_lm_train", {"enc_dim": 4}, "unknown option 'enc_dim'"),
    ("demo_prior", {"prior_scale": 1}, "unknown option 'prior_scale'"),
    # wrong types
    (LABEL_SYNC, {"beam_size": "many"}, "beam_size = 'many': expected a whole number"),
    (LABEL_SYNC, {"beam_size": 1.5}, "beam_size = '1.5': expected a whole number"),
    (LABEL_SYNC, {"early_stop": "maybe"}, "early_stop = 'maybe': expected True or False"),
    (LABEL_SYNC, {**ILM, "ilm_type": "mini"}, "ilm_type = 'mini': expected mini_lstm or zero or avg"),
    # out of range
    *[(config, {"beam_size": n}, f"beam_size = {n}: expected at least 1") for config in (LABEL_SYNC, TIME_SYNC)
      for n in (0, -1)],
    *[(LABEL_SYNC, {"n_best": n}, f"n_best = {n}: expected at least 1, or None") for n in (0, -3)],
    (TIME_SYNC, {"n_best": 5, "beam_size": 4}, "n_best = 5, but beam_size = 4: this search ends with no more"),
    (LABEL_SYNC, {"n_best": 5, "beam_size": 4, "ended_hyps": "in_beam"}, "n_best = 5, but beam_size = 4"),
    *[(LABEL_SYNC, {name: -0.1}, f"{name} = -0.1: expected a scale >= 0") for name in
      ("att_scale", "ctc_scale", "lm_scale", "ilm_scale")],
    (TIME_SYNC, {"blank_scale": -1}, "blank_scale = -1.0: expected ctc or a scale >= 0"),
    (LABEL_SYNC, {"max_len_ratio": 0}, "max_len_ratio = 0.0: expected a ratio > 0"),
    (TIME_SYNC, {"pruning_threshold": 0}, "pruning_threshold = 0.0: expected a positive score difference"),
    (TIME_SYNC, {"num_candidates": 0}, "num_candidates = 0: expected at least 1, or None"),
    (TIME_SYNC, {"blank_collapse_threshold": 1.5}, "blank_collapse_threshold = 1.5: expected a probability in (0, 1]"),
    *[(LABEL_SYNC, {"shard": text}, f"shard = '{text}': expected i/N with i of 1 ... N") for text in
      ("5/4", "0/2", "1/0", "x")],
    *[(config, {name: 0}, f"{name} = 0: expected at least 1") for config in
      (LABEL_SYNC, "demo_prior", "demo_train", "demo_lm_train", "demo_perplexity", "demo_ilm_context")
      for name in ("batch_size", "max_seqs")],
    ("demo_train", {"num_epochs": 0}, "num_epochs = 0: expected at least 1"),
    ("demo_train", {"accum_grad_multiple_step": 0}, "accum_grad_multiple_step = 0: expected at least 1"),
    ("demo_train", {"peak_learning_rate": 0}, "peak_learning_rate = 0.0: expected a number > 0"),
    ("demo_train", {"enc_dropout": 1}, "enc_dropout = 1.0: expected 0 <= enc_dropout < 1"),
    ("demo_train", {"ctc_layers": "1,99"}, "ctc_layers = (1, 99): expected different layers of 1 ..."),
    ("demo_train", {"aed_loss_scale": -1}, "loss scales must not be negative"),
    ("demo_prior", {"num_utterances": 0}, "num_utterances = 0: expected at least 1, or None"),
    # contradictions
    (LABEL_SYNC, {"att_scale": 0, "ctc_scale": 0}, "att_scale, ctc_scale and lm_scale are all 0: nothing to search"),
    ("demo_rescore", {"att_scale": 0, "ctc_scale": 0, "nbest_file": "nbest"}, "are all 0: nothing to rescore with"),
    ("demo_rescore", {"nbest_file": None}, "no first pass: give its n-best file with ++nbest_file"),
    (LABEL_SYNC, LM, "lm_scale = 0.3, but there is no such model: give lm_checkpoint"),
    (LABEL_SYNC, {"lm_checkpoint": "lstm_lm"}, "lm_scale = 0, so it would have no effect: give ++lm_scale"),
    (GREEDY, {"lm_checkpoint": "lstm_lm"}, "greedy search uses no language model"),
    (GREEDY, {"ilm_type": "zero"}, "greedy search uses no language model"),
    (GREEDY, {"ctc_checkpoint": "second_aed"}, "greedy search uses one model only"),
    (LABEL_SYNC, ILM, "ilm_scale = 0.3, but there is no such model: give ilm_type or ilm_checkpoint"),
    (LABEL_SYNC, {"ilm_type": "zero"}, "ilm_type or ilm_checkpoint = zero, but ilm_scale = 0"),
    (LABEL_SYNC, {**ILM, "ilm_type": "density_ratio"}, 'ilm_type = "density_ratio" needs ilm_checkpoint'),
    (LABEL_SYNC, {**ILM, "ilm_type": "zero", "ilm_checkpoint": "mini_ilm"}, "has no use for it"),
    (LABEL_SYNC, {"ctc_scale": 0, "ctc_checkpoint": "second_aed"}, "ctc_checkpoint is given, but ctc_scale = 0"),
    (LABEL_SYNC, {"ctc_scale": 0, "blank_penalty": 1}, "blank_penalty = 1.0, but ctc_scale = 0, so it would have no"),
    (LABEL_SYNC, {"att_scale": 0, "coverage_scale": 1}, "coverage_scale and monotonicity_scale need att_scale > 0"),
    (LABEL_SYNC, {"min_len_ratio": 0.9, "max_len_ratio": 0.5}, "min_len_ratio = 0.9: expected 0 ... max_len_ratio"),
    (TIME_SYNC, {**PUBLISHED, "blank_scale": 0.5}, "leave these options out"),
    (TIME_SYNC, {**PUBLISHED, "length_norm_exponent": 1}, "use 0 with published_scoring"),
    ("ted2_recog_labelsync", {"recipe": "att_ctc_opls"}, "has scales for several models: give ++model"),
    ("ted2_recog_labelsync", {"model": "model_ctc0.3_att0.7"}, "together with a recipe: give ++recipe, too"),
    (LABEL_SYNC, {"torch_distributed": "{}"}, "torch_distributed is an option of trainings"),
    ("demo_train", {"torch_distributed": "{}"}, "expected a dict with reduce_type and dataset_distribution"),
    ("demo_train", {"ctc_layers": "1,2", "ctc_loss_scales": "1,1,1"}, "expected one for each of ctc_layers"),
    ("demo_train", {"lr_positions": "0,1"}, "lr_positions and lr_factors differ in length"),
    ("demo_train", {"ctc_layers": "()", "with_decoder": False}, "neither a CTC head (ctc_layers) nor a decoder"),
    ("demo_train", {"enc_dim": 30, "enc_num_heads": 4}, "enc_dim = 30 is not divisible by enc_num_heads = 4"),
    ("demo_train", {"feature_batch_norm": True, "mel_normalization": True}, "do the same: choose one"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "options", "message"), [*MODELS, *OPTIONS])
def test_refused(files, tmp_path, config, options, message):
    text = refusal(files, tmp_path, config, **options)
    assert message in text and "\n" not in text
    assert not (tmp_path / "x" / "nbest.jsonl").exists()


def float_options(config: str) -> list[str]:
    """:return: names of the options with real numbers"""
    groups, _ = read_options(config_file(config), [])
    hints = {name: hint for group in groups for name, hint in get_type_hints(group).items()}
    return [field.name for group in groups for field in fields(group) if "float" in str(hints[field.name])]


@pytest.mark.parametrize(
    "config", [GREEDY, LABEL_SYNC, TIME_SYNC, "demo_rescore", "demo_prior", "demo_train", "demo_lm_train"]
)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_no_option_can_be_nan_or_infinite(config, value):
    names = float_options(config)
    assert names
    for name in names:
        with pytest.raises(OptionError, match=rf"{name} = .*expected") as info:
            read_options(config_file(config), words({name: value}))
        assert "\n" not in str(info.value)


def test_as_a_user_sees_it(files, tmp_path):
    """Exit code 1, one line on the terminal, no stack trace, no results."""
    options = {"data_dir": files.setup.data_dir, "vocab": VOCAB, "recog_parts": "dev", "device": "cpu"}
    for more, message in [
        ({"load": files.names["aed"], "beam_size": 0}, "beam_size = 0: expected at least 1"),
        ({"load": files.names["says_small"]}, "does not fit the model of this run"),
        ({"load": files.names["aed_other_labels"]}, "but they are other sub-words"),
    ]:
        res = fork_config(LABEL_SYNC, tmp_path, ok=False, **options, **more)
        assert res.returncode == 1 and "Traceback" not in res.stderr
        errors = [line for line in res.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and message in errors[0]
        assert not (tmp_path / "output" / LABEL_SYNC / "nbest.jsonl").exists()


def test_trainings_say_which_labels_they_have(files, tmp_path):
    """So that the checks above can be made; and a vocabulary that was made again under the same name is noticed."""
    given = {"data_dir": files.setup.data_dir, "vocab": VOCAB, "device": "cpu", "dev_parts": "dev"}
    given["output_dir"] = str(tmp_path / "x")
    run_until_model("demo_train", given, str(tmp_path))
    info = json.loads((tmp_path / "x" / "models" / "model_info.json").read_text())
    assert info["labels_hash"] == files.setup.vocab.labels_hash() and len(info["labels_hash"]) == 16
    (tmp_path / "x" / "models" / "epoch.001.pt").touch()
    record = json.loads((tmp_path / "x" / "options.json").read_text())
    (tmp_path / "x" / "options.json").write_text(json.dumps({**record, "labels_hash": "0" * 16}))
    with pytest.raises(OptionError, match=r"holds checkpoints of a training with other options \(labels_hash: '0000"):
        run_until_model("demo_train", given, str(tmp_path))
    del record["labels_hash"]  # of an older version
    (tmp_path / "x" / "options.json").write_text(json.dumps(record))
    run_until_model("demo_train", given, str(tmp_path))
