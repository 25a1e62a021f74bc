"""
Sentences of the demo corpus: commands of a closed vocabulary with words that sound alike (bin, pin; b, d, p, t;
thirteen, thirty; left, lift).

All sentences follow the same templates. In training, all words of a slot are equally likely, and half of the slots take
any word of the vocabulary: if these sentences were predictable, the attention decoder would learn to guess words
instead of listening, and would fail on new voices. In the development and test sentences and in the text for the
language model, the words keep to their slots, and each depends on the one before it: so a language model knows
something that the acoustic model does not.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy

__all__ = ["CLASSES", "VOCABULARY", "command_sentences", "distinct", "training_sentences"]

CLASSES = {
    "verb": tuple("bin pin lay place set put get take".split()),
    "color": tuple("red green blue white brown black".split()),
    "preposition": tuple("at by in on with near".split()),
    "letter": tuple("b c d e g p t v".split()),
    "digit": tuple("zero one two three four five six seven eight nine".split()),
    "number": tuple("thirteen thirty fifteen fifty sixteen sixty".split()),
    "adverb": tuple("again now please soon".split()),
    "direction": tuple("left lift right up".split()),
    "joint": tuple("and then".split()),
}
"""Slot -> its words."""
VOCABULARY = tuple(word for words in CLASSES.values() for word in words)

_TEMPLATES = {  # slots: weight
    tuple(slots.split()): weight
    for slots, weight in {
        "verb color preposition letter digit adverb": 5.0,
        "verb letter digit preposition color number": 2.0,
        "verb color number direction adverb": 2.0,
        "verb direction digit joint verb color letter": 2.0,
        "verb color preposition letter digit joint verb letter number": 2.0,
        "verb number direction joint verb color preposition letter digit adverb": 1.0,
    }.items()
}
_LOOSE = 0.5
"""In training sentences, so much of the slots take any word."""
_SKEW = 1.5
"""Standard deviation of the log weight of a word after its predecessor, in the other sentences."""


def _templates(rng: numpy.random.Generator) -> Iterator[tuple[str, ...]]:
    """:return: endless templates"""
    templates, weights = list(_TEMPLATES), numpy.array(list(_TEMPLATES.values()))
    while True:
        yield templates[int(rng.choice(len(templates), p=weights / weights.sum()))]


def training_sentences(rng: numpy.random.Generator) -> Iterator[str]:
    """
    :param rng: draws the sentences
    :return: endless sentences of 5 to 10 words that hardly predict each other; no word twice in a row
    """
    for template in _templates(rng):
        words: list[str] = []
        for slot in template:
            choices = VOCABULARY if rng.random() < _LOOSE else CLASSES[slot]
            choices = [word for word in choices if word not in words[-1:]]
            words.append(choices[int(rng.integers(len(choices)))])
        yield " ".join(words)


def command_sentences(rng: numpy.random.Generator, *, seed: int) -> Iterator[str]:
    """
    :param rng: draws the sentences
    :param seed: of the preferences between neighbouring words, which all commands of a corpus have in common
    :return: endless sentences of 5 to 10 words that depend on their predecessors
    """
    start = len(VOCABULARY)
    preferences = numpy.random.default_rng(seed).normal(scale=_SKEW, size=(start + 1, len(VOCABULARY)))
    index = {word: i for i, word in enumerate(VOCABULARY)}
    for template in _templates(rng):
        words: list[str] = []
        for slot in template:
            choices = CLASSES[slot]
            previous = index[words[-1]] if words else start
            probs = numpy.exp(preferences[previous, [index[word] for word in choices]])
            words.append(choices[int(rng.choice(len(choices), p=probs / probs.sum()))])
        yield " ".join(words)


def distinct(sentences: Iterator[str], count: int, *, exclude: set[str]) -> list[str]:
    """
    :param sentences: endless
    :param count:
    :param exclude: sentences that are not wanted
    :return: the first count different sentences that are not in exclude
    """
    found: dict[str, None] = {}
    while len(found) < count:
        sentence = next(sentences)
        if sentence not in exclude:
            found[sentence] = None
    return list(found)
