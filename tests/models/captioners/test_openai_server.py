"""Captioner `openai` against a real server on loopback that has every bad manner."""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import re
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from chat_server import MODEL, Act, Seen, answer, chat_server, level_of

from data.errors import UsageError
from models.captioners import CAPTIONERS, CaptionRequest, create
from models.captioners.openai_server import OpenAIServer
from models.captioners.remote import sending

pytest.importorskip("openai")
pytest.importorskip("aiolimiter")

REPEATED = b"a man a man a man a man a man a man a man a man"


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    # Own waits between tries, hundredths of those of users; all else is as it is used.
    monkeypatch.setattr(sending, "_FIRST_WAIT_S", 0.005)
    monkeypatch.setattr(sending, "_LONGEST_OWN_WAIT_S", 0.05)


def requests(count: int) -> list[CaptionRequest]:
    """Frames whose grey level is their number."""
    return [
        CaptionRequest(np.full((1, 24, 40, 3), i, np.uint8), "Describe it.", float(i), f"v:{i}")
        for i in range(count)
    ]


def captioner(address: str, **options: Any) -> OpenAIServer:
    made = create("openai", model=MODEL, address=address, **options)
    assert isinstance(made, OpenAIServer)
    return made


def texts(count: int) -> list[str]:
    return [f"A plain picture of level {i}." for i in range(count)]


def numbers(seen: Seen) -> list[int]:
    """The frame that each request was about, in the order they came."""
    urls = [body["messages"][-1]["content"][0]["image_url"]["url"] for body in seen.bodies]
    return [level_of(url)[0] for url in urls]


def test_every_caption_comes_to_the_frame_it_was_asked_for_over_kept_connections() -> None:
    with chat_server(lambda number, body: Act(wait_s=0.01 * (number % 5))) as (address, seen):
        made = captioner(address, concurrency=8)
        for _ in range(3):
            assert [each.text for each in made.caption(requests(40))] == texts(40)
        made.close()
        assert seen.most_at_once <= 8
        assert seen.connections <= 8, "connections are opened again"
        assert len(seen.bodies) == 120


