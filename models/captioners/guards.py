"""Quality guards: what is wrong with a caption, judged from its text alone.

Captioners that generate fail in known ways (specs/captioners.md §4.4): nothing but newlines,
endless loops, words of the prompt's template. A flag never changes or drops a text.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence

from models.captioners.sentences import sentences

__all__ = ["FLAGS", "GUARDS_VERSION", "caption_flags"]

GUARDS_VERSION = 2
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
    "script",
    "truncated",
)
"""Every flag that `caption_flags` can give."""

MIN_WORDS, MAX_WORDS = 3, 120

_CJK = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Signs of Chinese and Japanese, which leave no blanks between words; two make one about."""
_SIGN = re.compile(f"[{_CJK}]")
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+(?:['’][^\W{_CJK}]+)*")

_TEMPLATE = re.compile(
    r"\b(?:USER|ASSISTANT):|###|\[/?INST\]|<\||\|>|<0x[0-9A-F]{2}>"
    # Markers of LLaVA, VideoChat, Qwen-VL, InternVL, Idefics, SmolVLM, Gemma, BLIP-2.
    r"|(?i:</?(?:s|unk|pad|bos|eos|im(?:age|g)(?:_context|_soft_token)?|video|think|"
    r"(?:start|end)_of_(?:turn|image|utterance)|fake_token_around_image|global-img)>)"
    # Somebody is given the word, as in VideoChat's `###Human:`.
    r"|(?im:^\s*(?:human|user|assistant|system)\s*:)"
    # Blanks as pieces of tokenizers have them.
    r"|▁\w|\w[ĠĊ]"
)

_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|(?<!\w)['‘].*?['’](?!\w)")
"""What somebody in the picture says or what is written there is not the captioner's own word."""

_MISSING = (
    r"no (?:image|picture|photo|video|frame)s? (?:(?:is|was|has been|were|have been) )?"
    r"(?:attached|provided|included|available|uploaded|shared|given|to (?:describe|caption|see))\b"
)
_REFUSAL = re.compile(
    r"^(?:(?:sorry|unfortunately|apologies)\b[,.!]?\s*(?:but\s+)?)?(?:"
    r"as an? (?:ai|artificial|(?:large |text-based )?language model|text-based)\b"
    r"|(?:i'm|i am) (?:sorry|unable|not able|an ai|a (?:large )?language model)\b"
    r"|i (?:apologi[sz]e|cannot|can't|can not|could not|couldn't)\b"
    r"|i (?:don't|do not) (?:see|have|know)\b"
    r"|(?:it is |it's )?(?:unable|impossible|not possible) to "
    r"(?:see|view|describe|caption|determine|identify|provide|process|access|tell)\b"
    r"|please (?:provide|upload|share|attach|send)\b"
    rf"|(?:it (?:seems|looks|appears) (?:like |that )?)?(?:there (?:is|was) |i see )?{_MISSING}"
    r"|it (?:seems|looks|appears) (?:like |that )?you (?:have not|haven't|did not|didn't|forgot)\b"
    r"|the (?:image|picture|photo|video|frame) (?:is not|isn't|was not|wasn't|cannot be|could not "
    r"be|can't be|couldn't be) (?:provided|available|attached|loaded|displayed)\b"
    r")|^sorry\b",
    re.I,
)
"""At the beginning of a sentence. "A man is unable to lift the box" is a caption."""

_FOREIGN_SHARE = 0.2
"""Of letters: a name or two in another alphabet is no other language."""

_LOOP_TIMES, _SENTENCE_TIMES, _RUN_TIMES = 4, 3, 5
_GRAM_WORDS, _GRAM_SIGNS = 4, 8
_CHARACTERS, _CHARACTERS_LEAST = re.compile(r"(\S{1,8}?)\1{9,}"), 10
"""The same one to eight characters ten times without a blank: "!!!!!!!!!!", "hahaha…"."""
_COMPRESSION, _COMPRESSION_BYTES = 0.3, 240
"""40 words have 240 letters and blanks."""


def caption_flags(text: str, *, prompt: str = "", finish_reason: str = "stop") -> tuple[str, ...]:
    """The flags of one caption, in the order of `FLAGS`; none means that nothing was found.

    Args:
        text: as the captioner gave it.
        prompt: what it was asked; without it, it is not known whether the answer has its alphabet.
        finish_reason: "length" if generation ran into its limit.
    """
    if not text.strip():
        return ("empty",)
    words = _WORD.findall(text.lower())
    if not words:
        return ("punctuation",)
    signs = 0 if text.isascii() else len(_SIGN.findall(text))
    length = len(words) - signs / 2
    said = sentences(text)
    found = {
        "short": length < MIN_WORDS,
        "long": length > MAX_WORDS,
        "loop": _loops(text, said, words, _GRAM_SIGNS if 2 * signs > len(words) else _GRAM_WORDS),
        "template": bool(_TEMPLATE.search(text)),
        "refusal": _refuses(text, said),
        "echo": _echoes(text, prompt),
        "script": bool(prompt.strip()) and _foreign(text) and not _foreign(prompt),
        "truncated": finish_reason == "length",
    }
    return tuple(flag for flag in FLAGS if found.get(flag))


def _loops(text: str, said: Sequence[str], words: Sequence[str], gram: int) -> bool:
    grams = Counter(zip(*(words[i:] for i in range(gram)), strict=False))
    if grams and max(grams.values()) >= _LOOP_TIMES:
        return True
    if any(_CHARACTERS.search(each) for each in text.split() if len(each) >= _CHARACTERS_LEAST):
        return True
    if any(_run(words, size) for size in (1, 2, 3)):
        return True
    long = Counter(each.lower() for each in said if len(each.split()) > 3)
    if long and max(long.values()) >= _SENTENCE_TIMES:
        return True
    raw = text.encode()
    return len(raw) > _COMPRESSION_BYTES and len(zlib.compress(raw)) / len(raw) < _COMPRESSION


def _run(words: Sequence[str], size: int) -> bool:
    """Whether the same `size` words come often, one after the other."""
    equal = 0
    for one, later in zip(words, words[size:], strict=False):
        equal = equal + 1 if one == later else 0
        if equal == size * (_RUN_TIMES - 1):
            return True
    return False


def _refuses(text: str, said: Sequence[str]) -> bool:
    bare = text.strip(' \n"“”')
    own = _QUOTED.sub("", bare)
    return any(
        _REFUSAL.match(each.replace("’", "'")) for each in (said if own == text else sentences(own))
    )


def _echoes(text: str, prompt: str) -> bool:
    """Whether a sentence of the prompt is repeated, and not just a beginning that is continued
    ("a photo of", "a photo of a cat").
    """
    said = " ".join(text.lower().split())
    for each in sentences(prompt):
        asked = " ".join(each.lower().split())
        continued = asked[-1:].isalnum() and said.startswith(f"{asked} ")
        if asked in said and not continued:
            return True
    return False


def _foreign(text: str) -> bool:
    """Whether many letters are not Latin; what is quoted does not count."""
    if text.isascii():
        return False
    letters = [each for each in _QUOTED.sub("", text) if each.isalpha()]
    others = sum(not (ord(each) < 0x250 or 0x1E00 <= ord(each) < 0x1F00) for each in letters)
    return others > _FOREIGN_SHARE * len(letters)
