#!/usr/bin/env python3
"""
Perplexity of language models and internal language models on any text, without a corpus or a config.

A text is a file with a sentence per line (.txt, .gz), or an n-best file (.jsonl): its references or, with --hyps, its
best hypotheses. Per label and per word, the end of a sentence counting as one of both; perplexities per word can be
compared between vocabularies, those per label cannot.

  python tools/perplexity.py output/demo_lm_train/models/epoch.004.pt --vocab data/demo/vocab/spm_unigram_80.json \\
      --text output/demo_recog_labelsync/nbest.jsonl data/demo/source/lm.txt --json perplexity.json
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
from collections.abc import Iterator, Sequence

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from configs.base.options import OptionError
from configs.base.perplexity import find_language_model, read_sentences
from configs.base.run import BEHAVIOR_VERSION
from recog.nbest import load_nbest
from recog.progress import Progress
from recog.vocab import load_vocab
from tools.cli import make_parser, run_main, write_json

__all__ = ["main"]

_NBEST = (".jsonl", ".jsonl.gz")


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: command line without the program; None: of this process
    :return: exit code
    """
    args = _parse_args(argv)
    return run_main(lambda: _main(args), errors=(OptionError, ValueError))


def _parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("models", metavar="CHECKPOINT", nargs="+", help="LM or ILM; or name of a training run")
    parser.add_argument("--vocab", metavar="FILE", required=True, help="of the models, vocab/<name>.json")
    parser.add_argument("--text", metavar="FILE", nargs="+", required=True, help="sentences, or an n-best file")
    parser.add_argument("--hyps", action="store_true", help="of n-best files, the best hypotheses")
    parser.add_argument("--batch-size", type=int, default=5000, metavar="N", help="labels in a batch (default: 5000)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    parser.add_argument("--json", metavar="FILE", help="write sums and perplexities")
    args = parser.parse_args(argv)
    for name in ("models", "text"):
        if len(set(getattr(args, name))) < len(getattr(args, name)):
            parser.error(f"{'CHECKPOINT' if name == 'models' else '--text'}: one is given twice")
    if args.hyps and not any(file.endswith(_NBEST) for file in args.text):
        parser.error("--hyps is for n-best files (.jsonl)")
    if args.batch_size < 1:
        parser.error("--batch-size: expected at least 1")
    return args


def _main(args: argparse.Namespace) -> int:
    vocab = load_vocab(args.vocab)
    checkpoints = {name: find_language_model(name, vocab) for name in args.models}
    texts = {name: [vocab.text_to_labels(line) for line in _sentences(name, args.hyps)] for name in args.text}
    for name, sentences in texts.items():
        if not sentences:
            raise ValueError(f"{name}: there is no sentence in it")

    import torch

    from recog.perplexity import LanguageModels, TextScore, perplexity_table, sequence_log_probs
    from recog.standalone import label_batch, use_returnn

    use_returnn(BEHAVIOR_VERSION)
    models = LanguageModels(checkpoints)
    for param in models.parameters():
        param.raw_tensor.data = param.raw_tensor.data.to(args.device)
    scores = {name: TextScore() for name in texts}
    progress, done, total = Progress("perplexity"), 0, sum(map(len, texts.values()))
    for name, sentences in texts.items():
        for batch in _batches(sentences, args.batch_size):
            sums = []
            for model in models.models:
                labels, spatial_dim = label_batch(batch, labels_dim=model.target_dim, device=args.device)
                with torch.inference_mode():
                    sums.append(sequence_log_probs(model, labels, spatial_dim).raw_tensor.tolist())
            for sentence, log_probs in zip(batch, zip(*sums, strict=True), strict=True):
                scores[name].add_sentence(sentence, dict(zip(models.names, log_probs, strict=True)), vocab=vocab)
            done += len(batch)
            progress.update(done / total, f"{done} sentences")
    for model in models.names:
        if any(math.isnan(score.log_prob[model]) for score in scores.values()):
            raise ValueError(f"the language model {model} gives probabilities that are not a number")
    print(perplexity_table(scores))
    if args.json:
        write_json(args.json, {name: score.as_dict() for name, score in scores.items()})
    return 0


def _sentences(filename: str, hyps: bool) -> Iterator[str]:
    """:return: sentences of a file that are not empty"""
    if not filename.endswith(_NBEST):
        yield from (line for _, line in read_sentences((filename,)))
        return
    left_out = 0
    for utt in load_nbest(filename)[1]:
        if utt.ref is None or not utt.hyps:  # references and hypotheses are of the same utterances
            left_out += 1
        elif text := (utt.hyps[0].text if hyps else utt.ref).strip():
            yield text
    if left_out:
        print(f"note: {filename}: {left_out} utterances without reference or hypotheses are left out", file=sys.stderr)


def _batches(sentences: Sequence[list[int]], batch_size: int) -> Iterator[list[list[int]]]:
    """:return: sentences of similar length, with EOS and padding batch_size labels at most (or one sentence)"""
    rest = sorted(sentences, key=len)
    while rest:
        for count in itertools.count(1):
            if count == len(rest) or (count + 1) * (len(rest[count]) + 1) > batch_size:
                break
        yield rest[:count]
        rest = rest[count:]


if __name__ == "__main__":
    sys.exit(main())
