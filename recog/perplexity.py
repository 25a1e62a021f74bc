"""
RETURNN's forward task as measure of language models: perplexities of several models on several texts.

With the log-probability of each sentence, its end included, summed up over a text of N sentences with L labels and W
words in total::

    perplexity per label = exp(-sum / (L + N))        per word = exp(-sum / (W + N))
"""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import returnn.frontend as rf
from returnn.forward_iface import ForwardCallbackIface
from returnn.log import log
from returnn.tensor import Dim, TensorDict, batch_dim
from returnn.tensor import Tensor as RfTensor

from rf_models.checkpoint import ModelInfo, build_model, load_parameters
from rf_models.lm_train import LanguageModel, lm_log_probs
from rf_models.sequences import append_eos, spatial_dim_of

from .nbest import open_text_for_writing
from .out_of_memory import splits_when_out_of_memory
from .progress import Progress
from .vocab import Vocab

__all__ = [
    "LanguageModels",
    "PerplexityCallback",
    "TextScore",
    "perplexity_forward_step",
    "perplexity_table",
    "sequence_log_probs",
]

TAG_SEPARATOR = "|"
"""In sequence tags: <name of the text>|<tag in it>"""


class LanguageModels(rf.Module):
    """Several language models over the same labels, with their parameters loaded."""

    def __init__(self, checkpoints: dict[str, tuple[ModelInfo, str]]):
        """
        :param checkpoints: name -> what it is, file
        """
        super().__init__()
        self.names = list(checkpoints)
        models = []
        for info, filename in checkpoints.values():
            model = build_model(info)
            load_parameters(model, filename)
            models.append(model)
        self.models = rf.ModuleList(models)


@splits_when_out_of_memory
def perplexity_forward_step(*, model: LanguageModels, extern_data: TensorDict, **_kwargs: Any) -> None:
    """
    RETURNN's ``forward_step``. Outputs per sequence: ``log_probs`` [models] float64 of the labels with EOS,
    ``labels`` [L].
    """
    labels = extern_data["data"]
    device = labels.raw_tensor.device
    labels_dim = spatial_dim_of(labels)
    models_dim = Dim(len(model.names), name="models")
    sums = [sequence_log_probs(one, labels, labels_dim) for one in model.models]
    stacked, _ = rf.stack(sums, out_dim=models_dim)
    stacked = stacked.copy_transpose([batch_dim, models_dim])
    assert stacked.raw_tensor.device == device
    run_ctx = rf.get_run_ctx()
    run_ctx.mark_as_output(stacked, "log_probs", dims=stacked.dims)
    run_ctx.mark_as_output(labels, "labels", dims=[batch_dim, labels_dim])


def sequence_log_probs(model: LanguageModel, labels: RfTensor, labels_dim: Dim) -> RfTensor:
    """
    :param model:
    :param labels: {batch, labels_dim} without EOS
    :param labels_dim:
    :return: {batch} float64 log-probability of the labels and of EOS behind them
    """
    labels, spatial_dim = append_eos(labels, labels_dim, eos_index=model.eos_index, target_dim=model.target_dim)
    log_probs = lm_log_probs(model, labels, spatial_dim=spatial_dim)
    log_probs = rf.gather(log_probs, axis=model.target_dim, indices=labels)
    return rf.reduce_sum(rf.cast(log_probs, "float64"), axis=spatial_dim)


@dataclass
class TextScore:
    """Of a text; log-probabilities by name of the model."""

    num_sentences: int = 0
    num_labels: int = 0
    num_words: int = 0
    num_unknown: int = 0
    """Labels that stand for characters which the vocabulary does not have."""
    log_prob: dict[str, float] = field(default_factory=dict)

    def add_sentence(self, labels: list[int], log_probs: dict[str, float], *, vocab: Vocab) -> int:
        """
        :param labels: without EOS
        :param log_probs: of labels and EOS, by name of the model
        :param vocab: makes words of labels
        :return: number of words
        """
        num_words = len(vocab.labels_to_text(labels).split())
        self.num_sentences += 1
        self.num_labels += len(labels)
        self.num_words += num_words
        self.num_unknown += labels.count(vocab.unknown_index)
        for name, value in log_probs.items():
            self.log_prob[name] = self.log_prob.get(name, 0.0) + value
        return num_words

    def perplexity(self, model: str, *, per: str) -> float:
        """
        :param model: name
        :param per: "label" or "word"; the end of a sentence counts as one in both
        """
        count = {"label": self.num_labels, "word": self.num_words}[per] + self.num_sentences
        return math.exp(min(-self.log_prob[model] / count, 700.0))

    def as_dict(self) -> dict[str, Any]:
        """:return: for JSON, with the perplexities"""
        perplexities = {
            f"perplexity_per_{per}": {name: self.perplexity(name, per=per) for name in self.log_prob}
            for per in ("label", "word")
        }
        return {**asdict(self), **perplexities}


