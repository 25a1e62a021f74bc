"""
Recognition runs: from the options of a config to what RETURNN's forward task reads.
"""

from __future__ import annotations

import glob
import json
import os
import sys
from dataclasses import dataclass, fields
from typing import Any

from recog.options import CtcOptions, GreedyOptions, LabelSyncOptions, TimeSyncOptions
from recog.vocab import Vocab
from rf_models.checkpoint import read_model_info
from rf_models.options import AedCtcOptions

from .corpus import CorpusOptions, open_corpus
from .options import OptionError, resolve_options
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

__all__ = ["RecogOptions", "recognition_run"]


@dataclass(frozen=True)
class RecogOptions:
    """Options of every recognition run."""

    output_dir: str | None = None
    """None: ``output/<config name>`` below the current folder."""
    checkpoint: str = "last"
    """"last" sub-epoch or "average" (see tools/average_checkpoints.py) of the training run; ``++load FILE`` for any."""
    batch_size: int = 200_000 * 16
    """Audio samples in a batch, padding included. Results do not depend on it."""
    max_seqs: int = 200
    returnn_search_output: bool = False
    """Also write the n-best as the Python dict that RETURNN's search task used to write (search_out.py.gz)."""
    overwrite: bool = False
    """Replace finished results of the same run."""


def recognition_run(
    namespace: dict[str, Any], setup: Setup, search: GreedyOptions | LabelSyncOptions | TimeSyncOptions
) -> dict[str, Any]:
    """
    :param namespace: ``globals()`` of the config file. Its plain variables override the options of the setup.
    :param setup: corpus and model
    :param search: default options of the search; their class says which search
    :return: RETURNN's config: task forward, which writes an n-best file
    """
    # The options of the model are those of the checkpoint; they can be given for one that does not say what it is.
    groups, values = resolve_options(
        namespace,
        command_line_options(),
        [setup.corpus, setup.model, RecogOptions(), CtcOptions(), search],
    )
    corpus_opts: CorpusOptions = groups[CorpusOptions]
    model_opts: AedCtcOptions = groups[AedCtcOptions]
    ctc_opts: CtcOptions = groups[CtcOptions]
    opts: RecogOptions = groups[RecogOptions]
    search_opts = groups[type(search)]
    corpus = open_corpus(
        setup.corpus_name, corpus_opts, parts=corpus_opts.recog_parts, prepare_command=setup.prepare_command
    )
    checkpoint = values.get("load") or find_checkpoint(setup.train_run, opts.checkpoint)
    if not os.path.isfile(checkpoint):
        raise OptionError(f"checkpoint {checkpoint} does not exist")
    model_opts = _options_of_checkpoint(checkpoint, model_opts, defaults=setup.model, vocab=corpus.vocab)
    groups[AedCtcOptions] = model_opts
    _check_combination(model_opts, ctc_opts, search_opts)
    log_prior = None
    if ctc_opts.prior_scale:
        from recog.prior import load_log_prior

        try:
            log_prior = load_log_prior(ctc_opts.prior_file, num_classes=corpus.vocab.num_labels + 1)
        except (OSError, ValueError) as exc:
            raise OptionError(str(exc)) from None
    output_dir = opts.output_dir or os.path.join("output", config_name(namespace))
    make_output_dir(output_dir)
    nbest_file = os.path.join(output_dir, "nbest.jsonl")
    _stop_if_finished(nbest_file, checkpoint, asdicts(groups), overwrite=opts.overwrite)

    def get_model(**_kwargs: Any) -> Any:
        from rf_models.aed_ctc import AedCtcModel
        from rf_models.checkpoint import check_checkpoint

        model = AedCtcModel(model_opts, num_labels=corpus.vocab.num_labels, eos_index=corpus.vocab.eos_index)
        try:
            check_checkpoint(checkpoint, model)
        except ValueError as exc:
            raise OptionError(str(exc)) from None
        return model

    from recog.callback import RecogCallback
    from recog.forward import make_forward_step, nbest_header

    config = {
        "backend": "torch",
        "behavior_version": BEHAVIOR_VERSION,
        "task": "forward",
        "extern_data": corpus.extern_data(),
        "forward_data": corpus.forward_dataset(corpus_opts.recog_parts),
        "get_model": get_model,
        "load": checkpoint,
        "forward_step": make_forward_step(search_opts, ctc_opts, log_prior=log_prior),
        "forward_callback": RecogCallback(
            nbest_file,
            header=nbest_header(search_opts, ctc_opts, options=asdicts(groups), vocab=corpus.vocab.describe()),
            vocab=corpus.vocab,
            num_seqs=corpus.num_seqs(corpus_opts.recog_parts),
            returnn_search_output=opts.returnn_search_output,
        ),
        "forward_auto_split_batch_on_oom": True,
        "batch_size": {"data": opts.batch_size},
        "max_seqs": opts.max_seqs,
        "torch_dataloader_opts": {"num_workers": min(1, corpus_opts.num_workers)},
        **log_config(output_dir),
    }
    config.update(returnn_keys(values))
    return config