def test_a_request_holds_the_pictures_then_the_prompt_and_nothing_that_names_the_video() -> None:
    wanted = CaptionRequest(
        np.stack([np.full((20, 30, 3), 10, np.uint8), np.full((20, 30, 3), 200, np.uint8)]),
        "What happens?",
        7.0,
        "secretcontent:7",
        "my_video",
    )
    with chat_server() as (address, seen):
        made = captioner(
            address,
            frames=2,
            picture="png",
            detail="low",
            system="Be brief.",
            extra={"min_p": 0.1},
        )
        assert made.caption([wanted])[0].text == "A plain picture of level 10 and 200."
        made.close()
    (body,) = seen.bodies
    system, user = body["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    assert [part["type"] for part in user["content"]] == ["image_url", "image_url", "text"]
    first, second, words = user["content"]
    assert [level_of(each["image_url"]["url"]) for each in (first, second)] == [
        (10, (30, 20)),
        (200, (30, 20)),
    ]
    assert first["image_url"]["detail"] == "low"
    assert words["text"] == "What happens?"
    rest = {key: value for key, value in body.items() if key != "messages"}
    assert rest == {"model": MODEL, "max_tokens": 128, "temperature": 0.0, "min_p": 0.1}
    sent = json.dumps([seen.bodies, seen.headers])
    assert "my_video" not in sent
    assert "secretcontent" not in sent


def test_tokens_and_the_model_that_served_are_recorded() -> None:
    with chat_server() as (address, _):
        made = captioner(address)
        (one,) = made.caption(requests(1))
        assert (one.prompt_tokens, one.new_tokens, one.attempts) == (7, 5, 1)
        assert made.params()["served"] == [f"{MODEL}-0001"]
        assert "127.0.0.1" not in json.dumps(made.params())
        made.close()


BAD: dict[str, Act] = {
    "too many, says when": Act(status=429, headers={"Retry-After": "0.05"}, body=b"{}"),
    "too many": Act(status=429, body=b'{"error": {"message": "slow down"}}'),
    "an error of the server": Act(status=500, body=b"Internal Server Error"),
    "a gateway's page": Act(status=502, headers={"Content-Type": "text/html"}, body=b"<html>"),
    "a page that says all is well": Act(headers={"Content-Type": "text/html"}, body=b"<html>"),
    "half a JSON": Act(body=answer("A dog.")[:-20]),
    "no choices": Act(body=b'{"choices": []}'),
    "another JSON": Act(body=b"[1, 2]"),
    "no message": Act(body=b'{"choices": [{"text": "A dog."}]}'),
    "a number for a text": Act(body=b'{"choices": [{"message": {"content": 5}}]}'),
    "an error that says 200": Act(body=b'{"error": {"message": "overloaded"}}'),
    "cut before the head": Act(cut=0),
    "cut in the body": Act(cut=40),
    "bytes that are no gzip": Act(headers={"Content-Encoding": "gzip"}, body=b"not gzip"),
    "too slow": Act(wait_s=0.6),
}


def patience(kind: str) -> float:
    """Seconds; short only where waiting too long is what is tested: the machine may be busy."""
    return 0.5 if kind == "too slow" else 30.0


@pytest.mark.parametrize("kind", BAD)
def test_a_server_that_is_bad_now_and_then_gives_all_captions(kind: str) -> None:
    def manners(number: int, body: dict[str, Any]) -> Act:
        # The very first request, and more than every third, meet the bad manner.
        return BAD[kind] if number % 3 == 0 or number % 7 == 3 else Act()

    with chat_server(manners) as (address, seen):
        made = captioner(address, concurrency=4, timeout_s=patience(kind), tries=12)
        results = made.caption(requests(12))
        made.close()
    assert [each.text for each in results] == texts(12)
    assert {each.status for each in results} == {"ok"}
    assert len(seen.bodies) > 12


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("too many", r"HTTP 429: slow down \(3 tries\)"),
        ("an error of the server", "HTTP 500: Internal Server Error"),
        ("a page that says all is well", r"the answer is not JSON \(.*\): <html>"),
        ("half a JSON", "the answer is not JSON"),
        ("no choices", "the answer holds no choices"),
        ("another JSON", "the answer is list, not a JSON object"),
        ("no message", "the answer's first choice holds no message"),
        ("a number for a text", "the answer's content is int, not text"),
        ("an error that says 200", "the server answered with an error: overloaded"),
        ("cut before the head", "the connection broke"),
        ("cut in the body", "the connection broke"),
        ("too slow", "no answer within 0.5 s"),
    ],
)
def test_a_frame_that_the_server_never_answers_is_recorded_as_failed_and_spoils_no_other(
    kind: str, reason: str
) -> None:
    def manners(number: int, body: dict[str, Any]) -> Act:
        url = body["messages"][-1]["content"][0]["image_url"]["url"]
        return BAD[kind] if level_of(url)[0] in (2, 5) else Act()

    with chat_server(manners) as (address, _):
        made = captioner(address, concurrency=4, timeout_s=patience(kind), tries=3)
        results = made.caption(requests(8))
        made.close()
    wanted = [text if i not in (2, 5) else "" for i, text in enumerate(texts(8))]
    assert [each.text for each in results] == wanted
    for lost in (results[2], results[5]):
        assert (lost.status, lost.finish_reason) == ("failed", "error")
        assert re.search(reason, lost.reason), lost.reason
        assert "(3 tries)" in lost.reason


def test_a_request_that_is_refused_is_not_sent_again() -> None:
    refused = Act(
        status=400, body=b'{"error": {"message": "picture not allowed", "code": "policy"}}'
    )

    def manners(number: int, body: dict[str, Any]) -> Act:
        url = body["messages"][-1]["content"][0]["image_url"]["url"]
        return refused if level_of(url)[0] == 1 else Act()

    with chat_server(manners) as (address, seen):
        made = captioner(address)
        results = made.caption(requests(4))
        made.close()
    assert results[1].reason == "HTTP 400: picture not allowed (policy)"
    assert [each.status for each in results] == ["ok", "failed", "ok", "ok"]
    assert numbers(seen).count(1) == 1


