"""Words as word vectors know them: lower case, cut by the rules of the Penn Treebank.

EMB and VSLNet (`util/data_gen.py`), whose GloVe input TEA follows, call nltk's `word_tokenize` on
the lower-cased sentence. That needs nltk, and a download for the ends of sentences. These are the
same rules without either: the same words for each of 63,578 queries of the field's data sets
(tests/golden/treebank).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["treebank_words"]

_CLOSERS = r"""[\])}>"'»”’ ]*$"""

_FINAL_STOP = re.compile(rf"(?<=[^.])\.(?={_CLOSERS})")
"""The full stop of the sentence; those of abbreviations inside stay with their word."""

_OPENING_QUOTE = re.compile(r'(?:^|(?<=[\s(\[{<]))"')

_SIGN = re.compile(r"\.{2,}|--|''|`+|[:,](?!\d)|[;@#$%&?!*\[\](){}<>«»“”‘’„]")
"""What is a token of its own wherever it is; "," and ":" not inside of a number."""

_ENCLITIC = re.compile(r"(?i)(?<=[^'])('[smd]|'|'ll|'re|'ve|n't)$")
_LEADING_QUOTE = re.compile(r"'(?=\w)(?!(?:re|ve|ll|[mtsdn])\b)")

_JOINED = {
    "cannot": ("can", "not"),
    "d'ye": ("d", "'ye"),
    "gimme": ("gim", "me"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "lemme": ("lem", "me"),
    "more'n": ("more", "'n"),
    "wanna": ("wan", "na"),
}


def treebank_words(sentence: str) -> list[str]:
    """The tokens of one sentence in lower case, signs included.

    "The dog's red; he can't jump." gives the dog 's red ; he ca n't jump .
    """
    text = _OPENING_QUOTE.sub(" `` ", sentence.strip().lower())
    text = _FINAL_STOP.sub(" . ", text.replace('"', " '' "))
    return [word for chunk in text.split() for word in _cut(chunk)]


def _cut(chunk: str) -> Iterator[str]:
    """Signs and the words between them, of text without blanks."""
    end = 0
    for sign in _SIGN.finditer(chunk):
        yield from _words(chunk[end : sign.start()])
        yield sign.group()
        end = sign.end()
    yield from _words(chunk[end:])


def _words(word: str) -> Iterator[str]:
    """One word without signs, its ending apart: dog 's, do n't."""
    if word in _JOINED:
        yield from _JOINED[word]
        return
    if _LEADING_QUOTE.match(word):
        yield "'"
        word = word[1:]
    ending = _ENCLITIC.search(word)
    stem = word[: ending.start()] if ending else word
    if stem:
        yield stem
    if ending:
        yield ending.group()
