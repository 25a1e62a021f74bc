"""
Recognition runs: from the options of a config to what RETURNN's forward task reads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from recog.options import (
    CtcOptions,
    ExternalModelOptions,
    ForcedOptions,
    GreedyOptions,
    LabelSyncOptions,
    RescoreOptions,
    TimeSyncOptions,
)
from recog.shards import FREE_TO_DIFFER, NBEST_FILE, Shard
from rf_models.options import AedCtcOptions

from .corpus import Corpus, CorpusOptions, open_corpus
from .models import (
    ExternalModels,
    check_combination,
    find_checkpoint,
    open_external_models,
    options_of_checkpoint,
    warn_of_other_decoder,
)
from .options import OptionError, check_positive, resolve_options
from .recipes import RecipeOptions, check_models, chosen_row, row_options
from .run import (
    BEHAVIOR_VERSION,
    Setup,
    asdicts,
    command_line_options,
    config_name,
    file_record,
    log_config,
    make_output_dir,
    returnn_keys,
    stop_if_finished,
)
from .shards import begin_shard, merge_when_complete, plan_of_shard, shard_of_this_process

if TYPE_CHECKING:
    from recog.batches import Batch
    from recog.inputs import ScoreData
    from recog.nbest import NBestHeader, Utterance

__all__ = [
    "ForwardRun",
    "RecogOptions",
    "find_checkpoint",
    "forced_run",
    "open_forward_run",
    "recognition_run",
    "rescore_run",
]


_IMPOSSIBLE = "no hypothesis was given, or none is possible (too many labels for the number of CTC frames?)"


@dataclass(frozen=True)
class RecogOptions:
    """Options of every recognition run."""

    output_dir: str | None = None
    """None: ``output/<config name>`` below the current folder."""
    checkpoint: str = "last"
    """"last" sub-epoch or "average" (see tools/average_checkpoints.py) of the training run; ``++load FILE`` for any."""
    batch_size: int = 200_000 * 16
    """Audio samples in a batch, padding included. Results do not depend on it, but for their last digits."""
    max_seqs: int = 200
    amp: Literal["off", "bfloat16", "float16"] = "off"
    """Mixed precision of the encoder. All else is float32: features, CTC, decoder, language models, search."""
    returnn_search_output: bool = False
    """Also write the n-best as the Python dict that RETURNN's search task used to write (search_out.py)."""
    overwrite: bool = False
    """Replace finished results of the same run."""
    shard: str | None = None
    """"i/N": only the i-th of N shares of the utterances, which have about the same amount of audio. When all N runs
    (in any order, on any machines that see the same folders) are done, the last one writes the results of all, those
    of one run. Not needed under torchrun: each process takes its share. None: everything."""

    def __post_init__(self):
        check_positive(self, "batch_size", "max_seqs")
        if self.shard is not None:
            Shard.parse(self.shard)


