"""
Training runs: from the options of a config to what RETURNN's train task reads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, fields
from typing import Any

from returnn.log import log
from returnn.util.math import merge_random_seeds

from recog.json_file import JsonError, read_json_object
from recog.learning_rates import LearningRatesError, read_learning_rates
from recog.progress import Progress
from rf_models.checkpoint import INFO_FILE, ModelInfo, build_model, check_checkpoint
from rf_models.options import DECODER_OPTIONS, AedCtcOptions, AedCtcTrainOptions
from rf_models.pretraining import num_pretrain_epochs

from .corpus import CorpusOptions, open_corpus
from .failures import quiet_worker
from .mel_statistics import set_mel_statistics
from .models import find_file, options_of_checkpoint
from .options import OptionError, resolve_options
from .processes import rank
from .resume import check_checkpoints, keep_losses
from .run import (
    BEHAVIOR_VERSION,
    Setup,
    asdicts,
    command_line_options,
    config_name,
    distributed_parameters,
    file_record,
    log_config,
    make_output_dir,
    returnn_keys,
    write_json,
)
from .train_options import LoopOptions, TrainOptions

__all__ = ["check_decoder_options", "record_options", "training_config", "training_run"]


def training_run(namespace: dict[str, Any], setup: Setup) -> dict[str, Any]:
    """
    :param namespace: ``globals()`` of the config file. Its plain variables override the options of the setup.
    :param setup: corpus, model and recipe
    :return: RETURNN's config: task train with an AED+CTC model
    """
    command_line, in_config = command_line_options(), set(namespace)
    groups, values = resolve_options(namespace, command_line, [setup.corpus, setup.model, setup.losses, setup.training])
    corpus_opts: CorpusOptions = groups[CorpusOptions]
    model_opts: AedCtcOptions = groups[AedCtcOptions]
    loss_opts: AedCtcTrainOptions = groups[AedCtcTrainOptions]
    opts: TrainOptions = groups[TrainOptions]

    def check_options() -> None:
        check_decoder_options(model_opts.dec_kind, command_line=command_line, in_config=in_config)
        try:
            loss_opts.ctc_scales_for(model_opts.ctc_layers)
        except ValueError as exc:
            raise OptionError(str(exc)) from None

    if not opts.init_checkpoint:
        check_options()
    corpus = open_corpus(
        setup.corpus_name,
        corpus_opts,
        parts=corpus_opts.train_parts + corpus_opts.dev_parts,
        prepare_command=setup.prepare_command,
    )
    init_checkpoint, init_record = None, {}
    if opts.init_checkpoint:
        if loss_opts.pretrain_layers:
            raise OptionError(
                "pretrain_layers: the model of init_checkpoint is trained already, all its layers are to run:"
                " give ++pretrain_layers '()'"
            )
        init_checkpoint = find_file(opts.init_checkpoint, option="init_checkpoint")
        init_record = file_record(init_checkpoint, name="init_checkpoint")
        groups[AedCtcOptions] = model_opts = options_of_checkpoint(
            init_checkpoint, model_opts, defaults=setup.model, vocab=corpus.vocab, keep_dropout=True
        )
        check_options()
    output_dir = opts.output_dir or os.path.join("output", config_name(namespace))
    labels = {"num_labels": corpus.vocab.num_labels, "labels_hash": corpus.vocab.labels_hash()}
    record_options(output_dir, {**asdicts(groups), **init_record, **labels}, groups=groups.values())
    source = {}
    if pretrain_epochs := num_pretrain_epochs(loss_opts, num_layers=model_opts.enc_num_layers):
        source["pretrain_epochs"] = pretrain_epochs
    info = ModelInfo("aed_ctc", asdict(model_opts), eos_index=corpus.vocab.eos_index, source=source, **labels)
    write_json(os.path.join(output_dir, "models", INFO_FILE), info.as_dict())

    def get_model(**_kwargs: Any) -> Any:
        model = build_model(info)
        if init_checkpoint:
            try:
                check_checkpoint(init_checkpoint, model)
            except ValueError as exc:
                raise OptionError(str(exc)) from None
        elif model_opts.mel_normalization:
            num = opts.mel_statistics_utterances
            set_mel_statistics(model, corpus, model_opts, output_dir=output_dir, num_utterances=num)
        return model

    def train_step(*, model: Any, extern_data: Any, **_kwargs: Any) -> None:
        from rf_models import aed_ctc

        aed_ctc.train_step(model=model, extern_data=extern_data, opts=loss_opts)

    for key in ("max_seq_length", "min_seq_length"):
        if key in values:
            raise OptionError(
                f"{key}: RETURNN leaves out utterances by it without a word; use max_audio_seconds or max_label_len"
            )
    checks = {
        "num_frames": model_opts.num_encoder_frames,
        "ctc": any(loss_opts.ctc_scales_for(model_opts.ctc_layers).values()),
        "ctc_with_eos": loss_opts.ctc_with_eos,
    }
    limits = {"max_seconds": opts.max_audio_seconds, "max_labels": opts.max_label_len}
    config = training_config(
        output_dir,
        opts,
        extern_data=corpus.extern_data(forward=False),
        train=corpus.train_dataset(**checks, **limits),
        dev=corpus.dev_dataset(**checks, **limits),
        get_model=get_model,
        train_step=train_step,
        error_measure="ce" if loss_opts.aed_loss_scale and model_opts.with_decoder else None,
        batch_size={"data": opts.batch_size},
        max_seqs=opts.max_seqs,
        max_seq_length={},
        num_workers=corpus_opts.num_workers,
        returnn_values=values,
    )
    if init_checkpoint:  # its parameters only; get_model has compared names and shapes
        config["preload_from_files"] = {
            "init": {"filename": init_checkpoint, "init_for_train": True, "ignore_missing": True}
        }
    return config


def check_decoder_options(kind: str, *, command_line: Collection[str], in_config: Collection[str]) -> None:
    """
    :param kind: ``dec_kind`` of the run
    :param command_line: names of the options given there
    :param in_config: names of the variables in the config file. (If the command line chooses the decoder, those that
        belong to another one are what the user has turned away from.)
    :raises OptionError: an option has no effect, since it belongs to another kind of decoder
    """
    given = command_line if "dec_kind" in command_line else {*command_line, *in_config}
    for other, names in DECODER_OPTIONS.items():
        if other != kind and (wrong := [name for name in names if name in given]):
            raise OptionError(
                f"{', '.join(wrong)}: only the {other} decoder has this, but dec_kind = {kind}:"
                f" leave it out, or give ++dec_kind {other}"
            )


def training_config(
    output_dir: str,
    opts: LoopOptions,
    *,
    extern_data: dict[str, Any],
    train: dict[str, Any],
    dev: dict[str, Any],
    get_model: Callable[..., Any],
    train_step: Callable[..., None],
    error_measure: str | None,
    batch_size: dict[str, int],
    max_seqs: int,
    max_seq_length: dict[str, int],
    num_workers: int,
    returnn_values: dict[str, Any],
) -> dict[str, Any]:
    """
    :param output_dir: of the run
    :param opts: optimiser, learning rate, checkpoints
    :param extern_data:
    :param train: dataset
    :param dev: dataset
    :param get_model:
    :param train_step:
    :param error_measure: name of the loss that decides which checkpoints are best; None: the total
    :param batch_size: by data key
    :param max_seqs: in a batch
    :param max_seq_length: by data key; longer ones are left out
    :param num_workers: processes that load data
    :param returnn_values: RETURNN's own keys that were set in config or command line
    :return: RETURNN's config: task train
    """
    if not {"start_epoch", "load_epoch"} & returnn_values.keys():
        check_checkpoints(output_dir, num_epochs=opts.num_epochs, is_first_process=rank() == 0)
    learning_rate_file = os.path.join(output_dir, "learning_rates")
    if os.path.isfile(learning_rate_file):
        try:
            read_learning_rates(learning_rate_file)
        except LearningRatesError as exc:
            raise OptionError(str(exc)) from None
    from rf_models.step_guard import StepGuard

    progress = Progress("training", interval=10.0, stream=lambda: log.v3)
    guard = StepGuard(train_step)

    def dynamic_learning_rate(*, epoch: int, epoch_continuous: float | None = None, **_kwargs: Any) -> float:
        guard.after_step()  # RETURNN asks for the next learning rate when a step is done
        position = epoch - 1 if epoch_continuous is None else epoch_continuous
        if rank() == 0:  # one of the processes under torchrun
            progress.update(position / opts.num_epochs, f"sub-epoch {epoch} of {opts.num_epochs}")
        return opts.learning_rate_at(epoch - 1 if opts.lr_per_sub_epoch else position)

    def epoch_start(*, epoch: int, step: int, model: Any, dataset_name: str, **_kwargs: Any) -> None:
        if dataset_name != "train":
            return
        import returnn.frontend as rf

        # RETURNN has set the seed already, but then the data loader took random numbers: a new one takes more of them
        # than one that has its processes from the sub-epoch before. Resumed training must not depend on that.
        rf.set_random_seed(merge_random_seeds([epoch, step, opts.random_seed, rank()]))
        if (buffer := getattr(model, "mixup_buffer", None)) is not None:
            buffer.clear()  # it is in no checkpoint
        if rank() == 0:
            keep_losses(output_dir)

    def epoch_end(*, epoch: int, dataset_name: str, **_kwargs: Any) -> None:
        if dataset_name == "train":
            guard.end_of_epoch(epoch)

    config = {
        "backend": "torch",
        "behavior_version": BEHAVIOR_VERSION,
        "task": "train",
        "extern_data": extern_data,
        "train": train,
        "dev": dev,
        "get_model": get_model,
        "train_step": guard,
        "epoch_end": epoch_end,
        # What is not finite is for the guard (see there), and for RETURNN's updater:
        "num_allowed_consec_invalid_gradient_steps": opts.max_skipped_steps,
        "stop_on_nonfinite_train_score": False,
        "model": os.path.join(output_dir, "models", "epoch"),
        "num_epochs": opts.num_epochs,
        "batch_size": batch_size,
        "max_seqs": max_seqs,
        "accum_grad_multiple_step": opts.accum_grad_multiple_step,
        "optimizer": _optimizer(opts),
        "epoch_start": epoch_start,
        "learning_rate": opts.peak_learning_rate,
        "dynamic_learning_rate": dynamic_learning_rate,
        "learning_rate_control": "constant",
        "learning_rate_file": learning_rate_file,
        "learning_rate_control_error_measure": error_measure,
        "save_interval": 1,
        "cleanup_old_models": {
            "keep_last_n": opts.keep_last_n,
            "keep_best_n": opts.keep_best_n,
            "keep": [opts.num_epochs],
        },
        "random_seed": opts.random_seed,
        "torch_dataloader_opts": {"num_workers": num_workers, "worker_init_fn": quiet_worker},
        "torch_dataloader_shard_workers": True,  # else each of several workers loads all of the data
        **log_config(output_dir, goes_on="goes on after the last complete sub-epoch"),
    }
    if max_seq_length:
        config["max_seq_length"] = max_seq_length
    if opts.gradient_clip_global_norm:
        config["gradient_clip_global_norm"] = opts.gradient_clip_global_norm
    if "torch_amp" in returnn_values:
        raise OptionError("torch_amp: the option for mixed precision is ++amp bfloat16 or off")
    if _use_amp(opts, device=returnn_values.get("device")):
        config["torch_amp"] = {"dtype": "bfloat16"}
        config["grad_scaler"] = None  # bfloat16 has the range of float32; a scale would be missing in checkpoints
    parameters = distributed_parameters(opts.param_sync_step) if opts.param_sync_step else None
    config.update(returnn_keys(returnn_values, distributed=parameters))
    return config


def _optimizer(opts: LoopOptions) -> dict[str, Any]:
    """:return: RETURNN's options of Adam or AdamW"""
    optimizer = {"class": opts.optimizer_type, "epsilon": opts.adam_eps, "weight_decay": opts.weight_decay}
    if opts.weight_decay:  # RETURNN knows the next option only then
        optimizer["weight_decay_modules_blacklist"] = [f"rf.{name}" for name in opts.weight_decay_exclude]
    return optimizer


