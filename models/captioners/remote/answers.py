"""What a server of OpenAI's protocol answers, read with suspicion: a proxy may have written it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from data.errors import some
from data.foreign import strict_json
from models.captioners.generating import Written
from models.captioners.remote.sending import Trouble
from models.captioners.thoughts import after_thinking

__all__ = ["MOST_BYTES", "model_names", "refusal", "retry_after_s", "said", "written"]

MOST_BYTES = 4 * 2**20
"""Of an answer; one caption needs under 10 KiB."""

_SHOWN = 200
_KEY = re.compile(r"\b(sk|pk|key|api)[-_][A-Za-z0-9*_-]{8,}", re.IGNORECASE)


def written(body: bytes) -> tuple[Written, str]:
    """The caption in an answer, and which model the server says it used.

    Raises:
        Trouble: there is none: not JSON, no choices, an error in an answer that says it is none.
    """
    answer = _object(body)
    if "choices" not in answer and answer.get("error"):
        raise Trouble(f"the server answered with an error: {_message(answer)}", "again")
    choice = _first_choice(answer)
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    finish = choice.get("finish_reason")
    if finish == "content_filter":
        return Written("", "error", reason="the server's content filter held the caption back"), ""
    one = Written(
        # A server that is not told how its model thinks sends the thoughts, too.
        text=after_thinking(_text(choice)),
        finish_reason="length" if finish in ("length", "max_tokens") else "stop",
        prompt_tokens=_count(usage.get("prompt_tokens")),
        new_tokens=_count(usage.get("completion_tokens")),
    )
    model = answer.get("model")
    return one, model[:128] if isinstance(model, str) else ""


def model_names(body: bytes) -> str:
    """The models in an answer of `/models`, for a message; "" if there are none."""
    try:
        data = _object(body[:MOST_BYTES]).get("data")
    except Trouble:
        return ""
    rows = [row for row in data if isinstance(row, dict)] if isinstance(data, list) else []
    return some([_plain(str(row.get("id", ""))) for row in rows])


def refusal(status: int, body: bytes, headers: Mapping[str, str], known: str = "") -> Trouble:
    """An answer with a status that is no success.

    Args:
        status: of HTTP.
        body: of the answer.
        headers: of the answer; names in any case, as http libraries have them.
        known: models that the server has, if it does not know the one that was asked for.
    """
    message = said(body)
    reason = f"HTTP {status}" + (f": {message}" if message else "")
    reason += f"; the server has: {known}" if known else ""
    wait_s = retry_after_s(headers)
    if 300 <= status < 400:
        to = headers.get("location", "elsewhere")
        return Trouble(
            f"{reason}: it redirects to {_plain(to)}; frames are sent only where `address` says",
            "user",
        )
    if status == 401:
        return Trouble(
            f"{reason}; it wants a key, or another one: put it into an environment variable and "
            "name that in key_env",
            "user",
        )
    if status == 402 or (status == 429 and "insufficient_quota" in message):
        return Trouble(f"{reason}; the account has nothing left", "user")
    if status in (408, 409, 425, 429) or status >= 500:
        return Trouble(reason, "again", wait_s=wait_s)
    # 403 and 404 are about key, model and path before the first answer; later a gateway that
    # moderates, or a picture that is not liked, says 403 as well.
    return Trouble(reason, "other", user_at_first=status in (403, 404, 405))


def said(body: bytes) -> str:
    """What an error says, in one short line without keys."""
    try:
        answer = strict_json(body[:MOST_BYTES])
    except ValueError:
        return _plain(body[: 4 * _SHOWN].decode(errors="replace"))
    return _message(answer) if isinstance(answer, dict) else _plain(str(answer))


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that `Retry-After` (seconds or a date) or `retry-after-ms` asks for; None without."""
    for name, per_second in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            wait_s = float(headers.get(name, "")) / per_second
        except ValueError:
            continue
        return wait_s if math.isfinite(wait_s) and wait_s >= 0 else None
    try:
        until = parsedate_to_datetime(headers.get("retry-after", ""))
    except (ValueError, OverflowError):  # a day 99, a year of eleven digits
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


def _object(body: bytes) -> dict[str, Any]:
    try:
        answer = strict_json(body)
    except ValueError as error:
        start = _plain(body[:_SHOWN].decode(errors="replace"))
        raise Trouble(f"the answer is not JSON ({error}): {start}", "again") from None
    if not isinstance(answer, dict):
        raise Trouble(f"the answer is {type(answer).__name__}, not a JSON object", "again")
    return answer


def _first_choice(answer: dict[str, Any]) -> dict[str, Any]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        raise Trouble("the answer holds no choices", "again")
    choice = choices[0]
    if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
        raise Trouble("the answer's first choice holds no message", "again")
    return choice


def _text(choice: dict[str, Any]) -> str:
    """Words of a message; "" where it has none, which the guards judge."""
    message = choice["message"]
    content = message.get("content")
    if isinstance(content, list):  # parts, as some servers have them
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str))
    if content is None:
        content = message.get("refusal") or ""
    if not isinstance(content, str):
        raise Trouble(f"the answer's content is {type(content).__name__}, not text", "again")
    return content.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be stored


def _message(answer: dict[str, Any]) -> str:
    """`error.message` and `error.code` of OpenAI, `message` or `detail` of others."""
    error = answer.get("error", answer)
    if not isinstance(error, dict):
        return _plain(str(error))
    words = next((error[key] for key in ("message", "detail", "msg") if error.get(key)), error)
    code = error.get("code")
    text = words if isinstance(words, str) else str(words)
    return _plain(text) + (f" ({_plain(code)})" if isinstance(code, str) and code else "")


def _plain(text: str) -> str:
    """One line of printable characters, short, without what looks like a key."""
    line = " ".join(text.split())
    line = "".join(sign if sign.isprintable() else "?" for sign in line)
    line = _KEY.sub("***", line)
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"


def _count(value: Any) -> int:
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
    return value if good else 0
