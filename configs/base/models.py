"""
The models of a recognition run: which checkpoints, what they hold, and whether that fits the scales.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields, replace
from typing import Any

from recog.options import CtcOptions, ExternalModelOptions, GreedyOptions, IlmType, LabelSyncOptions, SearchOptions
from recog.vocab import Vocab
from rf_models.checkpoint import ModelInfo, load_state_dict, numbered_checkpoints, read_model_info
from rf_models.options import AedCtcOptions

from .options import OptionError

__all__ = [
    "ExternalModels",
    "check_combination",
    "check_vocab",
    "find_checkpoint",
    "open_external_models",
    "options_of_checkpoint",
    "warn_of_other_decoder",
]

_LM_KINDS = ("lstm_lm", "transformer_lm")
_NOT_LOADED = {"ctc_model": ("decoder.",)}
"""Model -> parameters of its checkpoint that a run does not need."""


@dataclass(frozen=True)
class ExternalModels:
    """Models beside the ASR model."""

    infos: dict[str, ModelInfo]
    """"lm", "ilm", "ctc_model" (those that there are) -> what it is"""
    checkpoints: dict[str, str]
    """The same keys -> file"""
    ilm_type: IlmType | None
    """Of the internal LM that is used"""

    def build(self) -> dict[str, Any]:
        """
        :return: the models by name, with initial parameters
        :raises OptionError: a checkpoint does not fit what it says it is
        """
        from rf_models.checkpoint import build_model, check_checkpoint

        models = {}
        for name, info in self.infos.items():
            models[name] = build_model(info)
            try:
                check_checkpoint(self.checkpoints[name], models[name], ignore_prefixes=_NOT_LOADED.get(name, ()))
            except ValueError as exc:
                raise OptionError(str(exc)) from None
        return models

    def preload(self) -> dict[str, Any]:
        """:return: RETURNN's ``preload_from_files``"""
        return {
            name: {
                "filename": filename,
                "prefix": f"{name}.",
                "ignore_params_prefixes": [f"{name}.{prefix}" for prefix in _NOT_LOADED.get(name, ())],
            }
            for name, filename in self.checkpoints.items()
        }


def open_external_models(
    opts: ExternalModelOptions,
    search_opts: GreedyOptions | SearchOptions,
    *,
    asr: AedCtcOptions,
    vocab: Vocab,
) -> ExternalModels:
    """
    :param opts:
    :param search_opts: whose scales the models must fit
    :param asr: the ASR model
    :param vocab:
    :raises OptionError: a scale without model, a model without scale, another kind of model or vocabulary
    """
    infos: dict[str, ModelInfo] = {}
    checkpoints: dict[str, str] = {}

    def add(name: str, option: str, kinds: tuple[str, ...], purpose: str) -> None:
        filename = find_file(getattr(opts, option), option=option)
        infos[name] = _read_info(filename, option=option, kinds=kinds, purpose=purpose, vocab=vocab)
        checkpoints[name] = filename

    if isinstance(search_opts, GreedyOptions):
        for name in ("lm_checkpoint", "ilm_type", "ilm_checkpoint"):
            if value := getattr(opts, name):
                raise OptionError(
                    f"{name} = {value}: greedy search uses no language model; use one of the other searches, or leave"
                    " it out"
                )
    lm_scale, ilm_scale, ctc_scale = (getattr(search_opts, f"{name}_scale", 0.0) for name in ("lm", "ilm", "ctc"))
    _check_pair("lm_scale", lm_scale, "lm_checkpoint", opts.lm_checkpoint)
    if opts.lm_checkpoint:
        add("lm", "lm_checkpoint", _LM_KINDS, "an external language model")

    ilm_type = opts.ilm_type
    ilm_model = opts.ilm_checkpoint or ilm_type
    _check_pair("ilm_scale", ilm_scale, "ilm_type or ilm_checkpoint", ilm_model)
    if opts.ilm_checkpoint:
        kinds = {"mini_lstm": ("mini_lstm_ilm",), "density_ratio": _LM_KINDS, None: ("mini_lstm_ilm", *_LM_KINDS)}
        purpose = f"ilm_type {ilm_type}" if ilm_type else "an internal language model"
        add("ilm", "ilm_checkpoint", kinds[ilm_type], purpose)
        ilm_type = "mini_lstm" if infos["ilm"].kind == "mini_lstm_ilm" else "density_ratio"
        if ilm_type == "mini_lstm" and asr.dec_kind != "lstm":
            raise OptionError(
                f"ilm_checkpoint = {opts.ilm_checkpoint} is made of an LSTM decoder, but the ASR model has a"
                f" {asr.dec_kind} decoder: use ilm_type zero or avg, or a language model (density_ratio)"
            )
    elif ilm_model and not asr.with_decoder:
        raise OptionError(f"ilm_type = {ilm_type}: the ASR model has no attention decoder, and so no internal LM")

    if opts.ctc_checkpoint:
        if isinstance(search_opts, GreedyOptions):
            raise OptionError("ctc_checkpoint: greedy search uses one model only, give it with ++load")
        if isinstance(search_opts, LabelSyncOptions) and not ctc_scale:
            raise OptionError("ctc_checkpoint is given, but ctc_scale = 0: give a scale, or leave the checkpoint out")
        add("ctc_model", "ctc_checkpoint", ("aed_ctc",), "CTC scores")
        info = infos["ctc_model"]
        if not info.model_options().ctc_layers:
            raise OptionError(f"ctc_checkpoint = {opts.ctc_checkpoint}: this model has no CTC head")
        no_decoder = {"with_decoder": False, "dec_embed_init_stddev": None}
        infos["ctc_model"] = replace(info, options={**info.options, **no_decoder})
    return ExternalModels(infos=infos, checkpoints=checkpoints, ilm_type=ilm_type)


