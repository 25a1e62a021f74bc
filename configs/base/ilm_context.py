"""
Runs that make zero-context and average-context internal language models of an ASR model.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from rf_models.checkpoint import build_model, read_model_info

from .corpus import CorpusOptions, open_corpus
from .lm import ilm_info
from .options import OptionError, check_positive, resolve_options
from .recog import find_checkpoint
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

__all__ = ["IlmContextOptions", "ilm_context_run"]


@dataclass(frozen=True)
class IlmContextOptions:
    """Options of :func:`ilm_context_run`."""

    output_dir: str | None = None
    """None: ``output/<config name>`` below the current folder."""
    asr_checkpoint: str = "last"
    """"last" sub-epoch or "average" of the ASR training, or a file."""
    num_utterances: int = 3000
    """The context is averaged over so many utterances of the training data, drawn once."""
    batch_size: int = 15_000 * 160
    """Audio samples in a batch, padding included."""
    max_seqs: int = 200

    def __post_init__(self):
        check_positive(self, "num_utterances", "batch_size", "max_seqs")


def ilm_context_run(namespace: dict[str, Any], setup: Setup) -> dict[str, Any]:
    """
    :param namespace: ``globals()`` of the config file. Its plain variables override the options of the setup.
    :param setup: corpus and ASR training
    :return: RETURNN's config: task forward, which writes zero.pt and average.pt
    """
    groups, values = resolve_options(namespace, command_line_options(), [setup.corpus, IlmContextOptions()])
    check_one_process("The average of a decoder's context")
    corpus_opts: CorpusOptions = groups[CorpusOptions]
    opts: IlmContextOptions = groups[IlmContextOptions]
    corpus = open_corpus(
        setup.corpus_name, corpus_opts, parts=corpus_opts.train_parts, prepare_command=setup.prepare_command
    )
    asr_checkpoint = find_checkpoint(setup.train_run, opts.asr_checkpoint)
    # Without a Mini-LSTM to speak of: its output is multiplied by zero.
    info = ilm_info(asr_checkpoint, corpus.vocab, mini_lstm_dim=1)
    asr_info = read_model_info(asr_checkpoint)
    output_dir = opts.output_dir or os.path.join("output", config_name(namespace))
    make_output_dir(output_dir)
    stop_if_finished(  # a checkpoint that is written again would be another one for all that was computed with it
        [os.path.join(output_dir, name) for name in ("zero.pt", "average.pt")],
        {**asdicts(groups), **file_record(asr_checkpoint)},
        overwrite=None,
        ignore=("data_dir", "num_workers", "batch_size", "max_seqs"),
    )
    num_seqs = corpus.num_seqs(corpus_opts.train_parts)
    dataset = corpus.forward_dataset(corpus_opts.train_parts, needs_labels=True)
    if num_seqs > opts.num_utterances:
        dataset["fixed_random_subset"] = num_seqs = opts.num_utterances

    def get_model(**_kwargs: Any) -> Any:
        from rf_models.checkpoint import check_checkpoint

        model = build_model(asr_info)
        try:
            check_checkpoint(asr_checkpoint, model)
        except ValueError as exc:
            raise OptionError(str(exc)) from None
        return model

    from recog.ilm_context import ContextCallback, context_forward_step

    extern_data = corpus.extern_data(forward=True)
    del extern_data["orth"]
    config = {
        "backend": "torch",
        "behavior_version": BEHAVIOR_VERSION,
        "task": "forward",
        "extern_data": extern_data,
        "forward_data": dataset,
        "get_model": get_model,
        "load": asr_checkpoint,
        "forward_step": context_forward_step,
        "forward_callback": ContextCallback(output_dir, info=info, asr_checkpoint=asr_checkpoint, num_seqs=num_seqs),
        "forward_auto_split_batch_on_oom": True,
        "batch_size": {"data": opts.batch_size},
        "max_seqs": opts.max_seqs,
        "torch_dataloader_opts": {"num_workers": min(1, corpus_opts.num_workers)},
        **log_config(output_dir),
    }
    config.update(returnn_keys(values, training=False))
    return config
