"""Quality guards: what is wrong with a caption, judged from its text alone.

Captioners that generate fail in known ways (specs/captioners.md §4.4): nothing but newlines,
endless loops, words of the prompt's template. A flag never changes or drops a text.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter

__all__ = ["FLAGS", "GUARDS_VERSION", "caption_flags"]

GUARDS_VERSION = 1
"""In recipes: other guards generate other captions again."""

FLAGS = (
    "empty",
    "punctuation",
    "short",
    "long",
    "loop",
    "template",
    "refusal",
    "echo",
    "truncated",
)
"""Every flag that `caption_flags` can give."""

MIN_WORDS, MAX_WORDS = 3, 120
_LOOP_N, _LOOP_TIMES = 4, 4
_COMPRESSION, _COMPRESSION_WORDS = 0.3, 40
_TEMPLATE = re.compile(r"USER:|ASSISTANT:|###|<image>|</?s>|\[/?INST\]|<\|")
_REFUSAL = re.compile(r"\b(as an ai|i'?m sorry|i am sorry|i cannot|i can'?t|unable to)\b", re.I)


def caption_flags(text: str, *, prompt: str = "", finish_reason: str = "stop") -> tuple[str, ...]:
    """The flags of one caption, in the order of `FLAGS`; none means that nothing was found.

    Args:
        text: as the captioner gave it.
        prompt: what it was asked.
        finish_reason: "length" if generation ran into its limit.
    """
    if not text.strip():
        return ("empty",)
    words = re.findall(r"\w+(?:['’]\w+)*", text.lower())
    if not words:
        return ("punctuation",)
    found = {
        "short": len(words) < MIN_WORDS,
        "long": len(words) > MAX_WORDS,
        "loop": _loops(words, text),
        "template": bool(_TEMPLATE.search(text)),
        "refusal": bool(_REFUSAL.search(text)),
        "echo": bool(prompt.strip()) and prompt.strip().lower() in text.lower(),
        "truncated": finish_reason == "length",
    }
    return tuple(flag for flag in FLAGS if found.get(flag))


def _loops(words: list[str], text: str) -> bool:
    grams = Counter(zip(*(words[i:] for i in range(_LOOP_N)), strict=False))
    if grams and max(grams.values()) >= _LOOP_TIMES:
        return True
    raw = text.encode()
    return len(words) > _COMPRESSION_WORDS and len(zlib.compress(raw)) / len(raw) < _COMPRESSION