def warn_of_other_decoder(asr_checkpoint: str, ilm_checkpoint: str) -> bool:
    """
    Prints a warning if an internal LM was made of another decoder than that of the ASR model.

    :param asr_checkpoint:
    :param ilm_checkpoint: of the kind mini_lstm_ilm
    :return: whether it was
    """
    asr, ilm = load_state_dict(asr_checkpoint)[0], load_state_dict(ilm_checkpoint)[0]
    mine, its = asr.get("decoder.output_prob.bias"), ilm.get("prior_output_prob.bias")
    if mine is None or its is None or (mine.shape == its.shape and bool((mine == its).all())):
        return False
    print(
        f"warning: the internal language model {ilm_checkpoint} is not made of the decoder in {asr_checkpoint}: what is"
        " subtracted is another model's internal language model"
    )
    return True


def check_combination(
    model_opts: AedCtcOptions,
    ctc_opts: CtcOptions,
    search_opts: GreedyOptions | SearchOptions,
    external: ExternalModels,
) -> None:
    """:raises OptionError: a score is wanted that the models do not have"""
    info = external.infos.get("ctc_model")
    layers = (info.model_options() if info else model_opts).ctc_layers
    needs_ctc = not isinstance(search_opts, LabelSyncOptions) or search_opts.ctc_scale or ctc_opts.uses_label_prior
    if needs_ctc and not layers:
        raise OptionError("this search needs a CTC head, but the model has none (ctc_layers is empty)")
    if ctc_opts.ctc_layer is not None and ctc_opts.ctc_layer not in layers:
        raise OptionError(f"ctc_layer = {ctc_opts.ctc_layer}: the model has CTC heads on the layers {layers} only")
    if not needs_ctc:
        unused = ("ctc_layer", "prior_scale", "blank_penalty", "soft_collapse_threshold", "blank_collapse_threshold")
        for name in unused:
            if getattr(ctc_opts, name) != getattr(CtcOptions(), name):
                raise OptionError(
                    f"{name} = {getattr(ctc_opts, name)}, but ctc_scale = 0, so it would have no effect:"
                    " give ++ctc_scale, or leave it out"
                )
    if ctc_opts.prior_file and not ctc_opts.prior_scale:
        raise OptionError(
            f"prior_file = {ctc_opts.prior_file}, but prior_scale = 0, so it would have no effect: give ++prior_scale,"
            " or leave it out"
        )
    if isinstance(search_opts, GreedyOptions):
        if ctc_opts.uses_label_prior:
            raise OptionError('prior_type = "label" has no meaning in greedy search: use "frame"')
    elif search_opts.att_scale and not model_opts.with_decoder:
        raise OptionError(f"att_scale = {search_opts.att_scale}, but the model has no decoder (with_decoder False)")


def _check_pair(scale_option: str, scale: float, model_option: str, model: str | None) -> None:
    """:raises OptionError: a scale without a model, or the reverse"""
    if scale and not model:
        raise OptionError(f"{scale_option} = {scale}, but there is no such model: give {model_option}")
    if model and not scale:
        raise OptionError(
            f"{model_option} = {model}, but {scale_option} = 0, so it would have no effect:"
            f" give ++{scale_option}, or leave the model out (None)"
        )


def _read_info(filename: str, *, option: str, kinds: tuple[str, ...], purpose: str, vocab: Vocab) -> ModelInfo:
    """:raises OptionError: unreadable, of no known, or of another kind, another vocabulary"""
    try:
        info = read_model_info(filename)
    except ValueError as exc:
        raise OptionError(str(exc)) from None
    if info is None:
        raise OptionError(
            f"{option} = {filename} does not say what model it holds: expected a checkpoint of a training or of the"
            " converter, with its model_info"
        )
    if info.kind not in kinds:
        raise OptionError(
            f"{option} = {filename} holds a model of the kind {info.kind}, but {purpose} must be {' or '.join(kinds)}"
        )
    check_vocab(filename, info, vocab)
    return info