def test_all_wait_when_the_server_asks_to_wait() -> None:
    def manners(number: int, body: dict[str, Any]) -> Act:
        return Act(status=429, headers={"Retry-After": "0.4"}) if number == 8 else Act(wait_s=0.01)

    with chat_server(manners) as (address, seen):
        made = captioner(address, concurrency=4)
        assert [each.text for each in made.caption(requests(30))] == texts(30)
        made.close()
    after = np.array(seen.times_s[9:]) - seen.times_s[8]
    # Requests that were under way already may come, no others.
    assert np.sum(after < 0.39) <= 4
    assert after[-1] < 5


def test_a_server_that_asks_to_wait_for_an_hour_ends_the_run_at_once() -> None:
    act = Act(status=429, headers={"Retry-After": "3600"}, body=b'{"error": "daily limit"}')
    with chat_server(lambda number, body: act) as (address, seen):
        made = captioner(address)
        started = time.monotonic()
        with pytest.raises(UsageError, match=r"asks to wait 3,600 s .*daily limit.*longest_wait_s"):
            made.caption(requests(50))
        made.close()
        assert time.monotonic() - started < 5
        assert len(seen.bodies) == 1


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (Act(status=401, body=b'{"error": "bad key"}'), "HTTP 401: bad key; it wants a key"),
        (Act(status=403, body=b"{}"), "HTTP 403"),
        (
            Act(status=404, body=b'{"error": {"message": "no model tiny"}}'),
            "HTTP 404: no model tiny; the server has: tiny-llava, other",
        ),
        (Act(status=402, body=b"{}"), "the account has nothing left"),
        (
            Act(status=429, body=b'{"error": {"message": "m", "code": "insufficient_quota"}}'),
            "the account has nothing left",
        ),
        (
            Act(status=307, headers={"Location": "https://elsewhere.example/v1"}, body=b""),
            "redirects to https://elsewhere.example/v1; frames are sent only where",
        ),
    ],
)
def test_what_no_request_can_cure_ends_the_run_after_one_request(act: Act, message: str) -> None:
    with chat_server(lambda number, body: act, models=("tiny-llava", "other")) as (address, seen):
        made = captioner(address, concurrency=16)
        with pytest.raises(UsageError) as caught:
            made.caption(requests(40))
        made.close()
    assert message in str(caught.value)
    assert address in str(caught.value)
    assert len(seen.bodies) == 1


def test_a_model_that_goes_away_later_fails_its_requests_and_then_ends_the_run() -> None:
    gone = Act(status=404, body=b'{"error": {"message": "no such model"}}')

    with chat_server(lambda number, body: gone if number >= 5 else Act()) as (address, seen):
        made = captioner(address, concurrency=1, stop_after=10)
        first = made.caption(requests(10))
        assert [each.status for each in first] == ["ok"] * 5 + ["failed"] * 5
        with pytest.raises(UsageError, match=r"10 requests in a row failed.*HTTP 404: no such mod"):
            made.caption(requests(100))
        made.close()
    assert len(seen.bodies) == 15, "requests were sent after the stop"


def test_nothing_but_failures_ends_the_run_while_requests_go_one_by_one() -> None:
    with chat_server(lambda number, body: Act(status=500)) as (address, seen):
        made = captioner(address, concurrency=16, tries=2, stop_after=4)
        with pytest.raises(UsageError, match="4 requests in a row failed"):
            made.caption(requests(64))
        made.close()
    assert len(seen.bodies) == 4 * 2
    assert seen.most_at_once == 1


def test_no_failure_ends_the_run_if_all_may_fail() -> None:
    with chat_server(lambda number, body: Act(status=400)) as (address, _):
        made = captioner(address, stop_after=0)
        assert {each.status for each in made.caption(requests(30))} == {"failed"}
        made.close()


def test_no_server_at_all_is_told_at_once(unused_address: str) -> None:
    made = captioner(unused_address)
    started = time.monotonic()
    with pytest.raises(
        UsageError, match=r"no server answers at http://127.0.0.1:\d+/v1 .*start it"
    ):
        made.caption(requests(50))
    made.close()
    assert time.monotonic() - started < 5


def test_a_server_that_restarts_is_waited_for() -> None:
    with chat_server() as (address, _):
        made = captioner(address, tries=40)
        assert made.caption(requests(1))[0].status == "ok"
    port = int(address.split(":")[2].split("/")[0])
    results: list[str] = []
    work = threading.Thread(
        target=lambda: results.extend(each.text for each in made.caption(requests(6)))
    )
    work.start()
    time.sleep(0.3)
    with chat_server(port=port):
        work.join(timeout=20)
        made.close()
    assert results == texts(6)


