"""Where a server is, and the key for it: what may be said of both, and to whom."""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import urlsplit

from data.errors import UsageError

__all__ = [
    "OPENAI_HOST",
    "Secret",
    "check_address",
    "header_secrets",
    "host_of",
    "is_here",
    "key_for",
]

OPENAI_HOST = "api.openai.com"
OPENAI_KEY = "OPENAI_API_KEY"
_SHORTEST_SECRET = 8


class Secret:
    """A text that shows itself nowhere by accident: not in messages, tracebacks or pickles.

    Args:
        text: the secret.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def shown(self) -> str:
        """The secret, for the one place that needs it."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(***)"

    def __reduce__(self) -> tuple[type[Secret], tuple[str]]:
        raise TypeError("a key stays in the process that read it")


def check_address(address: str) -> str:
    """`address` without the slash at its end.

    Raises:
        UsageError: not the http(s) address of an API, or one with a password or a query in it.
    """
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and parts.hostname is not None
        good = good and (parts.port is None or parts.port > 0)
    except ValueError:
        parts, good = urlsplit(""), False
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        # Without the address: it may hold a password.
        raise UsageError(
            "captioner openai: the address must not contain a name, a password, '?' or '#': it is "
            "shown in messages. Put a key into an environment variable and name that in key_env"
        )
    if not good or any(sign.isspace() for sign in address):
        raise UsageError(
            f"captioner openai: address '{address}' is not the http or https address of an API; "
            "most end in /v1, e.g. http://127.0.0.1:8000/v1"
        )
    return address.rstrip("/")


def host_of(address: str) -> str:
    """The host of a checked address."""
    return urlsplit(address).hostname or ""


def is_here(address: str) -> bool:
    """Whether the server is on this machine, so that no frame leaves it."""
    host = host_of(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def header_secrets() -> list[Secret]:
    """The values of OPENAI_CUSTOM_HEADERS, which the package `openai` sends: a gateway's keys, most
    often. Short ones are words.
    """
    lines = os.environ.get("OPENAI_CUSTOM_HEADERS", "").splitlines()
    values = [line.partition(":")[2].strip() for line in lines]
    return [Secret(value) for value in values if len(value) >= _SHORTEST_SECRET]


def key_for(address: str, key_env: str) -> Secret | None:
    """The key of a server, from the environment; None where it gets none.

    A key is sent only to the server it is meant for: OPENAI_API_KEY to OpenAI's own, another one
    only by the name of its variable.

    Args:
        address: of the server.
        key_env: name of an environment variable; "" for none.

    Raises:
        UsageError: the variable is not set here, or holds what no key can be.
    """
    name = key_env or (OPENAI_KEY if host_of(address) == OPENAI_HOST else "")
    if not name:
        return None
    text = os.environ.get(name, "").strip()
    if not text:
        hint = ""
        if not name.replace("_", "").isalnum() or not name.isascii():
            # Most likely the key itself: it must not be shown.
            name, hint = "that is named by it", "; it takes the name of a variable, not a key"
        raise UsageError(
            f"captioner openai: key_env: the environment variable {name} is not set or empty in "
            f"this process{hint}. Export it where the workers run (on a Ray cluster: on its "
            "machines, before Ray starts), never in a configuration file"
        )
    if not text.isascii() or not text.isprintable() or " " in text:
        raise UsageError(
            f"captioner openai: the environment variable {name} holds characters that no key has "
            "(a line break, a blank, a letter with an accent); it is not shown here"
        )
    return Secret(text)
