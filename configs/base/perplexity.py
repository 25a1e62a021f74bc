"""
Perplexity runs: from the options of a config to what RETURNN's forward task reads.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from recog.vocab import Vocab
from rf_models.checkpoint import ModelInfo, read_model_info

from .models import check_vocab, find_checkpoint
from .options import OptionError, check_positive, resolve_options
from .run import (
    BEHAVIOR_VERSION,
    asdicts,
    check_one_process,
    command_line_options,
    config_name,
    log_config,
    make_output_dir,
    returnn_keys,
    stop_if_finished,
)
from .text import Text, TextOptions, TextSetup, lm_extern_data, open_texts, text_dataset

__all__ = ["PerplexityOptions", "find_language_model", "perplexity_run", "read_sentences"]

_KINDS = ("lstm_lm", "transformer_lm", "mini_lstm_ilm")


@dataclass(frozen=True)
class PerplexityOptions:
    """Options of a perplexity run."""

    output_dir: str | None = None
    """None: ``output/<config name>`` below the current folder."""
    models: tuple[str, ...] = ()
    """Language models or internal language models: names of training runs (their last sub-epoch), or checkpoints."""
    texts: tuple[str, ...] = ("dev", "test")
    """Names of texts, see ``TextOptions``: parts of the corpus, prepared texts, or files."""
    batch_size: int = 20_000
    """Labels in a batch, padding included. Results do not depend on it."""
    max_seqs: int = 500
    overwrite: bool = False
    """Replace results of a run with other options."""

    def __post_init__(self):
        check_positive(self, "batch_size", "max_seqs")
        for name in ("models", "texts"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} = {values}: expected at least one, and different ones")


def perplexity_run(
    namespace: dict[str, Any], setup: TextSetup, opts: PerplexityOptions | None = None
) -> dict[str, Any]:
    """
    :param namespace: ``globals()`` of the config file. Its plain variables override the options of the setup.
    :param setup: corpus; its language model is the default
    :param opts: defaults of this config
    :return: RETURNN's config: task forward, which writes perplexities
    """
    opts = opts or PerplexityOptions(models=(setup.train_run,), texts=setup.text.dev_texts)
    groups, values = resolve_options(namespace, command_line_options(), [_ReadOptions.of(setup.text), opts])
    check_one_process("A computation of perplexities")
    opts = groups[PerplexityOptions]
    text_opts = groups[_ReadOptions].as_text_options(setup.text)
    output_dir = opts.output_dir or os.path.join("output", config_name(namespace))
    make_output_dir(output_dir)
    texts, vocab = open_texts(opts.texts, setup, text_opts, output_dir=output_dir)
    checkpoints = {name: find_language_model(name, vocab) for name in opts.models}
    record = {
        **asdicts(groups),
        "checkpoints": [[os.path.abspath(file), os.stat(file).st_mtime] for _, file in checkpoints.values()],
    }
    stop_if_finished(
        [os.path.join(output_dir, "perplexity.json")],
        record,
        overwrite=opts.overwrite,
        summary_file=os.path.join(output_dir, "perplexity.txt"),
    )
    tagged, num_seqs = [], {}
    for text in texts:
        text, num_seqs[text.name] = _with_tags(text, output_dir)
        tagged.append(text)

    def get_model(**_kwargs: Any) -> Any:
        from recog.perplexity import LanguageModels

        try:
            return LanguageModels(checkpoints)
        except ValueError as exc:
            raise OptionError(str(exc)) from None

    from recog.perplexity import PerplexityCallback, perplexity_forward_step

    dataset = text_dataset(tagged, vocab, seq_ordering="sorted_reverse")
    dataset["seq_list_file"] = [text.tags_file for text in tagged]
    config = {
        "backend": "torch",
        "behavior_version": BEHAVIOR_VERSION,
        "task": "forward",
        "extern_data": lm_extern_data(vocab),
        "forward_data": dataset,
        "get_model": get_model,
        "forward_step": perplexity_forward_step,
        "forward_callback": PerplexityCallback(
            output_dir, model_names=list(checkpoints), vocab=vocab, num_seqs=num_seqs
        ),
        "forward_auto_split_batch_on_oom": True,
        "batch_size": {"data": opts.batch_size},
        "max_seqs": opts.max_seqs,
        "torch_dataloader_opts": {"num_workers": 0},
        **log_config(output_dir),
    }
    config.update(returnn_keys(values, training=False))
    return config


@dataclass(frozen=True)
class _ReadOptions:
    """Those of :class:`TextOptions` that matter when nothing is trained."""

    data_dir: str
    vocab: str
    train_parts: tuple[str, ...]

    @classmethod
    def of(cls, opts: TextOptions) -> _ReadOptions:
        """:return: from the options of a training"""
        return cls(opts.data_dir, opts.vocab, opts.train_parts)

    def as_text_options(self, defaults: TextOptions) -> TextOptions:
        """:return: options as :func:`open_texts` wants them"""
        return TextOptions(
            data_dir=self.data_dir, vocab=self.vocab, train_parts=self.train_parts, dev_texts=defaults.dev_texts
        )


def find_language_model(name: str, vocab: Vocab) -> tuple[ModelInfo, str]:
    """
    :param name: of a training run, or a checkpoint
    :param vocab: of this run
    :return: what it is, its checkpoint
    :raises OptionError: no such checkpoint, no language model, or other labels
    """
    filename = name if os.sep in name or name.endswith(".pt") else find_checkpoint(name, "last")
    if not os.path.isfile(filename):
        raise OptionError(f"checkpoint {filename} does not exist")
    try:
        info = read_model_info(filename)
    except (OSError, ValueError) as exc:
        raise OptionError(str(exc)) from None
    if info is None or info.kind not in _KINDS:
        found = "a model of the kind " + info.kind if info else "a model that is not described"
        raise OptionError(f"{filename} holds {found}, but this run needs one of {', '.join(_KINDS)}")
    check_vocab(filename, info, vocab)
    return info, filename


def _with_tags(text: Text, output_dir: str) -> tuple[Text, int]:
    """
    :param text:
    :param output_dir:
    :return: the same with the name of the text in the tags of all sentences, and their number
    """
    from recog.perplexity import TAG_SEPARATOR

    folder = os.path.join(output_dir, "text")
    make_output_dir(folder)
    tags = None
    if text.tags_file:
        with open(text.tags_file, encoding="utf8") as file:
            tags = file.read().splitlines()
    text_file, tags_file = os.path.join(folder, f"{text.name}.txt"), os.path.join(folder, f"{text.name}.tags.txt")
    number = 0
    with open(text_file + ".tmp", "w", encoding="utf8") as sentences, open(tags_file + ".tmp", "w") as names:
        for line_number, line in read_sentences(text.files):
            sentences.write(line + "\n")
            names.write(f"{text.name}{TAG_SEPARATOR}{tags[number] if tags else f'line-{line_number}'}\n")
            number += 1
    if not number:
        raise OptionError(f"{', '.join(text.files)}: there is no sentence in it")
    for filename in (text_file, tags_file):
        os.replace(filename + ".tmp", filename)
    return Text(text.name, (text_file,), tags_file), number


def read_sentences(filenames: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """:return: number (from 1) and content of all lines that are not empty, with single spaces"""
    number = 0
    for filename in filenames:
        try:
            opener = gzip.open if filename.endswith(".gz") else open
            with opener(filename, "rt", encoding="utf8") as file:
                for line in file:
                    number += 1
                    if line := " ".join(line.split()):
                        yield number, line
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as exc:
            raise OptionError(f"{filename} cannot be read ({exc}): expected UTF-8 text") from None