def _options_of_checkpoint(
    checkpoint: str, model_opts: AedCtcOptions, *, defaults: AedCtcOptions, vocab: Vocab
) -> AedCtcOptions:
    """
    :param checkpoint:
    :param model_opts: of this run
    :param defaults: what they are if the user says nothing
    :param vocab:
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
    if (info.num_labels, info.eos_index) != (vocab.num_labels, vocab.eos_index):
        raise OptionError(
            f"{checkpoint} was trained with another vocabulary: it has {info.num_labels} labels (EOS is"
            f" {info.eos_index}), but {vocab.name} has {vocab.num_labels} (EOS is {vocab.eos_index});"
            " choose the right one with ++vocab"
        )
    found = info.model_options()
    for option in fields(AedCtcOptions):
        mine, its = getattr(model_opts, option.name), getattr(found, option.name)
        if mine != getattr(defaults, option.name) and mine != its:
            raise OptionError(
                f"{option.name} = {mine!r}, but the model in {checkpoint} has {its!r}: leave this option out,"
                " recognition takes what the checkpoint says"
            )
    return found


def _check_combination(model_opts: AedCtcOptions, ctc_opts: CtcOptions, search_opts: Any) -> None:
    """:raises OptionError: a score is wanted that this model does not have"""
    needs_ctc = not isinstance(search_opts, LabelSyncOptions) or search_opts.ctc_scale
    if needs_ctc and not model_opts.ctc_layers:
        raise OptionError("this search needs a CTC head, but the model has none (ctc_layers is empty)")
    if ctc_opts.ctc_layer is not None and ctc_opts.ctc_layer not in model_opts.ctc_layers:
        raise OptionError(
            f"ctc_layer = {ctc_opts.ctc_layer}: the model has CTC heads on the layers {model_opts.ctc_layers} only"
        )
    if isinstance(search_opts, GreedyOptions):
        if ctc_opts.prior_scale and ctc_opts.prior_type == "label":
            raise OptionError('prior_type = "label" has no meaning in greedy search: use "frame"')
        return
    if search_opts.att_scale and not model_opts.with_decoder:
        raise OptionError(f"att_scale = {search_opts.att_scale}, but the model has no decoder (with_decoder False)")
    for name in ("lm_scale", "ilm_scale"):
        if getattr(search_opts, name):
            raise OptionError(f"{name} = {getattr(search_opts, name)}, but recognition configs have no such model yet")


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
    checkpoints = sorted(glob.glob(os.path.join(folder, "epoch.*[0-9].pt")))
    if checkpoints:
        return checkpoints[-1]
    raise OptionError(
        f"no checkpoint in {os.path.abspath(folder)}. Train with\n  rnn.py configs/{train_run}.config\n"
        "or give a checkpoint with ++load FILE."
    )


def _stop_if_finished(nbest_file: str, checkpoint: str, options: dict[str, Any], *, overwrite: bool) -> None:
    """
    Records the options beside the n-best file. If the same run has finished before, says so and ends the process.

    :raises OptionError: if another run has finished in this folder
    """
    stat = os.stat(checkpoint)
    record = {**options, "checkpoint": os.path.abspath(checkpoint), "checkpoint_size": stat.st_size}
    record["checkpoint_time"] = stat.st_mtime
    record = json.loads(json.dumps(record))
    record_file = os.path.join(os.path.dirname(nbest_file), "options.json")
    if os.path.isfile(nbest_file) and not overwrite:
        before = {}
        if os.path.isfile(record_file):
            with open(record_file, encoding="utf8") as file:
                before = json.load(file)
        ignore = {"overwrite", "data_dir", "num_workers"}
        changed = [
            f"{k}: {before.get(k)!r} -> {v!r}" for k, v in record.items() if k not in ignore and before.get(k) != v
        ]
        if changed:
            raise OptionError(
                f"{nbest_file} holds the results of a run with other options ({'; '.join(changed)})."
                " Choose another folder with ++output_dir, or replace them with ++overwrite True."
            )
        print(f"This run has finished before: {nbest_file}. To repeat it: ++overwrite True.")
        wer_file = os.path.join(os.path.dirname(nbest_file), "wer.txt")
        if os.path.isfile(wer_file):
            with open(wer_file, encoding="utf8") as file:
                print(file.read())
        sys.exit(0)
    write_json(record_file, record)
