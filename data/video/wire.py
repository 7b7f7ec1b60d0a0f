"""What the decoding child and its parent say to each other over pipes.

A message is a little-endian `<header bytes: u32><payload bytes: u64>`, the header as JSON, and
the payload as raw bytes. Nothing is pickled, so a child that was taken over by a crafted video
can hand back wrong pixels but no code. The pixels of a window lie in shared memory
(`data.video.arena`), where the header says; only those that found no place there are payload.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data.foreign import brief, strict_json
from data.video.arena import Arena
from data.video.limits import DEFAULT_LIMITS, VideoLimits
from data.video.types import FrameRequest, SoundRequest, SoundWindow, Video, View, Window

__all__ = [
    "Job",
    "Message",
    "pack_sound",
    "pack_window",
    "read",
    "unpack_sound",
    "unpack_window",
    "write",
]

_PREFIX = struct.Struct("<IQ")

_MAX_HEADER_BYTES = 16 << 20
_MAX_PAYLOAD_BYTES = 4 << 30
"""Of one window; 64 frames of 2048 x 2048 have 0.8 GiB. What a child claims is not believed."""


@dataclass(frozen=True)
class Message:
    """A header and its payload.

    Args:
        arena: the memory that the header may point into.
        nbytes: size as it came over the pipe.
    """

    header: dict[str, Any]
    payload: NDArray[np.uint8]
    arena: Arena | None = None
    nbytes: int = 0


@dataclass(frozen=True)
class Job:
    """One task for a child.

    Args:
        task: "probe", "windows" or "sounds".
        decoder: name for `open_decoder`.
        video: the part to decode.
        requests: for "windows".
        limits: what the video may declare.
        sound: for "sounds".
    """

    task: str
    decoder: str
    video: Video
    requests: tuple[FrameRequest, ...] = ()
    limits: VideoLimits = DEFAULT_LIMITS
    sound: SoundRequest | None = None

    def pack(self) -> tuple[dict[str, Any], bytes]:
        """Header and payload; equal jobs give equal ones."""
        times = [np.ascontiguousarray(each.times_s, dtype="<f8") for each in self.requests]
        requests = [
            {
                "name": each.name,
                "shape": list(array.shape),
                "short_side": each.view.short_side,
                "crop": each.view.crop,
                "mode": each.view.mode,
                "fit": each.view.fit,
                "background": list(each.view.background),
                "inclusive": each.inclusive,
            }
            for each, array in zip(self.requests, times, strict=True)
        ]
        sound = None
        if self.sound is not None:
            starts = np.ascontiguousarray(self.sound.starts_s, dtype="<f8")
            times.append(starts)
            sound = [self.sound.name, len(starts), self.sound.length_s, self.sound.rate_hz]
        video = self.video
        header = {
            "task": self.task,
            "decoder": self.decoder,
            "video": [video.id, str(video.path), video.start_s, video.end_s],
            "requests": requests,
            "sound": sound,
            "limits": self.limits.to_json(),
        }
        return header, b"".join(array.tobytes() for array in times)

    @classmethod
    def unpack(cls, message: Message) -> Job:
        """The inverse of `pack`."""
        header = message.header
        times = message.payload.view("<f8")
        requests, used = [], 0
        for each in header["requests"]:
            size = int(np.prod(each["shape"]))
            array = times[used : used + size].reshape(each["shape"])
            red, green, blue = each["background"]
            view = View(
                each["short_side"], each["crop"], each["mode"], each["fit"], (red, green, blue)
            )
            requests.append(FrameRequest(each["name"], array, view, each["inclusive"]))
            used += size
        sound = None
        if header["sound"] is not None:
            name, size, length_s, rate_hz = header["sound"]
            sound = SoundRequest(name, times[used : used + size], length_s, rate_hz)
        video_id, path, start_s, end_s = header["video"]
        video = Video(video_id, Path(path), start_s, end_s)
        limits = VideoLimits(**header["limits"])
        return cls(header["task"], header["decoder"], video, tuple(requests), limits, sound)


def write(file: BinaryIO, header: dict[str, Any], *payload: bytes | memoryview) -> None:
    """Send one message."""
    text = json.dumps(header).encode()
    file.write(_PREFIX.pack(len(text), sum(len(part) for part in payload)) + text)
    for part in payload:
        file.write(part)
    file.flush()


def read(file: BinaryIO, arena: Arena | None = None) -> Message | None:
    """Receive one message; None when the other side is gone, ValueError for no message."""
    prefix = _exactly(file, _PREFIX.size)
    if prefix is None:
        return None
    header_size, payload_size = _PREFIX.unpack(prefix.data)
    if header_size > _MAX_HEADER_BYTES or payload_size > _MAX_PAYLOAD_BYTES:
        raise ValueError(f"a message of {header_size} + {payload_size} bytes is no message")
    header = _exactly(file, header_size)
    payload = _exactly(file, payload_size)
    if header is None or payload is None:
        return None
    value = strict_json(header.tobytes())
    if not isinstance(value, dict):
        raise ValueError("the header of a message is not a JSON object")
    return Message(value, payload, arena, header_size + payload_size)


def pack_window(
    window: Window, offset: int | None = None
) -> tuple[dict[str, Any], memoryview, memoryview]:
    """A window as message: header, pixels, times.

    Args:
        window: what is sent.
        offset: where its pixels lie in the arena; None sends them along.
    """
    header: dict[str, Any] = {
        "kind": "window",
        "request": window.request,
        "unit": window.unit,
        "shape": list(window.frames.shape),
    }
    times = np.ascontiguousarray(window.times_s, dtype="<f8").view(np.uint8)
    if offset is not None:
        return {**header, "offset": offset}, memoryview(b""), times.data
    return header, np.ascontiguousarray(window.frames).reshape(-1).data, times.data


def unpack_window(message: Message) -> Window:
    """The inverse of `pack_window`; the pixels are read-only, a view of the arena or the payload.

    Raises:
        ValueError: it is not the message of a window.
    """
    shape, unit, request = (message.header.get(key) for key in ("shape", "unit", "request"))
    sizes = shape if isinstance(shape, list) else []
    if len(sizes) != 4 or not all(type(each) is int and each >= 0 for each in (*sizes, unit)):
        raise ValueError(f"a window cannot have shape {brief(shape)} and unit {brief(unit)}")
    shared = "offset" in message.header
    size = 0 if shared else math.prod(sizes)
    if size + 8 * sizes[0] != message.payload.nbytes or not isinstance(request, str):
        raise ValueError(f"a window of shape {sizes} came with {message.payload.nbytes} bytes")
    times = np.frombuffer(message.payload[size:].tobytes(), dtype="<f8")
    frames = _shared(message, sizes) if shared else message.payload[:size].reshape(sizes)
    frames.flags.writeable = False
    return Window(request, int(unit or 0), frames, times)


def pack_sound(window: SoundWindow) -> tuple[dict[str, Any], memoryview]:
    """The sound of a window as message: header, samples. It is small and goes through the pipe."""
    header = {
        "kind": "sound",
        "request": window.request,
        "unit": window.unit,
        "heard": window.heard,
    }
    samples = np.ascontiguousarray(window.samples, dtype="<f4")
    return header, samples.view(np.uint8).data


def unpack_sound(message: Message, request: SoundRequest) -> SoundWindow:
    """The inverse of `pack_sound`.

    Raises:
        ValueError: it is not the sound of a window of `request`.
    """
    unit, heard = message.header.get("unit"), message.header.get("heard")
    size = math.floor(request.length_s * request.rate_hz + 0.5)
    if (
        message.header.get("request") != request.name
        or type(unit) is not int
        or not 0 <= unit < len(request.starts_s)
        or not isinstance(heard, int | float)
        or not 0 <= heard <= 1
        or message.payload.nbytes != 4 * size
    ):
        raise ValueError(
            f"the sound of window {brief(unit)}, heard {brief(heard)}, came with "
            f"{message.payload.nbytes} bytes; a window of it has {4 * size}"
        )
    samples = message.payload.view("<f4")
    if not np.isfinite(samples).all():
        raise ValueError(f"the sound of window {unit} is not finite")
    return SoundWindow(request.name, unit, samples, float(heard))


def _shared(message: Message, sizes: list[int]) -> NDArray[np.uint8]:
    if message.arena is None:
        raise ValueError("a window cannot lie in shared memory where there is none")
    return message.arena.view(message.header["offset"], tuple(sizes))


def _exactly(file: BinaryIO, size: int) -> NDArray[np.uint8] | None:
    buffer = np.empty(size, dtype=np.uint8)
    view = buffer.data
    done = 0
    while done < size:
        got = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not got:
            return None
        done += got
    return buffer
