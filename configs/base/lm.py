"""
Trainings on text: language models, and the Mini-LSTM internal language model of an ASR model.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from rf_models.checkpoint import INFO_FILE, ModelInfo, build_model, load_state_dict, read_model_info
from rf_models.lm_options import LstmLmOptions, MiniLstmIlmOptions, TransformerLmOptions

from .models import check_vocab, find_checkpoint
from .options import OptionError, resolve_options
from .run import asdicts, command_line_options, config_name, write_json
from .text import TextOptions, TextSetup, lm_extern_data, open_texts, text_dataset
from .train import record_options, training_config
from .train_options import LmTrainOptions

__all__ = ["IlmOptions", "ilm_training_run", "lm_training_run"]

_KINDS = {LstmLmOptions: "lstm_lm", TransformerLmOptions: "transformer_lm"}


def lm_training_run(
    namespace: dict[str, Any], setup: TextSetup, model: LstmLmOptions | TransformerLmOptions
) -> dict[str, Any]:
    """
    :param namespace: ``globals()`` of the config file. Its plain variables override the options of the setup.
    :param setup: corpus and recipe
    :param model: sizes; their class says which language model
    :return: RETURNN's config: task train with a language model
    """
    groups, values = resolve_options(namespace, command_line_options(), [setup.text, setup.training, model])
    return _training(
        namespace,
        setup,
        groups,
        values,
        make_info=lambda vocab: ModelInfo(
            _KINDS[type(model)],
            asdict(groups[type(model)]),
            vocab.num_labels,
            vocab.eos_index,
            labels_hash=vocab.labels_hash(),
        ),
    )


@dataclass(frozen=True)
class IlmOptions:
    """Options of the internal language model's training."""

    asr_checkpoint: str = "last"
    """Whose decoder it is: "last" sub-epoch or "average" of the ASR training, or a file."""
    mini_lstm_dim: int = 50

    def __post_init__(self):
        if self.mini_lstm_dim < 1:
            raise ValueError(f"mini_lstm_dim = {self.mini_lstm_dim}: expected at least 1")


def ilm_training_run(namespace: dict[str, Any], setup: TextSetup, *, asr_run: str) -> dict[str, Any]:
    """
    :param namespace: ``globals()`` of the config file. Its plain variables override the options of the setup.
    :param setup: corpus and recipe; the text should be the ASR model's training transcripts
    :param asr_run: name of the config that trains the ASR model
    :return: RETURNN's config: task train of a Mini-LSTM internal language model. Only the Mini-LSTM is trained, no
        audio is read.
    """
    groups, values = resolve_options(namespace, command_line_options(), [setup.text, setup.training, IlmOptions()])
    opts: IlmOptions = groups[IlmOptions]
    asr_checkpoint = find_checkpoint(asr_run, opts.asr_checkpoint)

    def make_info(vocab: Any) -> ModelInfo:
        return ilm_info(asr_checkpoint, vocab, mini_lstm_dim=opts.mini_lstm_dim)

    def prepare_model(model: Any) -> None:
        model.copy_decoder(load_state_dict(asr_checkpoint)[0])
        model.freeze_decoder()

    return _training(namespace, setup, groups, values, make_info=make_info, prepare_model=prepare_model)


def ilm_info(asr_checkpoint: str, vocab: Any, *, mini_lstm_dim: int) -> ModelInfo:
    """
    :param asr_checkpoint:
    :param vocab: of this run
    :param mini_lstm_dim:
    :return: of the internal language model that belongs to the ASR model
    :raises OptionError: the checkpoint does not say what it is, has no such decoder, or has other labels
    """
    try:
        info = read_model_info(asr_checkpoint)
    except (OSError, ValueError) as exc:
        raise OptionError(str(exc)) from None
    if info is None:
        raise OptionError(
            f"{asr_checkpoint} does not say what model it holds: expected {INFO_FILE} beside it (training writes it) or"
            " a checkpoint of tools/convert_checkpoint.py"
        )
    if info.kind != "aed_ctc" or not info.model_options().with_decoder:
        raise OptionError(f"{asr_checkpoint} (kind {info.kind}) has no attention decoder, and so no internal LM")
    if info.model_options().dec_kind != "lstm":
        raise OptionError(
            f"{asr_checkpoint} has a {info.model_options().dec_kind} decoder: this internal LM is made of the LSTM"
            " decoder only; recognition itself can make one of any decoder with ++ilm_type zero or avg"
        )
    check_vocab(asr_checkpoint, info, vocab)
    asr = asdict(info.model_options())
    names = set(MiniLstmIlmOptions.__dataclass_fields__) & set(asr)
    options = MiniLstmIlmOptions(mini_lstm_dim=mini_lstm_dim, **{name: asr[name] for name in names})
    source = {"decoder_of": os.path.abspath(asr_checkpoint)}
    labels = info.num_labels, info.eos_index
    return ModelInfo("mini_lstm_ilm", asdict(options), *labels, source, labels_hash=vocab.labels_hash())


def _training(
    namespace: dict[str, Any],
    setup: TextSetup,
    groups: dict[type, Any],
    values: dict[str, Any],
    *,
    make_info: Any,
    prepare_model: Any = None,
) -> dict[str, Any]:
    """:return: RETURNN's config: task train on text"""
    text_opts: TextOptions = groups[TextOptions]
    opts: LmTrainOptions = groups[LmTrainOptions]
    output_dir = opts.output_dir or os.path.join("output", config_name(namespace))
    train_texts, vocab = open_texts(text_opts.train_texts, setup, text_opts, output_dir=output_dir)
    dev_texts, _ = open_texts(text_opts.dev_texts, setup, text_opts, output_dir=output_dir)
    info = make_info(vocab)
    labels = {"num_labels": vocab.num_labels, "labels_hash": vocab.labels_hash()}
    record_options(output_dir, {**asdicts(groups), **labels}, groups=groups.values())
    write_json(os.path.join(output_dir, "models", INFO_FILE), info.as_dict())

    def get_model(**_kwargs: Any) -> Any:
        model = build_model(info)
        if prepare_model is not None:
            prepare_model(model)
        return model

    def train_step(*, model: Any, extern_data: Any, **_kwargs: Any) -> None:
        from rf_models.lm_train import lm_train_step

        lm_train_step(model=model, extern_data=extern_data)

    config = training_config(
        output_dir,
        opts,
        extern_data=lm_extern_data(vocab),
        train=text_dataset(
            train_texts,
            vocab,
            partition_epoch=text_opts.partition_epoch,
            seq_ordering=text_opts.train_seq_ordering,
        ),
        dev=text_dataset(dev_texts, vocab, seq_ordering="sorted_reverse"),
        get_model=get_model,
        train_step=train_step,
        error_measure="ce",
        batch_size={"data": opts.batch_size},
        max_seqs=opts.max_seqs,
        max_seq_length={} if opts.max_label_len is None else {"data": opts.max_label_len},
        num_workers=text_opts.num_workers,
        returnn_values=values,
    )
    config["calculate_exp_loss"] = True  # perplexities in the log
    return config