@dataclass
class ForwardRun:
    """A run of RETURNN's forward task over a corpus, all options checked."""

    namespace: dict[str, Any]
    corpus: Corpus
    groups: dict[type, Any]  # option groups by class
    returnn_values: dict[str, Any]
    search_opts: GreedyOptions | LabelSyncOptions | TimeSyncOptions
    external: ExternalModels
    checkpoint: str  # of the ASR model
    data: ScoreData
    shard: Shard | None  # None: this process does everything

    @property
    def ctc_opts(self) -> CtcOptions:
        """:return: options of the CTC log-probs"""
        return self.groups[CtcOptions]

    @property
    def output_dir(self) -> str:
        """:return: folder of the results of the whole run"""
        return self.groups[RecogOptions].output_dir or os.path.join("output", config_name(self.namespace))

    def _options(self) -> dict[str, Any]:
        """:return: all options by name"""
        return {**asdicts(self.groups), "shard": self.shard and str(self.shard)}

    def header(self) -> NBestHeader:
        """:return: of the n-best file of the search"""
        from recog.forward import nbest_header

        options, vocab = self._options(), self.corpus.vocab.describe()
        return nbest_header(self.search_opts, self.ctc_opts, options=options, vocab=vocab)

    def get_model(self, **_kwargs: Any) -> Any:
        """RETURNN's ``get_model``."""
        from rf_models.checkpoint import check_checkpoint
        from rf_models.combined import CombinedModel

        vocab = self.corpus.vocab
        opts = dict(num_labels=vocab.num_labels, eos_index=vocab.eos_index)
        model = CombinedModel(self.groups[AedCtcOptions], **opts)
        try:
            check_checkpoint(self.checkpoint, model)
        except ValueError as exc:
            raise OptionError(str(exc)) from None
        for name, other in self.external.build().items():
            setattr(model, name, other)
        return model

    def returnn_config(
        self,
        *,
        forward_step: Callable[..., None],
        header: NBestHeader | None = None,
        inputs: dict[str, str] | None = None,
        no_hypothesis: str | None = None,
        needs_labels: bool = False,
    ) -> dict[str, Any]:
        """
        :param forward_step:
        :param header: of the n-best file. None: that of the search
        :param inputs: other files that the results depend on, by the option that names them
        :param no_hypothesis: why an utterance can have no hypotheses
        :param needs_labels: whether it reads the transcripts as labels
        :return: RETURNN's config: task forward, which writes an n-best file
        """
        from recog.callback import RecogCallback
        from recog.planned_batching import PlannedBatching

        corpus, parts = self.corpus, self.groups[CorpusOptions].recog_parts
        opts: RecogOptions = self.groups[RecogOptions]
        batches, plan = plan_of_shard(self.shard, corpus, parts, batch_size=opts.batch_size, max_seqs=opts.max_seqs)
        folder = self._begin(inputs or {}, plan)
        dataset = corpus.forward_dataset(parts, needs_labels=needs_labels)
        if self.shard:
            dataset["seq_list_filter_file"] = _write_list(os.path.join(folder, "utterances.txt"), batches)
        config = {
            "backend": "torch",
            "behavior_version": BEHAVIOR_VERSION,
            "task": "forward",
            "extern_data": corpus.extern_data(forward=True),
            "forward_data": dataset,
            "get_model": self.get_model,
            "load": self.checkpoint,
            "preload_from_files": self.external.preload(),
            "forward_step": forward_step,
            "forward_callback": RecogCallback(
                os.path.join(folder, NBEST_FILE),
                header=header or self.header(),
                vocab=corpus.vocab,
                num_seqs=sum(len(batch.utts) for batch in batches),
                returnn_search_output=opts.returnn_search_output,
                after=partial(merge_when_complete, self.shard, self.output_dir) if self.shard else None,
                **({"no_hypothesis": no_hypothesis} if no_hypothesis else {}),
            ),
            "forward_auto_split_batch_on_oom": True,
            "batch_size": {"data": opts.batch_size},
            "max_seqs": opts.max_seqs,
            "torch_batching": PlannedBatching(batches),
            "torch_dataloader_opts": {"num_workers": min(1, self.groups[CorpusOptions].num_workers)},
            **log_config(folder),
        }
        config.update(returnn_keys(self.returnn_values, training=False))
        return config

    def _begin(self, inputs: dict[str, str], plan: dict[str, Any]) -> str:
        """
        Ends the process if there is nothing to do.

        :param inputs: files that the results depend on, beside the models, by the option that names them
        :param plan: of the shards
        :return: folder for the results of this process
        """
        make_output_dir(self.output_dir)
        files = {"checkpoint": self.checkpoint, **inputs}
        files.update({f"{name}_file": filename for name, filename in self.external.checkpoints.items()})
        if self.ctc_opts.prior_scale:
            files["prior"] = self.ctc_opts.prior_file
        record = self._options()
        for name, filename in files.items():
            record |= file_record(filename, name=name)
        opts: RecogOptions = self.groups[RecogOptions]
        ignore = FREE_TO_DIFFER - {"shard"}
        if self.shard:
            record["plan"] = plan
            return begin_shard(self.shard, self.output_dir, record, overwrite=opts.overwrite, ignore=ignore)
        stop_if_finished(
            [os.path.join(self.output_dir, NBEST_FILE)],
            record,
            overwrite=opts.overwrite,
            ignore=ignore,
            summary_file=os.path.join(self.output_dir, "wer.txt"),
        )
        return self.output_dir


