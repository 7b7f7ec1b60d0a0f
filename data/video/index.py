"""The timestamps of a file without decoding it, and which packets a pass over it can do without.

A frame that nobody wants need not be decoded if no other frame refers to it, and nothing at all
need be decoded between the last wanted frame of a closed group of pictures and the next group. What
is left out is decided here from packets alone, and only where the standard of the codec says that
the remaining frames come out the same:

| codec | frames nobody refers to | where decoding may begin |
|---|---|---|
| h264 | `nal_ref_idc` 0 (7.4.1) | IDR pictures (8.2.1), length-prefixed files |
| hevc | `_N` types (7.4.2.2), files of one temporal layer only | IDR pictures, likewise |
| mpeg1video, mpeg2video, mpeg4 | B pictures | nowhere: later headers may depend on earlier ones |
| vp9 | none | key frames, which reset everything (6.2, 8.4.2) |

Parameter sets inside packets must all be equal, and a start must repeat them, else nothing that
may carry them is left out. Other codecs, AVI (no presentation times), packets without times, two
packets of one time, and streams that reorder more frames than the decoder was told to expect have
no index: they are decoded whole.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.video.checks import require
from data.video.container import opened, packets_of
from data.video.limits import VideoLimits
from data.video.types import Video

__all__ = ["Index", "index_of", "length_prefixed_marks"]

_DEEPEST = 16
"""Frames that H.264 and HEVC may hold back for reordering."""


@dataclass(frozen=True)
class Index:
    """All packets of a video stream in decoding order; about 9 bytes each.

    Args:
        pts: presentation times in ticks, shape (packets,).
        shown: whether the packet's frame is shown, shape (packets,); an edit list hides some.
        starts: positions at which decoding may begin, increasing.
        starts_ticks: times to seek to for each of `starts`.
        skips: whether the decoder can leave out frames that no other refers to.
    """

    pts: NDArray[np.int64]
    shown: NDArray[np.bool_]
    starts: NDArray[np.int64]
    starts_ticks: NDArray[np.int64]
    skips: bool


_KEPT: dict[tuple[str, int, int, VideoLimits], tuple[Index | None]] = {}
"""The index of the last file: the parts of a video, and its stages, follow one another."""


def index_of(video: Video, limits: VideoLimits, progress: Callable[[], None]) -> Index | None:
    """The index of the file, or None where leaving out packets is not known to be safe.

    Reads the packets of the whole file once, decodes nothing.
    """
    status = video.path.stat()
    key = (str(video.path.absolute()), status.st_size, status.st_mtime_ns, limits)
    if (kept := _KEPT.get(key)) is not None:
        return kept[0]
    index = _read(video, limits, progress)
    _KEPT.clear()
    _KEPT[key] = (index,)  # threads may clear it before it is read again
    return index


def _read(video: Video, limits: VideoLimits, progress: Callable[[], None]) -> Index | None:
    with opened(video, limits) as (container, stream):
        codec = _CODECS.get(stream.codec_context.codec.canonical_name)
        unsure = container.format.name == "avi" or stream.start_time is None
        if codec is None or unsure:
            return None
        rules = codec(bytes(stream.codec_context.extradata or b""))
        packets = _Packets(rules)
        for packet in _demuxed(container, stream):
            progress()
            if not packets.take(packet) or packets.count > limits.max_frames:
                return None
        # Without a known depth an H.264 decoder finds it out by dropping frames as it goes.
        return packets.index(getattr(stream.codec_context, "reorder_depth", -1))


def _demuxed(container: Any, stream: Any) -> Iterator[Any]:
    """Packets with contents, up to the end or to where the file is broken.

    What a broken file has behind that place is unforeseen, which ends a guided pass.
    """
    try:
        yield from (packet for packet in packets_of(container, stream) if packet.size)
    except require("av").error.FFmpegError:
        return


Marks = Callable[[memoryview], tuple[bool, bytes]]
"""Of a packet: whether it is a picture that needs no earlier one, and its parameter sets."""


@dataclass(frozen=True)
class _Rules:
    """What may be left out of a stream."""

    skips: bool
    marks: Marks | None


class _Packets:
    """Collects the index packet by packet."""

    def __init__(self, rules: _Rules) -> None:
        self._rules = rules
        self._pts = array("q")
        self._shown = array("b")
        self._starts: list[tuple[int, int, bool]] = []
        self._sets: set[bytes] = set()

    @property
    def count(self) -> int:
        return len(self._pts)

    def take(self, packet: Any) -> bool:
        """Note a packet; False if it has no time."""
        pts, dts = packet.pts, packet.dts
        if pts is None:
            return False
        marks = self._rules.marks
        if marks is not None:
            start, sets = marks(memoryview(packet))
            if sets and len(self._sets) < 2:
                self._sets.add(sets)
            if start:
                ticks = pts if dts is None else min(pts, dts)
                self._starts.append((len(self._pts), ticks, bool(sets)))
        self._pts.append(pts)
        self._shown.append(not packet.is_discard)
        return True

    def index(self, reorder_depth: int) -> Index | None:
        pts = np.array(self._pts, dtype=np.int64)
        if len(np.unique(pts)) < len(pts) or not len(pts) or _depth(pts) > reorder_depth:
            return None
        starts = [] if len(self._sets) > 1 else self._starts
        if self._sets:
            starts = [each for each in starts if each[2]]
        return Index(
            pts,
            np.array(self._shown, dtype=np.bool_),
            np.array([each[0] for each in starts], dtype=np.int64),
            np.array([each[1] for each in starts], dtype=np.int64),
            self._rules.skips,
        )


def _depth(pts: NDArray[np.int64]) -> int:
    """Most frames that come before another one in decoding order and after it on the screen."""
    later = np.zeros(len(pts), dtype=np.int64)
    for back in range(1, min(2 * _DEEPEST, len(pts) - 1) + 1):
        later[back:] += pts[:-back] > pts[back:]
    return int(later.max(initial=0))


def _h264(extradata: bytes) -> _Rules:
    if len(extradata) < 7 or extradata[0] != 1:
        return _Rules(skips=True, marks=None)
    return _Rules(
        True, length_prefixed_marks((extradata[4] & 3) + 1, lambda byte: _H264[byte & 31])
    )


def _hevc(extradata: bytes) -> _Rules:
    if len(extradata) < 23 or extradata[0] != 1:
        return _Rules(skips=False, marks=None)
    # A picture that its own temporal layer does not refer to may serve a higher layer.
    one_layer = (extradata[21] >> 3) & 7 == 1
    prefix = (extradata[21] & 3) + 1
    return _Rules(one_layer, length_prefixed_marks(prefix, lambda byte: _HEVC[(byte >> 1) & 63]))


def _vp9(extradata: bytes) -> _Rules:
    del extradata
    return _Rules(skips=False, marks=_vp9_marks)


def _vp9_marks(data: memoryview) -> tuple[bool, bytes]:
    """`frame_marker` 2, profile below 3, a coded key frame that is shown (VP9 6.2)."""
    first = data[0]
    return first & 0xC0 == 0x80 and first & 0x30 != 0x30 and first & 0x0E == 0x02, b""


def _b_pictures(extradata: bytes) -> _Rules:
    del extradata
    return _Rules(skips=True, marks=None)


_SLICE, _IDR, _SET, _OTHER = "slice", "idr", "set", "other"

_H264 = [_OTHER] * 32
_H264[1:5] = [_SLICE] * 4
_H264[5] = _IDR
_H264[7] = _H264[8] = _H264[13] = _H264[15] = _SET
"""What a NAL unit of H.264 is, by its type (Table 7-1)."""

_HEVC = [_SLICE] * 32 + [_OTHER] * 32
_HEVC[19] = _HEVC[20] = _IDR
_HEVC[32:35] = [_SET] * 3
"""What a NAL unit of HEVC is, by its type (Table 7-1)."""


def length_prefixed_marks(prefix: int, kind: Callable[[int], str]) -> Marks:
    """The marks of packets whose NAL units begin with their length, as in MP4 and Matroska.

    Args:
        prefix: bytes of a length.
        kind: what a unit is, by its first byte: "slice", "idr", "set" or "other".
    """

    def marks(data: memoryview) -> tuple[bool, bytes]:
        kinds, sets, at, size = set(), b"", 0, len(data)
        while at + prefix < size:
            length = int.from_bytes(data[at : at + prefix], "big")
            at += prefix
            unit = kind(data[at])
            kinds.add(unit)
            if unit == _SET:
                sets += bytes(data[at : at + length])
            at += length
        return _IDR in kinds and _SLICE not in kinds, sets

    return marks


_CODECS: dict[str, Callable[[bytes], _Rules]] = {
    "h264": _h264,
    "hevc": _hevc,
    "mpeg1video": _b_pictures,
    "mpeg2video": _b_pictures,
    "mpeg4": _b_pictures,
    "vp9": _vp9,
}
"""The rules of a stream by its codec and extradata."""
