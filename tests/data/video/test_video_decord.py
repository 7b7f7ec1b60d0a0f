from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data.errors import InputError, UsageError
from data.video import DECODERS, FrameRequest, Video, View, open_decoder
from data.video.decord import checked_spans

pytest.importorskip("decord")

MakeVideo = Callable[..., Video]
ClipRequest = Callable[..., FrameRequest]


def test_decord_and_pyav_serve_nearly_the_same_pixels(
    make_video: MakeVideo, clip_request: ClipRequest
) -> None:
    video = make_video(ticks=range(90))
    request = clip_request(6, 0.5, View(48, crop=False))
    ours = list(open_decoder("pyav").windows(video, [request]))
    theirs = list(open_decoder("decord").windows(video, [request]))
    assert len(ours) == len(theirs) == 6
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.times_s, other.times_s, atol=1e-5)
        difference = np.abs(one.frames.astype(int) - other.frames)
        assert difference.mean() < 2  # a neighbouring frame differs by 30


def test_decord_and_pyav_agree_on_the_facts_that_both_know(make_video: MakeVideo) -> None:
    video = make_video("turned.mp4", rotation=90)
    ours, theirs = open_decoder("pyav").probe(video), open_decoder("decord").probe(video)
    assert (theirs.frames, theirs.width, theirs.height) == (ours.frames, ours.width, ours.height)
    assert theirs.duration_s == pytest.approx(ours.duration_s, abs=1e-5)
    assert theirs.codec == "unknown"


def test_a_part_is_served_by_decord_too(
    make_video: MakeVideo, index_of: Callable[[NDArray[np.uint8]], int]
) -> None:
    part = Video("part", make_video(ticks=range(90)).path, start_s=1.0, end_s=2.0)
    decoder = open_decoder("decord")
    assert decoder.probe(part).duration_s == pytest.approx(1.0, abs=1e-5)
    request = FrameRequest("a", np.array([[0.0, 0.5, 9.0]]), View(32, False), True)
    (window,) = decoder.windows(part, [request])
    assert [index_of(frame) for frame in window.frames] == [30, 45, 59]


def test_decord_refuses_a_file_whose_timestamps_it_gets_wrong(make_video: MakeVideo) -> None:
    with pytest.raises(InputError, match="decord gives wrong timestamps") as caught:
        open_decoder("decord").probe(make_video("old.avi"))
    assert caught.value.reason == "undecodable"


@pytest.mark.parametrize(
    "starts", [[-0.1, 0.0], [0.0, 0.2, 0.1], [0.0, 0.0], [0.0, float("nan")], [0.0, float("inf")]]
)
def test_timestamps_that_are_negative_not_increasing_or_no_numbers_are_refused(
    starts: list[float],
) -> None:
    spans = np.stack([starts, np.asarray(starts) + 0.1], axis=1)
    with pytest.raises(InputError, match="decord gives wrong timestamps"):
        checked_spans(Video("a", Path("a.mp4")), spans)


def test_decord_says_where_a_corrupted_file_stopped_it(shared: Path) -> None:
    video = Video("a", shared / "media" / "corrupted.mp4")
    with pytest.raises(InputError, match=r"stopped at frame \d+ of 50") as caught:
        open_decoder("decord").probe(video)
    assert caught.value.reason == "undecodable"


@pytest.mark.parametrize("tail", ["", "\0"])
def test_decord_opens_no_text_and_no_playlist(
    tail: str, make_video: MakeVideo, tmp_path: Path
) -> None:
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXTINF:1.0,\n{make_video('a.ts').path}\n#EXT-X-ENDLIST\n{tail}")
    with pytest.raises(InputError, match="it is a playlist, text, or a bare stream") as caught:
        open_decoder("decord").probe(Video("a", playlist))
    assert caught.value.reason == "not-media"


@pytest.mark.parametrize("name", ["pyav", "decord"])
def test_missing_and_empty_files_have_the_same_reasons_for_all_decoders(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "none.mp4").touch()
    reasons = []
    for file in ("no.mp4", "none.mp4"):
        with pytest.raises(InputError, match=file) as caught:
            open_decoder(name).probe(Video("a", tmp_path / file))
        reasons.append(caught.value.reason)
    assert reasons == ["missing", "empty"]


def test_an_unknown_decoder_is_answered_with_the_known_ones() -> None:
    with pytest.raises(
        UsageError, match=r"did you mean 'decord'.*allowed: decord, pyav, torchcodec"
    ):
        open_decoder("decode")
    assert DECODERS.names() == ["decord", "pyav", "torchcodec"]


def test_a_decoder_of_ones_own_is_opened_by_its_import_path() -> None:
    assert open_decoder("data.video.pyav:PyAVDecoder").name == "pyav"
    with pytest.raises(UsageError, match=r"'data\.video\.pyav:Nothing' cannot be imported"):
        open_decoder("data.video.pyav:Nothing")


def test_a_decoder_whose_library_is_missing_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(UsageError, match=r"pip install -c constraints.txt '\.\[pipeline\]'"):
        open_decoder("decord")