def _write_list(filename: str, batches: Sequence[Batch]) -> str:
    """:return: filename, of a list of all utterances"""
    with open(filename + ".tmp", "w", encoding="utf8") as file:
        file.writelines(f"{utt.seq_tag}\n" for batch in batches for utt in batch.utts)
    os.replace(filename + ".tmp", filename)
    return filename


def open_forward_run(
    namespace: dict[str, Any],
    setup: Setup,
    search: GreedyOptions | LabelSyncOptions | TimeSyncOptions | RescoreOptions,
    external: ExternalModelOptions | None = None,
    *,
    more_options: Sequence[Any] = (),
) -> ForwardRun:
    """
    :param namespace: ``globals()`` of the config file. Its plain variables override the options of the setup.
    :param setup: corpus and model
    :param search: default options of the search; their class says which search
    :param external: default of the models beside the ASR model
    :param more_options: defaults of other option groups of this run
    """
    # The options of the model are those of the checkpoint; they can be given for one that does not say what it is.
    defaults = [setup.corpus, setup.model, RecogOptions(), CtcOptions(), external or ExternalModelOptions(), search]
    command_line = command_line_options()
    row = chosen_row(namespace, command_line, corpus=setup.corpus_name)
    groups, values = resolve_options(
        namespace,
        command_line,
        [RecipeOptions(), *defaults, *more_options],
        presets=row and row_options(row, type(search)),
    )
    if row:
        check_models(row, groups[type(search)], groups[ExternalModelOptions])
    shard = shard_of_this_process(groups[RecogOptions].shard)
    if "torch_amp" in values:
        raise OptionError("torch_amp would be for the search, too, whose sums need float32: use amp, for the encoder")
    corpus_opts, ctc_opts, search_opts = groups[CorpusOptions], groups[CtcOptions], groups[type(search)]
    if isinstance(search_opts, RescoreOptions):
        search_opts = search_opts.scoring()
    corpus = open_corpus(
        setup.corpus_name, corpus_opts, parts=corpus_opts.recog_parts, prepare_command=setup.prepare_command
    )
    vocab = corpus.vocab
    checkpoint = values.get("load") or find_checkpoint(setup.train_run, groups[RecogOptions].checkpoint)
    if not os.path.isfile(checkpoint):
        raise OptionError(f"checkpoint {checkpoint} does not exist")
    model_opts = options_of_checkpoint(checkpoint, groups[AedCtcOptions], defaults=setup.model, vocab=vocab)
    groups[AedCtcOptions] = model_opts
    models = open_external_models(groups[ExternalModelOptions], search_opts, asr=model_opts, vocab=vocab)
    check_combination(model_opts, ctc_opts, search_opts, models)
    if models.ilm_type == "mini_lstm":
        warn_of_other_decoder(checkpoint, models.checkpoints["ilm"])
    return ForwardRun(
        namespace=namespace,
        corpus=corpus,
        groups=groups,
        returnn_values=values,
        search_opts=search_opts,
        external=models,
        checkpoint=checkpoint,
        data=_score_data(groups, models, num_classes=vocab.num_labels + 1),
        shard=shard,
    )


def _score_data(groups: dict[type, Any], external: ExternalModels, *, num_classes: int) -> ScoreData:
    """:raises OptionError: a file is missing or wrong"""
    from recog.inputs import ScoreData

    ctc_opts: CtcOptions = groups[CtcOptions]
    log_prior = None
    if ctc_opts.prior_scale:
        from recog.prior import load_log_prior

        try:
            log_prior = load_log_prior(ctc_opts.prior_file, num_classes=num_classes)
        except (OSError, ValueError) as exc:
            raise OptionError(str(exc)) from None
    return ScoreData(log_prior=log_prior, ilm_type=external.ilm_type, amp=groups[RecogOptions].amp)


