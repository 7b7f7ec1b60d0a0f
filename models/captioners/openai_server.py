"""`openai`: any server of OpenAI's protocol (vLLM, SGLang, LMDeploy, llama.cpp, Ollama, OpenAI).

Frames leave this process, and this machine if the server is on another one: pictures, prompt and
model name are sent, and nothing that names the video. What is tried again, and when sending ends,
is in `remote.sending`; what is sent and what is made of the answer, in `remote.chat`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, get_args

from data.errors import UsageError, nearest
from models.captioners.base import CAPTIONERS, CaptionRequest, Fit, Sight
from models.captioners.generating import Decoding, GeneratingCaptioner, Written
from models.captioners.remote.address import check_address, host_of, is_here, key_for
from models.captioners.remote.background import Background
from models.captioners.remote.dialects import DIALECTS
from models.captioners.remote.pictures import PICTURES, data_url
from models.captioners.remote.sending import Ask, Policy, Sender, Trouble
from models.options import check_options, defaults_of

if TYPE_CHECKING:
    from models.captioners.remote.chat import Chat
    from models.weights import Checkpoint

__all__ = ["OpenAIServer"]

_GREET_S = 20.0
_OURS = frozenset({"model", "messages", "stream", "n", "seed", "temperature", "top_p", "top_k"})
# `api_key`, `apikey`, `accessToken`; not `stop_token_ids`, `max_tokens`, `keyframes`.
_SECRET = re.compile(r"(?i)(key|token|secret|passwords?|authorization|credentials?)$")


@CAPTIONERS.register("openai")
class OpenAIServer(GeneratingCaptioner):
    """Asks a server for every caption. See docs/captioners.md for what to set for which server.

    Args:
        checkpoint: none: the server has the weights.
        seed: of sampling; sent with every request that samples.
        device: taken and not used.
        model: name of the model at the server.
        revision: your own words for what the server runs (commit, quantisation); in the recipe, so
            that another one is captioned again. The server cannot be asked.
        dialect: a key of `DIALECTS`: how limits and penalties are called there.
        system: a message before the first one.
        frames: of one request.
        side: pixels; see `Fit`.
        fit: how a frame becomes a picture.
        background: RGB of what `padded` adds.
        picture: format that is sent.
        quality: of JPEG and WebP.
        detail: "low", "high" or "auto" for servers that know it (OpenAI); "" sends nothing.
        extra: further fields of the request, e.g. `{min_p: 0.05}`.
        max_new_tokens: see `Decoding`.
        temperature: see `Decoding`.
        top_p: see `Decoding`.
        repetition_penalty: see `Decoding`.
        top_k: see `Decoding`; for servers that know it.
        retries: how often a caption that the guards object to is asked for again.
        address: of the API, most often with /v1 at its end.
        key_env: name of the environment variable with the key; "" sends none, except to OpenAI.
        concurrency: requests under way at once, for each worker.
        requests_per_minute: most that are started, for each worker; 0: no limit.
        timeout_s: longest time for one answer.
        tries: how often a request is sent that meets a busy server or a broken connection.
        longest_wait_s: a server that asks to wait longer ends the run.
        stop_after: so many requests in a row that failed end the run; 0: none do.

    Raises:
        UsageError: an option that cannot be, a key that is not there.
    """

    name = "openai"
    has_weights = False
    works_here = False
    machine_options = frozenset(
        {
            "device",
            "address",
            "key_env",
            "concurrency",
            "requests_per_minute",
            "timeout_s",
            "tries",
            "longest_wait_s",
            "stop_after",
        }
    )

    def __init__(
        self,
        checkpoint: Checkpoint | None = None,
        *,
        seed: int = 0,
        device: str = "cpu",
        model: str = "",
        revision: str = "",
        dialect: str = "vllm",
        system: str = "",
        frames: int = 1,
        side: int = 768,
        fit: Fit = "within",
        background: Sequence[int] = (0, 0, 0),
        picture: str = "jpeg",
        quality: int = 95,
        detail: str = "",
        extra: Mapping[str, Any] | None = None,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        top_k: int = 0,
        retries: int = 2,
        address: str = "http://127.0.0.1:8000/v1",
        key_env: str = "",
        concurrency: int = 16,
        requests_per_minute: float = 0.0,
        timeout_s: float = 120.0,
        tries: int = 6,
        longest_wait_s: float = 300.0,
        stop_after: int = 20,
    ) -> None:
        del device
        given = {name: value for name, value in locals().items() if name in defaults_of(type(self))}
        if checkpoint is not None:
            raise UsageError(
                "captioner openai has no checkpoint: the server has the weights; leave it out and "
                "name the model: options: {model: NAME}"
            )
        _check(given)
        self.address = check_address(address)
        self._key = key_for(self.address, key_env)
        red, green, blue = background
        self.sight = Sight(frames, side, fit, (red, green, blue))
        self.decoding = Decoding(**{name: given[name] for name in _DECODING}, seed=seed)
        self.retries = retries
        self._form = _Form(model, revision, dialect, system, picture, quality, detail, extra or {})
        self._timeout_s = timeout_s
        self._policy = Policy(concurrency, requests_per_minute, tries, longest_wait_s, stop_after)
        self._background = Background("storyline-openai")
        self._chat: Chat | None = None
        self._sender: Sender | None = None

    @classmethod
    def recipe(
        cls, options: Mapping[str, Any], checkpoint: Checkpoint | None = None
    ) -> dict[str, Any]:
        """See `Captioner.recipe`; UsageError for options that cannot be, before anything runs."""
        check_options("captioner openai", cls, options)
        _check({**defaults_of(cls), **options})
        return super().recipe(options, checkpoint)

    @classmethod
    def check(cls, checkpoint: Checkpoint | None, options: Mapping[str, Any]) -> None:
        """See `Captioner.check`: the key is there, and somebody answers who takes it."""
        from models.captioners.remote.chat import Chat

        del checkpoint
        every = {**defaults_of(cls), **options}
        _check(every)
        address = check_address(every["address"])
        key = key_for(address, every["key_env"])

        async def greet() -> None:
            chat = Chat(address, key, timeout_s=min(every["timeout_s"], _GREET_S), connections=1)
            try:
                await chat.greet()
            except Trouble as trouble:
                raise UsageError(f"captioner openai: {trouble.reason}") from None
            finally:
                await chat.close()

        background = Background("storyline-openai-check")
        try:
            background.run(greet())
        finally:
            background.close()

    @classmethod
    def notice(cls, options: Mapping[str, Any]) -> str:
        """What a user should know before the first frame is sent; "" if nothing leaves here."""
        address = check_address(str({**defaults_of(cls), **options}["address"]))
        if is_here(address):
            return ""
        plain = " over a connection that is not encrypted" if address.startswith("http:") else ""
        return (
            f"captions: frames of all videos leave this machine: they are sent to "
            f"{host_of(address)}{plain}"
        )

    def params(self) -> dict[str, Any]:
        """See `Captioner.params`; `served` are the models that the server says it used. The
        address is not in it: rows are free of the names of machines.
        """
        served = sorted(self._chat.served) if self._chat else []
        form = self._form
        return super().params() | {
            "model": form.model,
            "revision": form.revision,
            "dialect": form.dialect,
            "served": served,
        }

    def write(self, requests: Sequence[CaptionRequest], decoding: Decoding) -> list[Written]:
        """See `GeneratingCaptioner.write`.

        Raises:
            UsageError: no such server, key or model, or nothing but failures.
        """
        return self._background.run(self._write(requests, decoding))

    def close(self) -> None:
        """Close the connections."""
        if self._chat is not None:
            self._background.run(self._chat.close())
            self._chat = self._sender = None
        self._background.close()

    async def _write(self, requests: Sequence[CaptionRequest], decoding: Decoding) -> list[Written]:
        chat, sender = self._connected()
        return await sender.all([self._ask(chat, each, decoding) for each in requests])

    def _connected(self) -> tuple[Chat, Sender]:
        from models.captioners.remote.chat import Chat

        if self._chat is None or self._sender is None:
            self._chat = Chat(
                self.address,
                self._key,
                timeout_s=self._timeout_s,
                connections=self._policy.concurrency,
            )
            self._sender = Sender(f"captioner openai at {self.address}", self._policy)
        return self._chat, self._sender

    def _ask(self, chat: Chat, request: CaptionRequest, decoding: Decoding) -> Ask:
        body: dict[str, Any] = {}

        async def ask() -> Written:
            # Encoded when its turn comes, so that pictures of requests under way are held, no
            # others; in a thread, so that answers are read meanwhile.
            if not body:
                body.update(await asyncio.to_thread(self._form.body, request, decoding))
            return await chat.ask(body)

        return ask


@dataclass(frozen=True)
class _Form:
    """How a request is written; fields are options of the captioner."""

    model: str
    revision: str
    dialect: str
    system: str
    picture: str
    quality: int
    detail: str
    extra: Mapping[str, Any]

    def body(self, request: CaptionRequest, decoding: Decoding) -> dict[str, Any]:
        """The JSON of a request: pictures in time order, then the prompt."""
        content: list[dict[str, Any]] = [self._picture(frame) for frame in request.frames]
        content.append({"type": "text", "text": request.prompt})
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if self.system:
            messages.insert(0, {"role": "system", "content": self.system})
        fields = DIALECTS[self.dialect].fields(decoding, _seed(decoding.seed, request.key))
        return {"model": self.model, "messages": messages, **fields, **self.extra}

    def _picture(self, frame: Any) -> dict[str, Any]:
        url = {"url": data_url(frame, self.picture, self.quality)}
        if self.detail:
            url["detail"] = self.detail
        return {"type": "image_url", "image_url": url}


def _seed(seed: int, key: str) -> int:
    """31 bits: llama.cpp takes no more than 32, others 64."""
    mixed = blake2b(f"{seed}|{key}".encode(), digest_size=4).digest()
    return int.from_bytes(mixed, "big") & 0x7FFFFFFF


def _check(options: Mapping[str, Any]) -> None:
    """UsageError for the first option that cannot be."""
    _check_names(options)
    for name, (least, most) in _RANGES.items():
        value = options[name]
        whole = isinstance(defaults_of(OpenAIServer)[name], int)
        good = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not good or not least <= value <= most:
            kind = "a whole number" if whole else "a number"
            raise UsageError(
                f"captioner openai: {name} is {value!r}; allowed: {kind} from {least:g} to {most:g}"
            )
    address = check_address(str(options["address"]))
    decoding = Decoding(**{name: options[name] for name in _DECODING})
    DIALECTS[options["dialect"]].check(options["dialect"], host_of(address), decoding)
    _check_background(options["background"])
    _check_extra(options["extra"])


def _check_names(options: Mapping[str, Any]) -> None:
    if not options["model"] or not isinstance(options["model"], str):
        raise UsageError(
            "captioner openai: model is missing: say what the server calls it, options: {model: "
            "NAME} (`curl ADDRESS/models` lists the names)"
        )
    for name, allowed in _CHOICES.items():
        if options[name] not in allowed:
            raise UsageError(
                f"captioner openai: {name} is {options[name]!r}; "
                f"{nearest(str(options[name]), [each for each in allowed if each])}"
            )


def _check_background(background: Any) -> None:
    good = isinstance(background, Sequence) and len(background) == 3
    if not good or not all(isinstance(each, int) and 0 <= each <= 255 for each in background):
        raise UsageError(
            f"captioner openai: background is {background!r}; allowed: three numbers from 0 to "
            "255, red, green and blue"
        )


def _check_extra(extra: Any) -> None:
    if extra is None:
        return
    if not isinstance(extra, Mapping):
        raise UsageError("captioner openai: extra takes fields of the request, {NAME: VALUE}")
    limits = {name for dialect in DIALECTS.values() for name in dialect.names}
    for name in extra:
        if name in _OURS | limits:
            raise UsageError(
                f"captioner openai: extra names '{name}', which has an option of its own or is "
                "made here; use that option"
            )
    for name in _names_in(extra):
        if _SECRET.search(name):
            raise UsageError(
                f"captioner openai: extra names '{name}', which looks like a secret, and it would "
                "stand in the recipe; put keys into an environment variable (key_env)"
            )


def _names_in(value: Any) -> Iterator[str]:
    """All names of fields, however deep."""
    if isinstance(value, Mapping):
        yield from map(str, value)
    if isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _names_in(each)


_CHOICES: dict[str, tuple[str, ...]] = {
    "dialect": tuple(DIALECTS),
    "picture": tuple(PICTURES),
    "fit": get_args(Fit),
    "detail": ("", "low", "high", "auto"),
}
_DECODING = ("max_new_tokens", "temperature", "top_p", "repetition_penalty", "top_k")
_RANGES: dict[str, tuple[float, float]] = {
    "frames": (1, 256),
    "side": (16, 4096),
    "quality": (1, 100),
    "max_new_tokens": (1, 32768),
    "temperature": (0, 2),
    "top_p": (0.000001, 1),
    "repetition_penalty": (0.1, 10),
    "top_k": (0, 1_000_000),
    "retries": (0, 10),
    "concurrency": (1, 1024),
    "requests_per_minute": (0, 1_000_000),
    "timeout_s": (0.1, 86_400),
    "tries": (1, 100),
    "longest_wait_s": (0, 86_400),
    "stop_after": (0, 1_000_000),
}