def test_the_number_of_requests_a_minute_is_kept_to_with_second_tries_counted() -> None:
    def manners(number: int, body: dict[str, Any]) -> Act:
        return Act(status=500) if number % 4 == 1 else Act()

    with chat_server(manners) as (address, seen):
        made = captioner(address, requests_per_minute=1200, concurrency=8)
        assert [each.text for each in made.caption(requests(20))] == texts(20)
        made.close()
    times = np.array(seen.times_s) - seen.times_s[0]
    assert len(times) > 24
    # 20 a second: the k-th not before k / 20 s, but for the time that a request takes to arrive.
    assert (times >= np.arange(len(times)) / 20 - 0.06).all()


def test_a_loop_is_asked_for_again_with_the_words_of_the_dialect() -> None:
    def manners(number: int, body: dict[str, Any]) -> Act:
        return Act(body=answer(REPEATED.decode())) if body["temperature"] == 0 else Act()

    sent = {}
    for dialect in ("vllm", "llama.cpp", "openai"):
        with chat_server(manners) as (address, seen):
            made = captioner(address, dialect=dialect)
            (one,) = made.caption(requests(1))
            made.close()
        assert (one.text, one.attempts) == ("A plain picture of level 0.", 3)
        fields = [{k: v for k, v in body.items() if k != "messages"} for body in seen.bodies]
        sent[dialect] = fields
    assert [each.get("repetition_penalty") for each in sent["vllm"]] == [None, 1.1, 1.1]
    assert [each.get("repeat_penalty") for each in sent["llama.cpp"]] == [None, 1.1, 1.1]
    assert [each.get("frequency_penalty") for each in sent["openai"]] == [None, 0.5, 0.5]
    assert all("max_completion_tokens" in each for each in sent["openai"])
    assert [each["temperature"] for each in sent["vllm"]] == [0, 0, 0.2]
    assert "seed" not in sent["vllm"][0]
    assert 0 <= sent["vllm"][2]["seed"] < 2**31


def test_models_that_refuse_a_temperature_are_told_none() -> None:
    with chat_server() as (address, seen):
        made = captioner(address, dialect="openai-reasoning", max_new_tokens=900)
        made.caption(requests(1))
        made.close()
    rest = {key: value for key, value in seen.bodies[0].items() if key != "messages"}
    assert rest == {"model": MODEL, "max_completion_tokens": 900}


def test_the_seed_of_a_request_does_not_depend_on_the_batch() -> None:
    with chat_server() as (address, seen):
        made = captioner(address, temperature=0.7, top_p=0.9, top_k=20, seed=3)
        made.caption(requests(6))
        made.caption(requests(6)[4:])
        made.close()
    by_frame: dict[int, set[int]] = {}
    for frame, body in zip(numbers(seen), seen.bodies, strict=True):
        by_frame.setdefault(frame, set()).add(body["seed"])
        assert (body["temperature"], body["top_p"], body["top_k"]) == (0.7, 0.9, 20)
    assert all(len(seeds) == 1 for seeds in by_frame.values())
    assert len(set.union(*by_frame.values())) == 6


@pytest.mark.parametrize(
    ("choice", "text", "flags"),
    [
        ({"finish_reason": "length"}, "A dog runs.", ("truncated",)),
        ({"message": {"content": None, "refusal": "I'm sorry, I cannot say that."}}, None, None),
        (
            {"message": {"content": [{"type": "text", "text": "A dog "}, {"text": "runs."}]}},
            "A dog runs.",
            (),
        ),
    ],
)
def test_unusual_answers_are_read(
    choice: dict[str, Any], text: str | None, flags: tuple[str, ...] | None
) -> None:
    body = answer("A dog runs. And the", **choice)
    with chat_server(lambda number, _: Act(body=body)) as (address, _):
        made = captioner(address, retries=0)
        (one,) = made.caption(requests(1))
        made.close()
    assert one.text == (text or "I'm sorry, I cannot say that.")
    assert one.flags == (("refusal",) if flags is None else flags)