def perplexity_table(texts: dict[str, TextScore]) -> str:
    """
    :param texts: by name
    :return: a row for each text and model
    """
    rows = [("text", "sentences", "labels", "words", "unknown", "ppl/label", "ppl/word", "model")]
    for name, score in texts.items():
        counts = (score.num_sentences, score.num_labels, score.num_words, score.num_unknown)
        for model in score.log_prob:
            perplexities = (f"{score.perplexity(model, per=per):.2f}" for per in ("label", "word"))
            rows.append((name, *(f"{n:,}" for n in counts), *perplexities, model))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells, row[-1]]))
    return "\n".join(lines)


class PerplexityCallback(ForwardCallbackIface):
    """
    Adds up the log-probabilities. At the end of the run it writes ``sentences.jsonl`` (each sentence),
    ``perplexity.txt`` (the table) and, last, ``perplexity.json``.
    """

    def __init__(self, output_dir: str, *, model_names: list[str], vocab: Vocab, num_seqs: dict[str, int]):
        """
        :param output_dir:
        :param model_names: in the order of the outputs
        :param vocab: makes words of labels
        :param num_seqs: so many sentences must come, by text
        """
        self.output_dir = output_dir
        self.model_names = model_names
        self.vocab = vocab
        self.num_seqs = num_seqs
        self.result_file = os.path.join(output_dir, "perplexity.json")
        self._start()

    def _start(self) -> None:
        self.scores = {name: TextScore(log_prob=dict.fromkeys(self.model_names, 0.0)) for name in self.num_seqs}
        self.sentences: list[dict[str, Any]] = []
        self.progress = Progress("perplexity", stream=lambda: log.v3)

    def init(self, *, model: Any) -> None:
        """
        The run begins.

        :param model: not used
        """
        self._start()
        with suppress(FileNotFoundError):
            os.remove(self.result_file)
        self.progress.update(0.0)

    def process_seq(self, *, seq_tag: str, outputs: TensorDict) -> None:
        """
        :param seq_tag: with the name of the text
        :param outputs: see :func:`perplexity_forward_step`
        """
        text, _, tag = seq_tag.partition(TAG_SEPARATOR)
        labels = outputs["labels"].raw_tensor.tolist()
        log_probs = dict(zip(self.model_names, outputs["log_probs"].raw_tensor.tolist(), strict=True))
        num_words = self.scores[text].add_sentence(labels, log_probs, vocab=self.vocab)
        self.sentences.append(
            {"text": text, "tag": tag, "num_labels": len(labels), "num_words": num_words, "log_prob": log_probs}
        )
        done = len(self.sentences)
        self.progress.update(done / max(sum(self.num_seqs.values()), 1), f"{done} sentences")

    def finish(self) -> None:
        """
        The run has ended: writes all files and prints the table.

        :raises SystemExit: sentences are missing, or a model gave NaN
        """
        for name, expected in self.num_seqs.items():
            if self.scores[name].num_sentences != expected:
                raise SystemExit(
                    f"error: {self.scores[name].num_sentences} of {expected} sentences of the text {name} arrived"
                )
        for model in self.model_names:
            if any(math.isnan(score.log_prob[model]) for score in self.scores.values()):
                raise SystemExit(f"error: the language model {model} gives probabilities that are not a number")
        table = perplexity_table(self.scores)
        with open_text_for_writing(os.path.join(self.output_dir, "sentences.jsonl")) as file:
            for sentence in sorted(self.sentences, key=lambda s: (s["text"], s["tag"])):
                file.write(json.dumps(sentence, ensure_ascii=False) + "\n")
        with open_text_for_writing(os.path.join(self.output_dir, "perplexity.txt")) as file:
            file.write(table + "\n")
        with open_text_for_writing(self.result_file) as file:
            json.dump({name: score.as_dict() for name, score in self.scores.items()}, file, indent=2)
            file.write("\n")
        print(f"{table}\nWritten to {self.result_file}", file=log.v1, flush=True)