def recognition_run(
    namespace: dict[str, Any],
    setup: Setup,
    search: GreedyOptions | LabelSyncOptions | TimeSyncOptions,
    external: ExternalModelOptions | None = None,
) -> dict[str, Any]:
    """
    All arguments as in :func:`open_forward_run`.

    :return: RETURNN's config: task forward, which writes an n-best file
    """
    from recog.forward import make_forward_step

    run = open_forward_run(namespace, setup, search, external)
    return run.returnn_config(forward_step=make_forward_step(run.search_opts, run.ctc_opts, data=run.data))


def forced_run(
    namespace: dict[str, Any],
    setup: Setup,
    search: LabelSyncOptions | TimeSyncOptions,
    external: ExternalModelOptions | None = None,
) -> dict[str, Any]:
    """
    All arguments as in :func:`open_forward_run`. The options of the search define the score. (Those that only steer it,
    such as beam_size, have no effect: so the command line of a recognition run can be used as it is.)

    :return: RETURNN's config: task forward, which writes the scores of the references, or of the hypotheses of
        ``nbest_file``, as an n-best file
    """
    from recog.rescore import make_forced_step

    run = open_forward_run(namespace, setup, search, external, more_options=[ForcedOptions()])
    nbest_file = run.groups[ForcedOptions].nbest_file
    header = run.header()
    return run.returnn_config(
        forward_step=make_forced_step(
            run.search_opts,
            run.ctc_opts,
            data=run.data,
            utterances=_load_hypotheses(nbest_file, run) if nbest_file else None,
        ),
        header=replace(header, search=f"forced_{header.search}"),
        no_hypothesis=_IMPOSSIBLE,
        needs_labels=not nbest_file,
        inputs={"nbest_file": nbest_file} if nbest_file else None,
    )


def rescore_run(
    namespace: dict[str, Any], setup: Setup, rescore: RescoreOptions, external: ExternalModelOptions | None = None
) -> dict[str, Any]:
    """
    All arguments as in :func:`open_forward_run`.

    :return: RETURNN's config: task forward, which reads the n-best file of a first pass and writes that of the second
    """
    from recog.rescore import make_rescore_step

    run = open_forward_run(namespace, setup, rescore, external)
    opts: RescoreOptions = run.groups[RescoreOptions]
    if opts.nbest_file is None:
        raise OptionError("no first pass: give its n-best file with ++nbest_file")
    utterances = _load_hypotheses(opts.nbest_file, run)
    header = run.header()
    if opts.first_pass_scale:
        header = replace(header, scales={**header.scales, "first_pass": opts.first_pass_scale})
    return run.returnn_config(
        forward_step=make_rescore_step(opts, run.ctc_opts, data=run.data, utterances=utterances),
        header=replace(header, search="rescore"),
        no_hypothesis=_IMPOSSIBLE,
        inputs={"nbest_file": opts.nbest_file},
    )


def _load_hypotheses(filename: str, run: ForwardRun) -> dict[str, Utterance]:
    """:raises OptionError: cannot be read, or not of this run's corpus"""
    from recog.rescore import load_hypotheses

    try:
        utterances = load_hypotheses(filename, vocab=run.corpus.vocab)
    except (OSError, ValueError) as exc:
        raise OptionError(f"nbest_file: {exc}") from None
    parts = set(run.groups[CorpusOptions].recog_parts)
    found = {utt.part for utt in utterances.values()}
    if missing := sorted(parts - found):
        raise OptionError(
            f"nbest_file = {filename} has no utterances of {', '.join(missing)}, only of {', '.join(sorted(found))}:"
            " choose the parts with ++recog_parts"
        )
    return utterances