def test_a_caption_that_the_server_filters_is_failed_and_says_so() -> None:
    body = answer("", finish_reason="content_filter")
    with chat_server(lambda number, _: Act(body=body)) as (address, seen):
        made = captioner(address)
        (one,) = made.caption(requests(1))
        made.close()
    assert (one.status, one.reason) == (
        "failed",
        "the server's content filter held the caption back",
    )
    assert len(seen.bodies) == 1


def test_an_answer_without_end_is_not_read_to_its_end() -> None:
    body = b'{"choices": "' + b"x" * (5 * 2**20)
    with chat_server(lambda number, _: Act(body=body)) as (address, _):
        made = captioner(address, tries=1)
        assert "larger than 4,194,304 bytes" in made.caption(requests(1))[0].reason
        made.close()


def test_half_a_surrogate_pair_becomes_a_text_that_can_be_stored() -> None:
    with chat_server(lambda number, _: Act(body=answer("A smile \ud83d on a face."))) as (
        address,
        _,
    ):
        made = captioner(address)
        assert made.caption(requests(1))[0].text == "A smile ? on a face."
        made.close()


# --- keys


KEY = "sk-thisisthekey12345"


def test_a_key_is_sent_only_where_it_was_named_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai-itself")
    monkeypatch.setenv("OPENAI_ORG_ID", "my-organisation")
    monkeypatch.setenv("OPENAI_BASE_URL", "https://elsewhere.example/v1")
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")
    with chat_server() as (address, seen):
        for options in ({}, {"key_env": "MY_KEY"}):
            made = captioner(address, **options)
            assert made.caption(requests(1))[0].status == "ok"
            made.close()
    first, second = ({k.lower(): v for k, v in each.items()} for each in seen.headers)
    assert "sk-of-openai" not in json.dumps(seen.headers)
    assert "my-organisation" not in json.dumps(seen.headers)
    assert first["authorization"] == "Bearer none"
    assert second["authorization"] == f"Bearer {KEY}"


def test_a_key_stands_in_no_message_record_recipe_or_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key = "a_key_like_no_other-" + "7" * 20
    monkeypatch.setenv("MY_KEY", key)
    echo = json.dumps({"error": {"message": "x" * 190 + f" you sent {key}"}}).encode()
    shown = []
    with chat_server(lambda number, body: Act(status=400, body=echo)) as (address, _):
        made = captioner(address, key_env="MY_KEY")
        shown.append(made.caption(requests(1))[0].reason)
        shown += [json.dumps(made.params()), repr(vars(made)), str(made)]
        shown.append(json.dumps(OpenAIServer.recipe({"model": MODEL, "key_env": "MY_KEY"})))
        made.close()
    with chat_server(lambda number, body: Act(status=401, body=echo)) as (address, _):
        made = captioner(address, key_env="MY_KEY")
        with pytest.raises(UsageError) as caught:
            made.caption(requests(1))
        made.close()
        shown += [str(caught.value), repr(caught.value.__cause__)]
    shown.append(caplog.text)
    assert all(key[:12] not in each for each in shown)
    assert "MY_KEY" not in shown[4]


def test_what_looks_like_a_key_in_an_error_is_not_shown() -> None:
    echo = b'{"error": {"message": "Incorrect API key provided: sk-abcdef1234567890."}}'
    with chat_server(lambda number, body: Act(status=400, body=echo)) as (address, _):
        made = captioner(address)
        assert made.caption(requests(1))[0].reason == "HTTP 400: Incorrect API key provided: ***."
        made.close()


def test_a_missing_key_names_the_variable_and_a_key_given_for_a_name_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UsageError, match="OPENAI_API_KEY is not set"):
        captioner("https://api.openai.com/v1", dialect="openai")
    with pytest.raises(UsageError) as caught:
        captioner("http://127.0.0.1:1/v1", key_env="sk-abc-123456")
    assert "sk-abc" not in str(caught.value)
    monkeypatch.setenv("MY_KEY", "two words")
    with pytest.raises(UsageError, match="MY_KEY holds characters that no key has") as caught:
        captioner("http://127.0.0.1:1/v1", key_env="MY_KEY")
    assert "two words" not in str(caught.value)


# --- before anything is sent


