"""Decoding in a child process: a decoder that crashes or hangs costs one attempt, not a worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Literal

from data.errors import InputError, UsageError
from data.video import wire
from data.video.limits import DEFAULT_LIMITS, VideoLimits
from data.video.types import (
    FrameRequest,
    SoundRequest,
    SoundWindow,
    Video,
    VideoFacts,
    Window,
)
from data.video.worker import Child, Work

__all__ = ["IsolatedDecoder"]

_FALL_BACK_ON = {"undecodable", "decoder-crashed", "decoder-timeout"}
"""Failures that another decoder may not have. A missing file is missing for all of them."""

_SOUND_DECODER = "pyav"

_JOBS_PER_CHILD = 200
"""A child is replaced after this many videos, so that leaks of a decoder stay small."""


class IsolatedDecoder:
    """A `Decoder` whose work is done in child processes, with fallbacks and prefetch.

    The frames of windows are read-only views of memory that is shared with the child. They stay
    as they are as long as anybody refers to them, also after `close`; copy what is to be kept.

    Use it as a context manager or `close` it. One thread at a time; one iteration of `windows`
    at a time. After each `probe` or first window, `used` is the name of the decoder that served.

    A decoder that failed on a file is not tried on it again by this object, so the engine's next
    attempt starts with the fallback. A failure after the first window is raised, never patched
    up by another decoder, so that all frames of a row come from one.

    Args:
        decoder: name for `data.video.open_decoder`.
        fallbacks: names that are tried in order when it crashes, hangs or cannot decode.
        damaged: "quarantine" raises InputError(`damaged`) when packets were refused: after `probe`,
            and at the end of `windows`, which may leave out the damaged ones; `probe` decides.
        timeout_s: longest silence of a child, in seconds, while the next answer is waited for.
        buffer_bytes: memory shared with a child, which bounds the windows that exist, waiting or
            held by the consumer, per video (current and prefetched). When the consumer holds all of
            it and asks for more, or one window is larger, windows come through a pipe instead,
            slower, one at a time.
        limits: what a video may declare, and the memory of a child.
        ahead: how many videos may be decoded ahead (`prefetch`), each in a child of its own.
    """

    def __init__(
        self,
        decoder: str = "pyav",
        fallbacks: Sequence[str] = ("decord",),
        damaged: Literal["keep", "quarantine"] = "keep",
        timeout_s: float = 300.0,
        buffer_bytes: int = 128 * 2**20,
        limits: VideoLimits = DEFAULT_LIMITS,
        ahead: int = 1,
    ) -> None:
        self.name = decoder
        self.used = decoder
        self._decoders = tuple(dict.fromkeys((decoder, *fallbacks)))
        self._damaged = damaged
        self._timeout_s = timeout_s
        self._buffer_bytes = buffer_bytes
        self._limits = limits
        self._idle: list[Child] = []
        self._running: list[Work] = []
        self._ahead = ahead
        self._prefetched: deque[Work] = deque()
        self._failed: set[tuple[str, str]] = set()

    def __enter__(self) -> IsolatedDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def probe(self, video: Video) -> VideoFacts:
        """Decode the whole (part of the) video without keeping pictures."""
        for message in self._serve("probe", video, ()):
            facts = self._believed(video, message)
            self._judge(video, facts.damaged)
        return facts

    def windows(self, video: Video, requests: Sequence[FrameRequest]) -> Iterator[Window]:
        """Serve all requests from one sequential pass, ahead of the consumer within the buffer."""
        for message in self._serve("windows", video, requests):
            if message.header["kind"] == "window":
                yield self._window(video, message)
            else:
                self._judge(video, message.header.get("damaged", 0))

    def sounds(self, video: Video, request: SoundRequest) -> Iterator[SoundWindow]:
        """The windows of sound in order; none if the file has no sound (`data.video.sound`).

        Sound is always read by PyAV, whatever decodes the pictures; there is no fallback.
        """
        for message in self._answers(self._sound_job(video, request)):
            if message.header["kind"] == "sound":
                yield self._heard(video, message, request)
            else:
                self._judge(video, message.header.get("damaged", 0))

    def _heard(self, video: Video, message: wire.Message, request: SoundRequest) -> SoundWindow:
        try:
            return wire.unpack_sound(message, request)
        except ValueError as error:
            raise _senseless(video, error) from error

    def _believed(self, video: Video, message: wire.Message) -> VideoFacts:
        """Facts that a child gave; a crafted video may have taken it over."""
        try:
            facts = VideoFacts(**message.header["facts"])
        except (KeyError, TypeError, ValueError) as error:
            raise _senseless(video, error) from error
        self._limits.check_facts(video.path, facts.to_json())
        return facts

    def _window(self, video: Video, message: wire.Message) -> Window:
        try:
            return wire.unpack_window(message)
        except ValueError as error:
            raise _senseless(video, error) from error

    def prefetch(self, video: Video, requests: Sequence[FrameRequest]) -> None:
        """Start decoding now for a later `windows` with the same video and requests.

        It replaces the oldest prefetch that was not used, if there are `ahead` of them.
        """
        self._begin(self._job(self._order(video)[0], "windows", video, requests))

    def prefetch_sound(self, video: Video, request: SoundRequest) -> None:
        """The same for a later `sounds`."""
        self._begin(self._sound_job(video, request))

    def _begin(self, job: wire.Job) -> None:
        if self._prefetched_as(job) is not None:
            return
        self._drop_prefetched(self._ahead - 1)
        self._prefetched.append(self._start(job))

    def _prefetched_as(self, job: wire.Job) -> Work | None:
        packed = job.pack()
        return next((each for each in self._prefetched if each.job.pack() == packed), None)

    def warm(self) -> None:
        """Start a child that gets ready while the caller does something else, if there is none."""
        if not (self._idle or self._running):
            self._idle.append(self._new_child())

    def close(self) -> None:
        """End all children; open iterations end with InputError(`decoder-crashed`)."""
        self._drop_prefetched()
        for work in list(self._running):
            self._abandon(work)
        for child in self._idle:
            child.stop()
            child.close()
        self._idle.clear()

    def _serve(
        self, task: str, video: Video, requests: Sequence[FrameRequest]
    ) -> Iterator[wire.Message]:
        """Answers of the first decoder that gives one."""
        failures: list[tuple[str, InputError]] = []
        for name in self._order(video):
            answered = False
            try:
                for message in self._answers(self._job(name, task, video, requests)):
                    self.used, answered = name, True
                    yield message
                return
            except InputError as error:
                if error.reason not in _FALL_BACK_ON:
                    raise
                self._failed.add((name, str(video.path)))
                failures.append((name, error))
                if answered:
                    break
        raise _combined(failures) from failures[0][1]

    def _answers(self, job: wire.Job) -> Iterator[wire.Message]:
        work = self._started(job)
        try:
            while not work.finished:
                yield self._next(work)
        finally:
            self._release(work)

    def _next(self, work: Work) -> wire.Message:
        """The next good answer of a child; everything else is an error."""
        path = work.job.video.path
        try:
            message = work.take(self._timeout_s)
        except TimeoutError:
            self._abandon(work)
            raise InputError(
                "decoder-timeout",
                f"{path}: decoder '{work.job.decoder}' gave nothing for {self._timeout_s:g} s and "
                "was ended; encode the file again, or raise the time limit if it is very long",
            ) from None
        if message is None:
            raise InputError(
                "decoder-crashed",
                f"{path}: decoder '{work.job.decoder}' died ({self._abandon(work)}); "
                "encode the file again or leave it out",
            )
        _raise_error(work.job, message)
        return message

    def _order(self, video: Video) -> list[str]:
        path = str(video.path)
        left = [name for name in self._decoders if (name, path) not in self._failed]
        return left or list(self._decoders)

    def _job(
        self, decoder: str, task: str, video: Video, requests: Sequence[FrameRequest]
    ) -> wire.Job:
        return wire.Job(task, decoder, video, tuple(requests), self._limits)

    def _sound_job(self, video: Video, request: SoundRequest) -> wire.Job:
        return wire.Job("sounds", _SOUND_DECODER, video, limits=self._limits, sound=request)

    def _started(self, job: wire.Job) -> Work:
        prefetched = self._prefetched_as(job)
        if prefetched is None:
            return self._start(job)
        self._prefetched.remove(prefetched)
        return prefetched

    def _start(self, job: wire.Job) -> Work:
        while self._idle and not self._idle[-1].alive:
            self._idle.pop().close()
        child = self._idle.pop() if self._idle else self._new_child()
        work = Work(child, job, self._buffer_bytes)
        self._running.append(work)
        return work

    def _new_child(self) -> Child:
        return Child(self._limits.memory_mb, self._buffer_bytes, self.name)

    def _release(self, work: Work) -> None:
        """Keep the child of a finished job for the next one; end any other."""
        if work not in self._running:
            return
        if work.finished and work.child.jobs < _JOBS_PER_CHILD:
            self._running.remove(work)
            self._idle.append(work.child)
            return
        self._abandon(work)
        if work.finished:  # its successor gets ready while the next video is decoded elsewhere
            self._idle.insert(0, self._new_child())

    def _abandon(self, work: Work) -> str:
        if work in self._running:
            self._running.remove(work)
        return work.abandon()

    def _drop_prefetched(self, most: int = 0) -> None:
        """Leave at most so many, the latest."""
        while len(self._prefetched) > most:
            self._abandon(self._prefetched.popleft())

    def _judge(self, video: Video, damaged: int) -> None:
        if damaged and self._damaged == "quarantine":
            raise InputError(
                "damaged",
                f"{video.path}: {damaged} packets could not be decoded and the policy is "
                "'quarantine'; repair the file, or set damaged: keep to use the frames that decode",
            )


def _senseless(video: Video, error: Exception) -> InputError:
    return InputError(
        "decoder-crashed", f"{video.path}: the decoder's process gave no sensible answer: {error}"
    )


def _raise_error(job: wire.Job, message: wire.Message) -> None:
    header = message.header
    if header["kind"] == "input-error":
        raise InputError(str(header.get("reason")), str(header.get("message")))
    if header["kind"] == "usage-error":
        raise UsageError(str(header.get("message")))
    if header["kind"] == "failure":
        raise InputError(
            "decoder-crashed",
            f"{job.video.path}: decoder '{job.decoder}' failed in an unforeseen way:\n"
            f"{header.get('message')}",
        )


def _combined(failures: Sequence[tuple[str, InputError]]) -> InputError:
    """The first failure, with what the fallbacks said."""
    _, first = failures[0]
    others = [f"fallback '{name}': {error}" for name, error in failures[1:]]
    return InputError(first.reason, "; ".join([str(first), *others]))
