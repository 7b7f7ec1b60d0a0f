"""Where sentences end, for captions that the limit of tokens cut off."""

from __future__ import annotations

import re
from itertools import pairwise

__all__ = ["sentences", "whole_sentences"]

_END = re.compile(r"[.!?…]+[\"'”’»)\]*_]*(?=\s|$)|[。！？]+[”’」』）]*")
"""Marks that may end a sentence, with quotes, brackets and Markdown behind them."""

_NEVER = re.compile(
    r"(?:^|[\s(\"“‘])(?:mr|mrs|ms|dr|prof|st|mt|gen|sgt|capt|lt|col|rev|gov|sen|vs|e\.g|i\.e|cf|"
    r"approx|ca)$",
    re.IGNORECASE,
)
"""Before these the sentence goes on, even with a capital letter ("Dr. Smith")."""

_NUMBERED = re.compile(r"(?:^|[\s(])(?:no|nos|fig|vol|ch|pp?)$", re.IGNORECASE)
"""The same, before a number ("No. 5")."""

_SELDOM = re.compile(
    r"(?:^|[\s(\"“‘])(?:etc|inc|ltd|co|corp|jr|sr|dept|ft|a\.m|p\.m|u\.s|u\.k|u\.n)$", re.IGNORECASE
)
"""Before these it goes on, unless a capital letter or nothing follows ("at 5 p.m. He")."""

_LOOK_BACK = 16
"""Characters: more than the longest of these has."""

_INITIAL = re.compile(r"(?:^|\s)[A-Z]$")
_NUMBER_OF_A_LIST = re.compile(r"(?:^|\n|[.!?:]\s+)\d{1,2}$")


def sentences(text: str) -> list[str]:
    """The sentences of a text, the last one perhaps without its end."""
    starts = [0, *_ends(text), len(text)]
    cut = (text[a:b].strip() for a, b in pairwise(starts))
    return [each for each in cut if each]


def whole_sentences(text: str) -> str:
    """Up to the last end of a sentence; all of it if there is none."""
    ends = _ends(text)
    return text[: ends[-1]] if ends else text


def _ends(text: str) -> list[int]:
    return [found.end() for found in _END.finditer(text) if _is_end(text, found)]


def _is_end(text: str, found: re.Match[str]) -> bool:
    if found.group() != ".":  # only a lone full stop has other uses
        return True
    start, end = found.span()
    before = text[max(0, start - _LOOK_BACK) : start]
    after = text[end : end + _LOOK_BACK].lstrip()
    if _NEVER.search(before) or _INITIAL.search(before) or _NUMBER_OF_A_LIST.search(before):
        return False
    if after[:1].isdigit() and _NUMBERED.search(before):
        return False
    return not (_SELDOM.search(before) and after[:1].islower())