def test_the_check_of_a_machine_finds_a_server_that_is_not_there_and_a_key_that_is_refused(
    unused_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with chat_server() as (address, seen):
        OpenAIServer.check(None, {"model": MODEL, "address": address})
        assert not seen.bodies, "a check costs no caption"
    with pytest.raises(UsageError, match="no server answers at"):
        OpenAIServer.check(None, {"model": MODEL, "address": unused_address})
    with (
        chat_server(get_status=401) as (address, _),
        pytest.raises(UsageError, match=r"HTTP 401.*wants a key"),
    ):
        OpenAIServer.check(None, {"model": MODEL, "address": address})
    for status in (403, 404, 500):  # no list of models, and no reason to stop
        with chat_server(get_status=status) as (address, _):
            OpenAIServer.check(None, {"model": MODEL, "address": address})


def test_the_recipe_holds_what_decides_the_text_and_nothing_of_the_machine() -> None:
    one = OpenAIServer.recipe({"model": MODEL, "address": "http://a:1/v1", "concurrency": 3})
    two = OpenAIServer.recipe({"model": MODEL, "address": "http://b:1/v1", "tries": 9})
    assert one == two
    text = json.dumps(one)
    assert "address" not in text
    assert "key" not in text
    for change in (
        {"revision": "awq"},
        {"system": "Be brief."},
        {"picture": "png"},
        {"side": 336},
        {"dialect": "llama.cpp"},
        {"extra": {"min_p": 0.1}},
        {"max_new_tokens": 60},
        {"top_k": 5},
    ):
        assert OpenAIServer.recipe({"model": MODEL, **change}) != one
    assert CAPTIONERS.get("openai") is OpenAIServer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": ""}, "model is missing"),
        ({"dialect": "vlm"}, "dialect is 'vlm'; did you mean 'vllm'"),
        ({"picture": "bmp"}, "picture is 'bmp'"),
        ({"fit": "padding"}, "did you mean 'padded'"),
        ({"quality": 0}, "quality is 0; allowed: a whole number from 1 to 100"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"temperature": -1}, "temperature is -1"),
        ({"timeout_s": 0}, "timeout_s is 0"),
        ({"background": [0, 0]}, "background is"),
        ({"extra": {"api_key": "x"}}, "looks like a secret"),
        ({"extra": {"provider": [{"accessToken": "x"}]}}, "names 'accessToken', which looks like"),
        ({"extra": {"max_tokens": 5}}, "extra names 'max_tokens'"),
        ({"extra": {"messages": []}}, "extra names 'messages'"),
        ({"extra": [1]}, "extra takes fields"),
        ({"address": "127.0.0.1:8000/v1"}, "not the http or https address"),
        ({"address": "http://me:pw@host/v1"}, "must not contain a name, a password"),
        ({"address": "http://host/v1?key=5"}, "must not contain"),
        ({"address": "https://api.openai.com/v1"}, "set dialect: openai"),
        ({"dialect": "openai", "repetition_penalty": 1.2}, "repetition_penalty is unknown"),
        ({"dialect": "openai", "top_k": 4}, "top_k is unknown"),
        ({"dialect": "openai-reasoning", "temperature": 0.5}, "refuse temperature"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_runs(
    options: dict[str, Any], message: str
) -> None:
    given = {"model": MODEL, **options}
    with pytest.raises(UsageError, match=message) as caught:
        OpenAIServer.recipe(given)
    assert "pw" not in str(caught.value)
    with pytest.raises(UsageError, match=message):
        create("openai", **given)


def test_a_checkpoint_is_refused() -> None:
    with pytest.raises(UsageError, match="the server has the weights"):
        create("openai", "weights.pt", model=MODEL)


@pytest.mark.parametrize(
    ("address", "notice"),
    [
        ("http://127.0.0.1:8000/v1", ""),
        ("http://localhost:8000/v1", ""),
        ("http://[::1]:8000/v1", ""),
        ("https://api.example.com/v1", "sent to api.example.com"),
        ("http://gpu7:8000/v1", "sent to gpu7 over a connection that is not encrypted"),
    ],
)
def test_a_user_is_told_when_frames_leave_the_machine(address: str, notice: str) -> None:
    told = OpenAIServer.notice({"model": MODEL, "address": address})
    assert told.endswith(notice)
    assert bool(told) == bool(notice)


def test_it_works_where_a_loop_runs_already() -> None:
    import asyncio

    async def notebook() -> list[str]:
        made = captioner(address)
        try:
            return [each.text for each in made.caption(requests(3))]
        finally:
            made.close()

    with chat_server() as (address, _):
        assert asyncio.run(notebook()) == texts(3)


def test_a_captioner_that_was_closed_opens_again_and_its_thread_ends() -> None:
    before = threading.active_count()
    with chat_server() as (address, _):
        made = captioner(address)
        for _ in range(2):
            assert made.caption(requests(1))[0].status == "ok"
            made.close()
        made.close()
    assert threading.active_count() == before


@pytest.fixture
def unused_address() -> Iterator[str]:
    """Where nobody listens: bound, so that nobody else takes it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


HEAD = "HTTP/1.1 {} X\r\nContent-Type: application/json\r\n"
PACKED = gzip.compress(b" " * 50_000_000)
HOSTILE = {
    "an error without end": (HEAD.format(500).encode() + b"\r\n", b"x" * 1_000_000),
    "an answer without end": (HEAD.format(200).encode() + b"\r\n", b" " * 1_000_000),
    "an error that unpacks to much": (
        HEAD.format(500).encode() + b"Content-Encoding: gzip\r\n\r\n" + PACKED,
        b" ",
    ),
    "a head without end": (HEAD.format(200).encode(), b"X-A: b\r\n"),
    "a body in drops": (HEAD.format(200).encode() + b"Content-Length: 9999\r\n\r\n", b" "),
}


@contextmanager
def hostile_server(first: bytes, then: bytes, post: bytes = b"") -> Iterator[str]:
    """Answers with `first`, then with `then` again and again, small pieces slowly; `post`: the
    whole answer to a POST.
    """

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                asked = self.request.recv(1 << 20)
                if post and asked.startswith(b"POST"):
                    self.request.sendall(post)
                    return
                self.request.sendall(first)
                while then:
                    self.request.sendall(then)
                    time.sleep(0.0 if len(then) > 1000 else 0.02)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_answer_takes_more_memory_or_time_than_a_caption_may(kind: str) -> None:
    with hostile_server(*HOSTILE[kind]) as address:
        options = {"model": MODEL, "address": address, "timeout_s": 0.5}
        started = time.monotonic()
        made = captioner(address, timeout_s=0.5, tries=1)
        (result,) = made.caption(requests(1))
        made.close()
        with pytest.raises(UsageError, match="captioner openai"):
            OpenAIServer.check(None, options)
        assert time.monotonic() - started < 5
        assert re.search("larger than 4,194,304|is compressed|no answer within", result.reason)


def test_fields_that_only_sound_like_secrets_are_sent() -> None:
    extra = {"stop_token_ids": [2], "skip_special_tokens": True, "keyframes": 1}
    with chat_server() as (address, seen):
        made = captioner(address, extra=extra)
        assert made.caption(requests(1))[0].status == "ok"
        made.close()
    assert extra.items() <= seen.bodies[0].items()


def test_headers_of_ones_own_are_blotted_out_where_a_server_repeats_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Gateway: gatewaysecret77\nX-Team: ab")
    body = json.dumps({"error": {"message": "not with gatewaysecret77, team ab"}}).encode()
    with chat_server(lambda number, asked: Act(status=400, body=body)) as (address, seen):
        made = captioner(address)
        (result,) = made.caption(requests(1))
        made.close()
    sent = {name.lower(): value for name, value in seen.headers[0].items()}
    assert sent["x-gateway"] == "gatewaysecret77"
    assert sent["accept-encoding"] == "identity"
    assert result.reason == "HTTP 400: not with ***, team ab"


def test_a_list_of_models_that_never_ends_holds_no_message_up() -> None:
    unknown = HEAD.format(404).encode() + b"Content-Length: 0\r\n\r\n"
    with hostile_server(*HOSTILE["a body in drops"], post=unknown) as address:
        made = captioner(address, timeout_s=0.5)
        with pytest.raises(UsageError, match="HTTP 404"):
            made.caption(requests(1))
        made.close()
