"""Many requests to one server: how many at once and a minute, when to try again, when to stop.

Nothing here knows a protocol. `ask` sends one request and raises `Trouble`, which says what may
help: the same request again, nothing for this request, or nothing for any request.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from data.errors import UsageError, how_to_install
from models.captioners.generating import Written

__all__ = ["Ask", "Policy", "Sender", "Trouble"]

_FIRST_WAIT_S, _LONGEST_OWN_WAIT_S = 0.5, 30.0


@dataclass(frozen=True)
class Policy:
    """How a server is treated.

    Args:
        concurrency: requests under way at once; so many pictures are held as text.
        requests_per_minute: most that are started, second tries included; 0: no limit.
        tries: how often one request is sent at most.
        longest_wait_s: a server that asks to wait longer than this ends the run.
        stop_after: so many requests in a row that failed for good end the run; 0: none do.
    """

    concurrency: int
    requests_per_minute: float
    tries: int
    longest_wait_s: float
    stop_after: int


class Trouble(Exception):  # noqa: N818 - it is one answer to a request, and no mistake of anybody
    """A request without a usable answer.

    Args:
        reason: why, for the record of the caption; no key, no picture in it.
        cure: what may help. "again": the same request, later. "other": this one never, others may
            do. "user": no request, until somebody changes something.
        wait_s: the server asks everybody to wait so long; None if it says nothing.
        user_at_first: while no request was ever answered, it takes a person: a model that nobody
            has is a mistake in the configuration then.
    """

    def __init__(
        self,
        reason: str,
        cure: Literal["again", "other", "user"],
        *,
        wait_s: float | None = None,
        user_at_first: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.cure = cure
        self.wait_s = wait_s
        self.user_at_first = user_at_first


Ask = Callable[[], Awaitable[Written]]
"""One request: makes its text at the first call, keeps it for the next, sends it at each."""


class Sender:
    """Sends requests to one server, from one event loop.

    Until the server has answered one request, they go one by one: a wrong key, model or address
    costs one request, not as many as go at once. A server that asks to wait is left alone by all.

    Args:
        server: what it is called in messages.
        policy: how it is treated.
    """

    def __init__(self, server: str, policy: Policy) -> None:
        self._server = server
        self._policy = policy
        self._answered = False
        self._failed_in_a_row = 0
        self._quiet_until = 0.0
        # Its own: draws of waiting times must not move the seeded numbers of anybody.
        self._random = random.Random()
        self._limiter = _limiter(policy.requests_per_minute)

    async def all(self, asks: Sequence[Ask]) -> list[Written]:
        """One outcome per request, in order.

        Raises:
            UsageError: nothing can be got from this server; requests under way are cancelled.
        """
        waiting = deque(enumerate(asks))
        outcomes: dict[int, Written] = {}
        while waiting and not self._answered:
            index, ask = waiting.popleft()
            outcomes[index] = await self._one(ask)
        await self._together(waiting, outcomes)
        return [outcomes[index] for index in range(len(asks))]

    async def _together(
        self, waiting: deque[tuple[int, Ask]], outcomes: dict[int, Written]
    ) -> None:
        async def work() -> None:
            while waiting:
                index, ask = waiting.popleft()
                outcomes[index] = await self._one(ask)

        count = min(self._policy.concurrency, len(waiting))
        workers = [asyncio.create_task(work()) for _ in range(count)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _one(self, ask: Ask) -> Written:
        reason = ""
        for number in range(1, self._policy.tries + 1):
            await self._turn()
            try:
                written = await ask()
            except Trouble as trouble:
                reason = trouble.reason
                if self._ends_all(trouble):
                    raise UsageError(f"{self._server}: {reason}") from None
                if trouble.cure == "other":
                    break
                if number == self._policy.tries:
                    reason += f" ({number} tries)"
                    break
                await self._after(trouble, number)
            else:
                self._answered = True
                self._failed_in_a_row = 0
                return written
        self._count_failure(reason)
        return Written("", "error", reason=reason)

    async def _turn(self) -> None:
        """When this request may be sent."""
        while (left := self._quiet_until - time.monotonic()) > 0:
            # Not all in the same millisecond afterwards.
            await asyncio.sleep(left + self._random.uniform(0, min(1.0, 0.1 * left)))
        if self._limiter is not None:
            await self._limiter.acquire()

    async def _after(self, trouble: Trouble, number: int) -> None:
        """Wait, all together if the server says how long, else this request alone."""
        if trouble.wait_s is None:
            longest = min(_FIRST_WAIT_S * 2 ** (number - 1), _LONGEST_OWN_WAIT_S)
            await asyncio.sleep(self._random.uniform(longest / 2, longest))
            return
        if trouble.wait_s > self._policy.longest_wait_s:
            raise UsageError(
                f"{self._server} asks to wait {trouble.wait_s:,.0f} s ({trouble.reason}), longer "
                f"than longest_wait_s, which is {self._policy.longest_wait_s:,.0f}; nothing more "
                "is sent. Run again later: what is finished is not asked again"
            )
        self._quiet_until = max(self._quiet_until, time.monotonic() + trouble.wait_s)

    def _ends_all(self, trouble: Trouble) -> bool:
        return trouble.cure == "user" or (trouble.user_at_first and not self._answered)

    def _count_failure(self, reason: str) -> None:
        self._failed_in_a_row += 1
        if self._policy.stop_after and self._failed_in_a_row >= self._policy.stop_after:
            raise UsageError(
                f"{self._server}: {self._failed_in_a_row} requests in a row failed, the last one: "
                f"{reason}; nothing more is sent. Mend it and run again: what is finished is not "
                "asked again (stop_after says how many may fail, 0 lets all)"
            )


class _Limiter:
    """So many starts a minute, evenly spread: a burst would be refused by limits per second."""

    def __init__(self, per_minute: float) -> None:
        try:
            from aiolimiter import AsyncLimiter
        except ImportError:
            raise UsageError(
                "captioner openai: requests_per_minute needs the package `aiolimiter`: "
                f"{how_to_install('openai')}"
            ) from None
        self._limiter = AsyncLimiter(1, 60.0 / per_minute)

    async def acquire(self) -> None:
        await self._limiter.acquire()


def _limiter(per_minute: float) -> _Limiter | None:
    return _Limiter(per_minute) if per_minute > 0 else None
