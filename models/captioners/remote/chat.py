"""One server of OpenAI's protocol, through the `openai` package; its own retries are off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from importlib import import_module
from typing import Any

from data.errors import UsageError, how_to_install
from models.captioners.generating import Written
from models.captioners.remote.address import OPENAI_HOST, Secret, header_secrets, host_of, is_here
from models.captioners.remote.answers import MOST_BYTES, model_names, refusal, written
from models.captioners.remote.sending import Trouble

__all__ = ["Chat"]

_CONNECT_S = 10.0
_NO_KEY = "none"  # a server that wants none ignores it; the package insists on one


class Chat:
    """Asks one server, over connections that are kept. Made and used in one event loop.

    Args:
        address: of the API.
        key: its key; None if it wants none.
        timeout_s: longest time for one answer.
        connections: most at once.

    Raises:
        UsageError: the package `openai` is not installed.
    """

    def __init__(
        self, address: str, key: Secret | None, *, timeout_s: float, connections: int
    ) -> None:
        try:
            import openai
        except ImportError:
            raise UsageError(
                f"captioner openai needs the package `openai`: {how_to_install('openai')}"
            ) from None
        self.served: set[str] = set()
        self._address = address
        self._secrets = [*([key] if key else []), *header_secrets()]
        self._timeout_s = timeout_s
        self._openai = openai
        client = openai.DefaultAsyncHttpxClient
        self._http = _http_of(client)
        bearer = key.shown() if key else _NO_KEY
        self._client = openai.AsyncOpenAI(
            api_key=bearer,
            base_url=address,
            max_retries=0,
            timeout=self._http.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s)),
            # Said again: a key in OPENAI_CUSTOM_HEADERS would win over `api_key`.
            default_headers={"Authorization": f"Bearer {bearer}"},
            http_client=client(
                limits=self._http.Limits(
                    max_connections=connections, max_keepalive_connections=connections
                ),
                follow_redirects=False,
                # A proxy of the environment knows no server of this machine.
                trust_env=not is_here(address),
                # A thousand bytes unpacked for each that came: answers are short without it.
                headers={"Accept-Encoding": "identity"},
                event_hooks={"response": [partial(_bounded, self._http)]},
            ),
        )
        if host_of(address) != OPENAI_HOST:
            # From OPENAI_ORG_ID and OPENAI_PROJECT_ID: no business of other servers.
            self._client.organization = self._client.project = None

    async def ask(self, body: dict[str, Any]) -> Written:
        """One answer to `body`, a request to `/chat/completions`.

        Raises:
            Trouble: there was none that can be used.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._post(body)
        except (TimeoutError, self._openai.APITimeoutError, self._http.TimeoutException) as error:
            if isinstance(error.__cause__, self._http.ConnectTimeout):
                raise self._not_connected(error) from None
            raise Trouble(f"no answer within {self._timeout_s:g} s", "again") from None
        except self._openai.APIStatusError as error:
            response = error.response
            words = self._without_key(response.content)
            known = await self._models() if response.status_code == 404 else ""
            raise refusal(response.status_code, words, response.headers, known) from None
        except (self._openai.APIConnectionError, self._http.HTTPError) as error:
            raise self._not_connected(error) from None
        one, model = written(self._without_key(answer))
        if model:
            self.served.add(model)
        return one

    async def greet(self) -> None:
        """Whether anybody is there who takes the key. Any answer but 401 will do: not every server
        lists its models, and not every key may ask for them.

        Raises:
            Trouble: nobody is, or it does not.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._client.models.with_raw_response.list()
        except (TimeoutError, self._openai.APITimeoutError) as error:
            if isinstance(error.__cause__, self._http.ConnectTimeout):
                raise self._not_connected(error) from None
            raise Trouble(
                f"{self._address} takes a connection and does not answer within "
                f"{self._timeout_s:g} s; is it still loading its model?",
                "user",
            ) from None
        except self._openai.APIStatusError as error:
            if error.status_code == 401:
                words = self._without_key(error.response.content)
                raise refusal(401, words, error.response.headers) from None
        except (self._openai.APIConnectionError, self._http.HTTPError) as error:
            raise self._not_connected(error) from None
        except self._openai.OpenAIError:
            return  # an answer that is no list of models

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _models(self) -> str:
        """Names of the models that the server has, for a message; "" if it does not say."""
        try:
            async with asyncio.timeout(min(_CONNECT_S, self._timeout_s)):
                raw = await self._client.models.with_raw_response.list()
        except (TimeoutError, Trouble, self._openai.OpenAIError, self._http.HTTPError):
            return ""  # the message is about something else
        return model_names(raw.http_response.content)

    async def _post(self, body: dict[str, Any]) -> bytes:
        """The bytes of a successful answer, not more than `MOST_BYTES` (`_bounded`)."""
        create = self._client.chat.completions.with_streaming_response.create
        rest = {key: value for key, value in body.items() if key not in ("model", "messages")}
        call = create(model=body["model"], messages=body["messages"], extra_body=rest)
        answer = bytearray()
        async with call as response:
            async for piece in response.iter_bytes():
                answer += piece
        return bytes(answer)

    def _not_connected(self, error: Exception) -> Trouble:
        cause = error.__cause__ or error
        if isinstance(cause, Trouble):
            return cause
        words = " ".join(str(cause).split()) or type(cause).__name__
        if isinstance(cause, (self._http.ConnectError, self._http.ConnectTimeout)):
            reason = f"no server answers at {self._address} ({words}); start it or mend `address`"
            return Trouble(reason, "again", user_at_first=True)
        return Trouble(f"the connection broke ({words})", "again")

    def _without_key(self, answer: bytes) -> bytes:
        """There are servers that repeat the key in what they say."""
        for secret in self._secrets:
            answer = answer.replace(secret.shown().encode(), b"***")
        return answer


async def _bounded(http: Any, response: Any) -> None:
    """Let no answer, good or bad, be larger than `MOST_BYTES`; a hook of the http library."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise Trouble("the answer is compressed, which was not asked for", "again")

    class Bounded(http.AsyncByteStream):  # type: ignore[misc]  # the class is found at run time
        async def __aiter__(self) -> AsyncIterator[bytes]:
            count = 0
            async for piece in whole:
                count += len(piece)
                if count > MOST_BYTES:
                    raise Trouble(f"the answer is larger than {MOST_BYTES:,} bytes", "again")
                yield piece

        async def aclose(self) -> None:
            await whole.aclose()

    whole = response.stream
    response.stream = Bounded()


def _http_of(client: type[Any]) -> Any:
    """The library that the package derives its own client from: httpx, since openai 3 httpx2."""
    if any(each.__module__.partition(".")[0] == "httpx2" for each in client.__mro__):
        return import_module("httpx2")
    return import_module("httpx")
