"""
The one text normaliser: what is done to references and hypotheses, of all corpora, before words are compared.

1. Unicode NFC; typographic apostrophes become "'".
2. Lower case. LibriSpeech is distributed in upper case, TED-LIUM in lower case, and neither has punctuation:
   case carries no information in them.
3. Words are what white space separates (any kind and number of it).
4. The unknown word is left out, on both sides: ``<unk>`` in a TED-LIUM reference marks what the transcriber could not
   write down, no word that a recogniser could get right, and in a hypothesis it is no word at all. (In the place of a
   real word, an unknown word in a hypothesis thus counts as a deletion; elsewhere it does not count.)
5. Contractions are one word: TED-LIUM writes ``it 's`` and ``don 't``, LibriSpeech ``it's`` and ``don't``. Words that
   begin with an apostrophe of their own ("'em", "'cause") stay apart.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

__all__ = ["DEFAULT_NORMALISER", "TextNormaliser", "join_contractions"]

# "⁇" is what SentencePiece decodes its unknown label to.
_UNKNOWN_WORDS = frozenset({"<unk>", "[unk]", "⁇"})
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ＇`´", "'"))
_CONTRACTION = re.compile(r"(?<=[^\W_])\s+(?='(?:s|t|d|m|ll|re|ve)(?:\s|$))", re.IGNORECASE)
_PLURAL_POSSESSIVE = re.compile(r"(?<=[^\W_]s)\s+(?='(?:\s|$))", re.IGNORECASE)


def join_contractions(text: str) -> str:
    """
    :param text: e.g. "it 's the workers ' party"
    :return: e.g. "it's the workers' party"
    """
    return _PLURAL_POSSESSIVE.sub("", _CONTRACTION.sub("", text))


@dataclass(frozen=True)
class TextNormaliser:
    """See the description of the module. The defaults are what WERs are reported with."""

    lower_case: bool = True
    drop_unknown: bool = True

    def words(self, text: str) -> list[str]:
        """
        :param text: reference or hypothesis
        :return: its words
        """
        text = unicodedata.normalize("NFC", text).translate(_APOSTROPHES)
        if self.lower_case:
            text = text.lower()
        words = text.split()
        if self.drop_unknown:
            words = [word for word in words if word.lower() not in _UNKNOWN_WORDS]
        return join_contractions(" ".join(words)).split()

    def __call__(self, text: str) -> str:
        """:return: the words with single spaces between them"""
        return " ".join(self.words(text))


DEFAULT_NORMALISER = TextNormaliser()
