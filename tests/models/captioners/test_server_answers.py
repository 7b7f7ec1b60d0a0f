"""Answers of servers, whatever is in them, become a caption, a reason, or a time to wait."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.captioners.generating import Written
from models.captioners.remote.answers import refusal, retry_after_s, written
from models.captioners.remote.sending import Trouble

GOOD = b'{"choices":[{"message":{"content":"a dog"},"finish_reason":"stop"}],"usage":{"x":1}}'
ERROR = b'{"error":{"message":["x"],"code":5}}'


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        ("5", 5.0),
        ("0.5", 0.5),
        ("", None),
        ("-3", None),
        ("nan", None),
        ("inf", None),
        ("9" * 400, None),
        ("soon", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Mon, 99 Jan 99999999999 00:00:00 GMT", None),
        ("Mon, 01 Jan 2024 00:00:00 +9999999", None),
    ],
)
def test_what_retry_after_says_is_a_time_or_nothing(value: str, wait_s: float | None) -> None:
    assert retry_after_s({"retry-after": value}) == wait_s


def test_retry_after_may_be_a_date_and_milliseconds_come_first() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    wait_s = retry_after_s({"retry-after": later})
    assert wait_s is not None
    assert 50 < wait_s <= 60
    assert retry_after_s({"retry-after-ms": "250", "retry-after": "9"}) == 0.25


@given(
    st.sampled_from([GOOD, ERROR]),
    st.lists(st.tuples(st.integers(0, 90), st.integers(0, 4), st.binary(max_size=4)), max_size=6),
    st.sampled_from([301, 400, 401, 404, 429, 500, 599]),
)
@settings(max_examples=400, deadline=None)
def test_no_answer_does_anything_else(
    body: bytes, changes: list[tuple[int, int, bytes]], status: int
) -> None:
    for start, length, new in changes:
        body = body[:start] + new + body[start + length :]
    made = outcome(body)
    if isinstance(made, Written):
        made.text.encode()
    else:
        assert made.reason.isprintable()
    told = refusal(status, body, {}).reason
    assert told.isprintable()
    assert len(told) < 600


def outcome(body: bytes) -> Written | Trouble:
    try:
        return written(body)[0]
    except Trouble as trouble:
        return trouble
