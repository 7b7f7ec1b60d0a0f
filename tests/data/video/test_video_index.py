"""What an index is made of: packets, and the bits of codecs that say what may be left out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from data.video.index import _CODECS, Index, _Packets

IDR, SLICE = b"\0\0\0\2\x65\1", b"\0\0\0\2\x41\1"
SETS, OTHER_SETS = b"\0\0\0\2\x67\1", b"\0\0\0\2\x67\2"
AVCC = bytes([1, 66, 0, 30, 0xFF, 0xE1, 0])
"""Begins as ISO/IEC 14496-15 5.3.3.1 says; lengths of NAL units have 4 bytes."""


class Packet(bytes):
    """A packet's contents with its times."""

    pts: int | None
    dts: int | None
    is_discard = False


def packet(pts: int | None, contents: bytes = SLICE, dts: int | None = None) -> Packet:
    made = Packet(contents)
    made.pts, made.dts = pts, dts
    return made


def index(packets: Sequence[Packet], reorder_depth: int = 16, codec: str = "h264") -> Index | None:
    collected = _Packets(_CODECS[codec](AVCC))
    return collected.index(reorder_depth) if all(map(collected.take, packets)) else None


@pytest.mark.parametrize(
    ("shown", "depth"),
    [
        ([0, 1, 2], 0),
        ([0, 2, 1], 1),
        ([0, 3, 2, 1], 2),
        ([0, 8, 4, 2, 1, 3, 6, 5, 7], 3),  # a pyramid: 8, 4 and 2 are decoded before 1
        ([0, 40, *range(1, 40)], 1),
    ],
)
def test_a_stream_that_holds_back_more_frames_than_it_says_has_no_index(
    shown: list[int], depth: int
) -> None:
    packets = [packet(each) for each in shown]
    assert index(packets, depth) is not None
    assert index(packets, depth - 1) is None


def test_without_times_or_with_equal_ones_or_without_packets_there_is_no_index() -> None:
    assert index([packet(0), packet(None)]) is None
    assert index([packet(0), packet(1), packet(1)]) is None
    assert index([]) is None


def test_decoding_begins_at_idr_pictures_and_a_seek_goes_to_the_earlier_of_their_times() -> None:
    made = index([packet(0, IDR), packet(5, dts=1), packet(9, IDR, dts=7), packet(12, IDR)])
    assert made is not None
    assert made.starts.tolist() == [0, 2, 3]
    assert made.starts_ticks.tolist() == [0, 7, 12]


def test_where_parameter_sets_are_in_packets_a_start_repeats_them_and_all_are_equal() -> None:
    repeated = index([packet(0, SETS + IDR), packet(1, IDR), packet(2, SETS + IDR)])
    assert repeated is not None
    assert repeated.starts.tolist() == [0, 2]
    changed = index([packet(0, SETS + IDR), packet(1, OTHER_SETS + IDR)])
    assert changed is not None
    assert changed.starts.tolist() == []


@pytest.mark.parametrize(
    ("first", "start"),
    [
        # VP9 6.2: marker 10, profile (2 bits), show_existing, not_key, shown, resilient
        (0b1000_0010, True),
        (0b1010_0011, True),
        (0b1000_0000, False),  # a key frame that is not shown
        (0b1000_0110, False),  # not a key frame
        (0b1000_1010, False),  # shows an earlier frame
        (0b1011_0010, False),  # profile 3 has one more bit before these
        (0b0100_0010, False),  # no frame marker
    ],
)
def test_a_key_frame_of_vp9_is_told_by_its_first_byte(first: int, start: bool) -> None:
    marks = _CODECS["vp9"](b"").marks
    assert marks is not None
    assert marks(memoryview(bytes([first, 0]))) == (start, b"")


@pytest.mark.parametrize(("layers", "skips"), [(1, True), (2, False), (0, False)])
def test_hevc_leaves_frames_out_only_where_one_temporal_layer_is_stated(
    layers: int, skips: bool
) -> None:
    # ISO/IEC 14496-15 8.3.3.1: byte 21 has numTemporalLayers in bits 3 to 5, lengths in the last 2
    stated = bytes([1, *[0] * 20, layers << 3 | 3, 0])
    rules = _CODECS["hevc"](stated)
    assert rules.skips is skips
    assert rules.marks is not None
    assert rules.marks(memoryview(b"\0\0\0\2" + bytes([19 << 1, 1])))[0]  # IDR_W_RADL
    assert not rules.marks(memoryview(b"\0\0\0\2" + bytes([21 << 1, 1])))[0]  # CRA


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_streams_of_broadcasts_have_no_place_to_begin(codec: str) -> None:
    start_codes = b"\0\0\0\1\x67" + bytes(30)  # no box of MP4: NAL units follow start codes
    rules = _CODECS[codec](start_codes)
    assert rules.marks is None
    assert rules.skips is (codec == "h264")


@pytest.mark.parametrize(
    ("codec", "skips"),
    [("mpeg1video", True), ("mpeg2video", True), ("mpeg4", True), ("vp9", False)],
)
def test_older_codecs_leave_b_pictures_out_and_vp9_no_frame(codec: str, skips: bool) -> None:
    rules = _CODECS[codec](b"")
    assert rules.skips is skips
    assert (rules.marks is None) is skips  # only VP9 says where decoding may begin


def test_frames_that_an_edit_list_hides_are_not_shown() -> None:
    hidden = packet(0, IDR)
    hidden.is_discard = True
    made = index([hidden, packet(1)])
    assert made is not None
    assert made.shown.tolist() == [False, True]
