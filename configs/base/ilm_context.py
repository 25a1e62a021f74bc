"""
Runs that make zero-context and average-context internal language models of an ASR model.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import Any

from rf_models.checkpoint import build_model, read_model_info

from .corpus import CorpusOptions, open_corpus
from .lm import ilm_info
from .options import OptionError, resolve_options
from .recog import find_checkpoint
from .run import (
    BEHAVIOR_VERSION,
    Setup,
    asdicts,
    command_line_options,
    config_name,
    log_config,
    make_output_dir,
    returnn_keys,
    write_json,
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
        if self.num_utterances < 1:
            raise ValueError(f"num_utterances = {self.num_utterances}: expected at least 1")


def ilm_context_run(namespace: dict[str, Any], setup: Setup) -> dict[str, Any]:
    """
    :param namespace: ``globals()`` of the config file. Its plain variables override the options of the setup.
    :param setup: corpus and ASR training
    :return: RETURNN's config: task forward, which writes zero.pt and average.pt
    """
    groups, values = resolve_options(namespace, command_line_options(), [setup.corpus, IlmContextOptions()])
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
    _stop_if_finished(output_dir, asr_checkpoint, asdicts(groups))
    num_seqs = corpus.num_seqs(corpus_opts.train_parts)
    dataset = corpus.forward_dataset(corpus_opts.train_parts)
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

    extern_data = corpus.extern_data()
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
    config.update(returnn_keys(values))
    return config


def _stop_if_finished(output_dir: str, asr_checkpoint: str, options: dict[str, Any]) -> None:
    """
    Records the options. If the same run has finished before, says so and ends the process: a checkpoint that is written
    again would be another one for all that was computed with it.

    :raises OptionError: if another run has finished in this folder
    """
    stat = os.stat(asr_checkpoint)
    ignore = ("data_dir", "num_workers", "batch_size", "max_seqs")
    record = {key: value for key, value in options.items() if key not in ignore}
    record |= {"checkpoint": os.path.abspath(asr_checkpoint), "checkpoint_time": stat.st_mtime}
    record = json.loads(json.dumps(record))  # tuples become lists, as in the file
    record_file = os.path.join(output_dir, "options.json")
    if all(os.path.isfile(os.path.join(output_dir, name)) for name in ("zero.pt", "average.pt")):
        before = {}
        if os.path.isfile(record_file):
            with open(record_file, encoding="utf8") as file:
                before = json.load(file)
        if changed := [key for key, value in record.items() if before.get(key) != value]:
            raise OptionError(
                f"{output_dir} holds the models of a run with other {', '.join(changed)}. Choose another folder with"
                " ++output_dir, or remove that one."
            )
        print(f"This run has finished before: {output_dir}. To repeat it, remove this folder.")
        sys.exit(0)
    write_json(record_file, record)
