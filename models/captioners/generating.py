"""Captioners that generate text: decoding settings, quality guards, and the ladder of retries.

A caption that the guards object to is generated again, with settings that break loops; what is
still wrong after the last attempt is kept and flagged. Nothing is dropped, nothing replaced.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from data.errors import UsageError
from models.captioners.base import Captioner, CaptionRequest, CaptionResult, Status
from models.captioners.guards import GUARDS_VERSION, caption_flags
from models.captioners.sentences import whole_sentences

if TYPE_CHECKING:
    from models.weights import Checkpoint

__all__ = ["Decoding", "GeneratingCaptioner", "Written", "check_decoding", "judged"]

_ALLOWED: Mapping[str, tuple[type[int] | type[float], float, float]] = {
    "max_new_tokens": (int, 1, math.inf),
    "temperature": (float, 0.0, 100.0),
    "top_p": (float, 0.0, 1.0),
    "repetition_penalty": (float, 0.01, 100.0),
    "top_k": (int, 0, math.inf),
    "retries": (int, 0, 100),
}


def check_decoding(options: Mapping[str, Any]) -> None:
    """Values of options that every captioner that generates has, as far as they are given.

    Raises:
        UsageError: a value that means nothing.
    """
    for name, (kind, least, most) in _ALLOWED.items():
        value = options.get(name, least)
        number = type(value) is int or (kind is float and isinstance(value, float))
        if not number or not least <= value <= most:
            raise UsageError(
                f"option '{name}' is {value!r}; allowed: "
                + (f"{least:g} to {most:g}" if math.isfinite(most) else f"{least:g} and more")
                + (", a whole number" if kind is int else "")
            )


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen.

    Args:
        max_new_tokens: longest caption; one that is cut there is flagged `truncated`.
        temperature: 0 takes the likeliest token (greedy).
        top_p: smallest set of likeliest tokens whose probabilities reach this is sampled from.
        repetition_penalty: logits of tokens that were generated already are divided by this if
            positive, multiplied if negative (as in transformers); 1 changes nothing.
        seed: of sampling, together with the key of the request.
        top_k: only so many of the likeliest tokens are sampled from; 0: all. transformers samples
            from 50 where nothing is said, and so did the public code that says nothing.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    top_k: int = 0

    def __post_init__(self) -> None:
        """These are options of users, too.

        Raises:
            UsageError: a value that means nothing.
        """
        check_decoding(vars(self))

    def attempt(self, number: int) -> Decoding:
        """The settings of attempt 0, 1, 2, …: first a penalty for repetition, then also sampling
        with another seed. Sampling always takes another seed.
        """
        if number == 0:
            return self
        sampled = number > 1 or self.temperature > 0
        return replace(
            self,
            # More than before, or a greedy text would come out the same.
            repetition_penalty=max(self.repetition_penalty + 0.1, 1.1),
            temperature=max(self.temperature, 0.2) if number > 1 else self.temperature,
            seed=self.seed + number if sampled else self.seed,
        )


@dataclass(frozen=True)
class Written:
    """What one generation gave.

    Args:
        text: as it was generated, without markers of the end.
        finish_reason: "stop", "length", or "error".
        prompt_tokens: tokens that went in, those of pictures included.
        new_tokens: tokens that came out.
        reason: why there is no text, if `finish_reason` is "error".
    """

    text: str
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    new_tokens: int = 0
    reason: str = ""


class GeneratingCaptioner(Captioner):
    """A captioner that writes tokens. Subclasses implement `write`.

    Attributes:
        decoding: settings of the first attempt.
        retries: how often a caption that the guards object to is generated again.
    """

    WORTH_RETRY: ClassVar[frozenset[str]] = frozenset(
        {"empty", "punctuation", "loop", "template", "refusal", "echo", "script"}
    )
    """Flags that another attempt may cure; a text that is cut or short would be so again."""

    decoding: Decoding
    retries: int = 2

    @classmethod
    def recipe(
        cls, options: Mapping[str, Any], checkpoint: Checkpoint | None = None
    ) -> dict[str, Any]:
        """Also the version of the guards, which decide what is generated again.

        Raises:
            UsageError: see `check_decoding`.
        """
        check_decoding(options)
        return {**super().recipe(options, checkpoint), "guards": GUARDS_VERSION}

    @abstractmethod
    def write(self, requests: Sequence[CaptionRequest], decoding: Decoding) -> list[Written]:
        """One generation per request, in order, whatever else is in the call."""

    def params(self) -> dict[str, Any]:
        """See `Captioner.params`."""
        return {"captioner": self.name, "decoding": asdict(self.decoding), "retries": self.retries}

    def caption(self, requests: Sequence[CaptionRequest]) -> list[CaptionResult]:
        """See `Captioner.caption`; of several attempts the first one with fewest flags is taken."""
        best: list[CaptionResult | None] = [None] * len(requests)
        open_ = list(range(len(requests)))
        for attempt in range(self.retries + 1):
            if not open_:
                break
            written = self.write([requests[i] for i in open_], self.decoding.attempt(attempt))
            if len(written) != len(open_):
                raise ValueError(
                    f"captioner {self.name} wrote {len(written)} texts for {len(open_)} requests"
                )
            for i, one in zip(open_, written, strict=True):
                made = judged(one, requests[i].prompt, attempt + 1)
                best[i] = _better(best[i], made)
            open_ = [i for i in open_ if self._worth_another(best[i])]
        return [each for each in best if each is not None]

    def _worth_another(self, result: CaptionResult | None) -> bool:
        # An error has no flags: it had its retries where it happened, at the server.
        return result is not None and bool(self.WORTH_RETRY & set(result.flags))


def judged(written: Written, prompt: str, attempts: int) -> CaptionResult:
    """One generation as a result: stripped, cut to whole sentences, with its flags."""
    made = CaptionResult(
        "",
        "failed",
        written.finish_reason,
        prompt_tokens=written.prompt_tokens,
        new_tokens=written.new_tokens,
        attempts=attempts,
        taken=attempts,
        raw=written.text,
    )
    if written.finish_reason == "error":
        return replace(made, reason=written.reason or "no reason given")
    whole = written.text.strip()
    flags = caption_flags(whole, prompt=prompt, finish_reason=written.finish_reason)
    text = whole_sentences(whole) if written.finish_reason == "length" else whole
    if not text:
        return replace(made, flags=flags, reason="the captioner wrote nothing")
    status: Status = "flagged" if flags else "ok"
    raw = "" if text == written.text else written.text
    return replace(made, text=text, status=status, flags=flags, raw=raw)


def _better(before: CaptionResult | None, now: CaptionResult) -> CaptionResult:
    if before is None:
        return now
    kept = now if _badness(now) < _badness(before) else before
    return replace(kept, attempts=now.attempts)


def _badness(result: CaptionResult) -> tuple[bool, int]:
    return result.status == "failed", len(result.flags)