def check_vocab(filename: str, info: ModelInfo, vocab: Vocab) -> None:
    """:raises OptionError: the model has other labels"""
    if (info.num_labels, info.eos_index) != (vocab.num_labels, vocab.eos_index):
        raise OptionError(
            f"{filename} was trained with another vocabulary: it has {info.num_labels} labels (EOS is"
            f" {info.eos_index}), but {vocab.name} has {vocab.num_labels} (EOS is {vocab.eos_index});"
            " choose the right one with ++vocab"
        )
    if info.labels_hash is not None and info.labels_hash != vocab.labels_hash():
        raise OptionError(
            f"{filename} was trained with another vocabulary: it has {info.num_labels} labels, as {vocab.name} has, but"
            " they are other sub-words; choose the right one with ++vocab"
        )


def options_of_checkpoint(
    checkpoint: str, model_opts: AedCtcOptions, *, defaults: AedCtcOptions, vocab: Vocab, keep_dropout: bool = False
) -> AedCtcOptions:
    """
    :param checkpoint: of the ASR model
    :param model_opts: of this run
    :param defaults: what they are if the user says nothing
    :param vocab:
    :param keep_dropout: take all dropouts from model_opts: they are no property of a trained model
    :return: what the checkpoint says of its model; ``model_opts`` if it says nothing
    :raises OptionError: it is another kind of model, has other labels, or the user wants something else
    """
    try:
        info = read_model_info(checkpoint)
    except ValueError as exc:
        raise OptionError(str(exc)) from None
    if info is None:
        return model_opts
    if info.kind != "aed_ctc":
        raise OptionError(f"{checkpoint} holds a model of the kind {info.kind}, but this run needs aed_ctc")
    check_vocab(checkpoint, info, vocab)
    epoch, pretrain_epochs = load_state_dict(checkpoint)[1].get("epoch"), info.source.get("pretrain_epochs")
    if isinstance(epoch, int) and isinstance(pretrain_epochs, int) and epoch <= pretrain_epochs:
        print(
            f"warning: {checkpoint} is of the layer-wise pretraining (until sub-epoch"
            f" {pretrain_epochs}): some of its encoder layers are not trained, but recognition runs all"
        )
    found = info.model_options()
    if keep_dropout:
        names = [option.name for option in fields(AedCtcOptions) if option.name.endswith("dropout")]
        found = replace(found, **{name: getattr(model_opts, name) for name in names})
    for option in fields(AedCtcOptions):
        mine, its = getattr(model_opts, option.name), getattr(found, option.name)
        if mine != getattr(defaults, option.name) and mine != its:
            raise OptionError(
                f"{option.name} = {mine!r}, but the model in {checkpoint} has {its!r}: leave this option out,"
                " what the checkpoint says is taken"
            )
    return found


def find_checkpoint(train_run: str, which: str) -> str:
    """
    :param train_run: name of the training config
    :param which: "last", "average" or a file
    :return: file name
    :raises OptionError: there is none
    """
    folder = os.path.join("output", train_run, "models")
    if which == "average":
        filename = os.path.join(folder, "average.pt")
        if os.path.isfile(filename):
            return filename
        raise OptionError(f"no {filename}: make it with python tools/average_checkpoints.py {folder}")
    if which != "last":
        return which
    last = _last_checkpoint(folder)
    if last:
        return last
    raise OptionError(
        f"no checkpoint in {os.path.abspath(folder)}. Train with\n  rnn.py configs/{train_run}.config\n"
        "or give a checkpoint with ++load FILE."
    )


def _last_checkpoint(folder: str) -> str | None:
    """:return: of the last sub-epoch. None: there is none"""
    checkpoints = numbered_checkpoints(folder)
    return checkpoints[max(checkpoints)] if checkpoints else None


def find_file(path: str, *, option: str) -> str:
    """
    :param path: checkpoint, or the output folder of a training or its folder "models"
    :param option: which says so
    :return: checkpoint
    :raises OptionError: there is none
    """
    if os.path.isfile(path):
        return path
    for folder in (path, os.path.join(path, "models")):
        if last := _last_checkpoint(folder):
            return last
    run = os.path.relpath(path, "output").split(os.sep)[0]
    hint = f" Train with\n  rnn.py configs/{run}.config\nor give another one." if re.search(r"_train(_|$)", run) else ""
    raise OptionError(f"{option} = {path}: no such checkpoint, and no folder with one.{hint}")
