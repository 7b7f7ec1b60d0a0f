"""The ladder of attempts: what is generated again, with which settings, and what is taken."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from data.errors import UsageError
from models.captioners import CAPTIONERS, CaptionRequest, CaptionResult
from models.captioners.generating import Decoding, GeneratingCaptioner, Written

LOOP = "a cat sits here and " * 12
"""`loop` and nothing else: 60 words."""
LOOP_AND_TEMPLATE = f"USER: {LOOP}"
GOOD = "A cat sits on a mat. It looks up."


class Scripted(GeneratingCaptioner):
    """Writes what the script says: of each key, attempt by attempt."""

    name = "scripted"

    def __init__(self, decoding: Decoding, **scripts: Sequence[str | Written]) -> None:
        self.decoding = decoding
        self.asked: list[tuple[Decoding, list[str]]] = []
        self._scripts = {key: list(script) for key, script in scripts.items()}

    def write(self, requests: Sequence[CaptionRequest], decoding: Decoding) -> list[Written]:
        self.asked.append((decoding, [each.key for each in requests]))
        written = [self._scripts[each.key].pop(0) for each in requests]
        return [one if isinstance(one, Written) else Written(one) for one in written]


def captioned(
    decoding: Decoding | None = None, **scripts: Sequence[str | Written]
) -> tuple[dict[str, CaptionResult], Scripted]:
    captioner = Scripted(decoding or Decoding(), **scripts)
    frames = np.zeros((1, 2, 2, 3), np.uint8)
    results = captioner.caption([CaptionRequest(frames, "Say it.", 0.0, key) for key in scripts])
    return dict(zip(scripts, results, strict=True)), captioner


def test_only_what_the_guards_object_to_is_generated_again() -> None:
    results, captioner = captioned(good=[GOOD], loop=[LOOP, GOOD], empty=["\n", LOOP, GOOD])
    assert [keys for _, keys in captioner.asked] == [
        ["good", "loop", "empty"],
        ["loop", "empty"],
        ["empty"],
    ]
    for key, attempts in (("good", 1), ("loop", 2), ("empty", 3)):
        one = results[key]
        assert (one.text, one.status, one.flags) == (GOOD, "ok", ())
        assert (one.attempts, one.taken) == (attempts, attempts)


def test_of_texts_that_are_all_bad_the_first_with_fewest_flags_is_kept_and_flagged() -> None:
    results, _ = captioned(
        first=[LOOP, LOOP_AND_TEMPLATE, LOOP], second=[LOOP_AND_TEMPLATE, LOOP, LOOP]
    )
    for key, taken in (("first", 1), ("second", 2)):
        one = results[key]
        assert (one.text, one.status, one.flags) == (LOOP.strip(), "flagged", ("loop",))
        assert (one.attempts, one.taken) == (3, taken)


def test_a_captioner_that_writes_nothing_at_all_has_failed_and_says_so() -> None:
    results, _ = captioned(a=["", "  ", "\n"])
    assert results["a"] == CaptionResult(
        "", "failed", "stop", ("empty",), attempts=3, taken=1, reason="the captioner wrote nothing"
    )


def test_what_could_not_be_asked_has_had_its_retries_elsewhere() -> None:
    results, captioner = captioned(a=[Written("", "error", reason="HTTP 503")])
    assert len(captioner.asked) == 1
    assert (results["a"].finish_reason, results["a"].reason) == ("error", "HTTP 503")


def test_a_bad_text_is_better_than_an_error_at_the_next_attempt() -> None:
    results, _ = captioned(a=[LOOP, Written("", "error", reason="HTTP 503"), LOOP])
    assert (results["a"].text, results["a"].taken) == (LOOP.strip(), 1)


def test_a_sentence_that_the_limit_cut_off_is_left_out_and_stays_in_raw() -> None:
    results, captioner = captioned(a=[Written(f"{GOOD} It then beg", "length")])
    one = results["a"]
    assert (one.text, one.raw, one.flags) == (GOOD, f"{GOOD} It then beg", ("truncated",))
    assert len(captioner.asked) == 1  # it would be cut off again


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (Decoding(seed=7), [(1.1, 0.0, 7), (1.1, 0.2, 9)]),
        (Decoding(seed=7, temperature=1.0), [(1.1, 1.0, 8), (1.1, 1.0, 9)]),
        (Decoding(seed=7, repetition_penalty=1.5), [(1.6, 0.0, 7), (1.6, 0.2, 9)]),
    ],
)
def test_each_attempt_has_settings_that_break_loops(
    first: Decoding, later: list[tuple[float, float, int]]
) -> None:
    # specs/captioners.md §4.4: a penalty of 1.1, then also a temperature of 0.2 with another seed
    _, captioner = captioned(first, a=[LOOP, LOOP, LOOP])
    assert captioner.asked[0][0] == first
    told = [(d.repetition_penalty, d.temperature, d.seed) for d, _ in captioner.asked[1:]]
    assert told == later


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "'max_new_tokens' is 0; allowed: 1 and more, a whole number"),
        ({"max_new_tokens": 1.5}, "'max_new_tokens' is 1.5"),  # no row would ever be over
        ({"max_new_tokens": True}, "'max_new_tokens' is True"),
        ({"top_k": -1}, "'top_k' is -1; allowed: 0 and more"),
        ({"top_p": float("nan")}, "'top_p' is nan; allowed: 0 to 1"),
        ({"temperature": "warm"}, "'temperature' is 'warm'"),
        ({"retries": -1}, "'retries' is -1; allowed: 0 to 100, a whole number"),
    ],
)
def test_values_that_mean_nothing_are_refused_before_anything_runs(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        CAPTIONERS.get("llava").recipe(options)


def test_captions_of_the_ladder_do_not_depend_on_the_batch() -> None:
    # Random weights write noise, of which some is tried again: other rows than in a batch of one.
    captioner: Any = CAPTIONERS.get("llava")(None, max_new_tokens=40, temperature=1.0)
    side, random = captioner.sight.side, np.random.default_rng(0)
    asked = [
        CaptionRequest(
            random.integers(0, 256, (1, side, side, 3), np.uint8), "Say it.", 0.0, str(i)
        )
        for i in range(12)
    ]
    together = captioner.caption(asked)
    assert together == [captioner.caption([each])[0] for each in asked]
    assert len({each.attempts for each in together}) > 1