def _use_amp(opts: LoopOptions, *, device: str | None) -> bool:
    """
    :param opts:
    :param device: that was asked for
    :return: whether to train with bfloat16
    """
    if opts.amp != "auto":
        return opts.amp == "bfloat16"
    import torch

    return device != "cpu" and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


# A run can be continued with these options changed; with another model or vocabulary it would be another run.
_FREE_TO_CHANGE = frozenset(
    """
    data_dir num_epochs num_workers keep_last_n keep_best_n amp output_dir dev_max_seqs dev_texts batch_size max_seqs
    distributed param_sync_step max_skipped_steps
    """.split()
)


def record_options(output_dir: str, options: dict[str, Any], *, groups: Iterable[Any]) -> None:
    """
    Writes options.json beside the run's output.

    :param output_dir: of the run
    :param options: by name
    :param groups: option dataclasses. A run of a version that did not have an option yet had its default.
    :raises OptionError: if the folder holds checkpoints of a run with other options
    """
    make_output_dir(os.path.join(output_dir, "models"))
    filename = os.path.join(output_dir, "options.json")
    options = json.loads(json.dumps(options))  # tuples become lists, as in the file
    has_checkpoints = any(name.endswith(".pt") for name in os.listdir(os.path.join(output_dir, "models")))
    if has_checkpoints and os.path.isfile(filename):
        try:
            before = read_json_object(filename)
        except JsonError as exc:
            raise OptionError(f"{exc}: it is damaged, remove it, if you know that the options are the same") from None
        defaults = {field.name: field.default for group in groups for field in fields(group)}
        before = {**json.loads(json.dumps(defaults, default=repr)), **before}
        changed = [
            f"{key}: {before.get(key)!r} -> {value!r}"
            for key, value in options.items()
            if key not in _FREE_TO_CHANGE and before.get(key) != value and (key != "labels_hash" or key in before)
        ]
        if changed:
            raise OptionError(
                f"{output_dir} holds checkpoints of a training with other options ({'; '.join(changed)})."
                " Choose another folder with ++output_dir, or remove that one."
            )
    write_json(filename, options)
