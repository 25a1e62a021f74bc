"""
Prior runs: CTC label priors of a model from the training data.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, Literal

from rf_models.options import AedCtcOptions

from .corpus import CorpusOptions, open_corpus
from .models import find_checkpoint, options_of_checkpoint
from .options import OptionError, check_positive, resolve_options
from .run import (
    BEHAVIOR_VERSION,
    Setup,
    asdicts,
    check_one_process,
    command_line_options,
    config_name,
    file_record,
    log_config,
    make_output_dir,
    returnn_keys,
    stop_if_finished,
)

__all__ = ["PriorOptions", "prior_run"]


@dataclass(frozen=True)
class PriorOptions:
    """Options of a prior run."""

    output_dir: str | None = None
    """None: ``output/<config name>`` below the current folder."""
    checkpoint: str = "last"
    """"last" sub-epoch or "average" of the training run; ``++load FILE`` for any."""
    ctc_layer: int | None = None
    """Which CTC head: number of the encoder layer (1-based) below it. None: the top-most head of the model."""
    average: Literal["frames", "utterances"] = "frames"
    """"frames": mean over all frames. "utterances": mean of the means of the utterances, as the original frontend
    recipes did; short utterances weigh more then."""
    num_utterances: int | None = None
    """A random subset of so many utterances. None: all."""
    smoothing: float = 1.0
    """Added to each label count of label_prior.txt."""
    batch_size: int = 200_000 * 16
    """Audio samples in a batch, padding included."""
    max_seqs: int = 200
    overwrite: bool = False
    """Replace finished results."""

    def __post_init__(self):
        check_positive(self, "batch_size", "max_seqs")
        if self.num_utterances is not None and self.num_utterances < 1:
            raise ValueError(f"num_utterances = {self.num_utterances}: expected at least 1, or None")
        if not self.smoothing > 0:
            raise ValueError(f"smoothing = {self.smoothing}: expected a number > 0")


def prior_run(namespace: dict[str, Any], setup: Setup) -> dict[str, Any]:
    """
    :param namespace: ``globals()`` of the config file. Its plain variables override the options of the setup.
    :param setup: corpus and model
    :return: RETURNN's config: task forward over the training data, which writes priors
    """
    corpus_defaults = replace(setup.corpus, speed_perturbation=(1.0,))
    groups, values = resolve_options(namespace, command_line_options(), [corpus_defaults, setup.model, PriorOptions()])
    check_one_process("A prior")
    corpus_opts, opts = groups[CorpusOptions], groups[PriorOptions]
    parts = corpus_opts.train_parts
    corpus = open_corpus(setup.corpus_name, corpus_opts, parts=parts, prepare_command=setup.prepare_command)
    vocab = corpus.vocab
    checkpoint = values.get("load") or find_checkpoint(setup.train_run, opts.checkpoint)
    if not os.path.isfile(checkpoint):
        raise OptionError(f"checkpoint {checkpoint} does not exist")
    model_opts = options_of_checkpoint(checkpoint, groups[AedCtcOptions], defaults=setup.model, vocab=vocab)
    groups[AedCtcOptions] = model_opts
    if not model_opts.ctc_layers:
        raise OptionError("a prior needs a CTC head, but the model has none (ctc_layers is empty)")
    if opts.ctc_layer is not None and opts.ctc_layer not in model_opts.ctc_layers:
        raise OptionError(f"ctc_layer = {opts.ctc_layer}: the model has CTC heads on {model_opts.ctc_layers} only")
    output_dir = opts.output_dir or os.path.join("output", config_name(namespace))
    make_output_dir(output_dir)
    stop_if_finished(
        [os.path.join(output_dir, "prior.json")],
        {**asdicts(groups), **file_record(checkpoint)},
        overwrite=opts.overwrite,
        ignore=("data_dir", "num_workers", "batch_size", "max_seqs"),
    )
    dataset, num_seqs = corpus.forward_dataset(parts, needs_labels=True), corpus.num_seqs(parts)
    if opts.num_utterances is not None and opts.num_utterances < num_seqs:
        num_seqs = opts.num_utterances
        dataset["fixed_random_subset"] = num_seqs

    def get_model(**_kwargs: Any) -> Any:
        from rf_models.aed_ctc import AedCtcModel
        from rf_models.checkpoint import check_checkpoint

        model = AedCtcModel(model_opts, num_labels=vocab.num_labels, eos_index=vocab.eos_index)
        try:
            check_checkpoint(checkpoint, model)
        except ValueError as exc:
            raise OptionError(str(exc)) from None
        return model

    from recog.prior_callback import PriorCallback, prior_forward_step

    config = {
        "backend": "torch",
        "behavior_version": BEHAVIOR_VERSION,
        "task": "forward",
        "extern_data": {key: value for key, value in corpus.extern_data(forward=True).items() if key != "orth"},
        "forward_data": dataset,
        "get_model": get_model,
        "load": checkpoint,
        "forward_step": prior_forward_step(opts.ctc_layer),
        "forward_callback": PriorCallback(
            output_dir,
            vocab=vocab,
            num_seqs=num_seqs,
            average=opts.average,
            smoothing=opts.smoothing,
            record={"checkpoint": checkpoint, "parts": list(parts), "average": opts.average, "vocab": vocab.describe()},
        ),
        "forward_auto_split_batch_on_oom": True,
        "batch_size": {"data": opts.batch_size},
        "max_seqs": opts.max_seqs,
        "torch_dataloader_opts": {"num_workers": min(1, corpus_opts.num_workers)},
        **log_config(output_dir),
    }
    config.update(returnn_keys(values, training=False))
    return config
