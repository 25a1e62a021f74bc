"""
Other ways to write a text in the labels of a sub-word vocabulary than its canonical segmentation.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..vocab import Vocab

__all__ = ["segmentations"]

_SPACE = "▁"  # of SentencePiece, in front of each word


def segmentations(vocab: Vocab, text: str, *, number: int) -> list[list[int]]:
    """
    :param vocab:
    :param text: words as in the transcripts
    :param number: at most so many
    :return: the canonical segmentation first, then others by number of labels, fewest first; all have the same text
    """
    canonical = vocab.text_to_labels(text)
    table = {vocab.label_name(i): i for i in range(vocab.num_labels) if i != vocab.eos_index}
    sentences: list[list[int]] = [[]]
    for word in text.split():
        options = _of_word(word, table, vocab.type, number=number)
        if not options:
            return [canonical]  # a character that the vocabulary does not have: only its own way to write it
        # The best of all words so far, with one more word: no others can be among the best.
        sentences = sorted((s + o for s in sentences for o in options), key=len)[:number]
    others = [labels for labels in sentences if labels != canonical and vocab.labels_to_text(labels) == text]
    return [canonical, *others][:number]


def _of_word(word: str, table: Mapping[str, int], vocab_type: str, *, number: int) -> list[list[int]]:
    """:return: segmentations of a word, fewest labels first"""
    if vocab_type == "sentencepiece":
        spelling, ending = _SPACE + word, ""
    else:
        spelling, ending = word, "@@"
    # best[i]: ways to write the first i characters
    best: list[list[list[int]]] = [[[]]]
    for end in range(1, len(spelling) + 1):
        ways = []
        for begin in range(end):
            piece = spelling[begin:end] + (ending if end < len(spelling) else "")
            if piece in table:
                ways += [[*way, table[piece]] for way in best[begin]]
        best.append(sorted(ways, key=len)[:number])
    return best[-1]
