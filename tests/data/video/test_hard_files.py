"""The files that break extractors: what Storyline makes of each, in this process and in the child.

The files and what is expected of them are in `hard_rows`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hard_rows import BAD, GOOD, Good
from numpy.typing import NDArray

from data.errors import InputError
from data.video import FrameRequest, IsolatedDecoder, Video, VideoFacts, View, open_decoder

av = pytest.importorskip("av")


@pytest.fixture(scope="module")
def isolated() -> Iterator[IsolatedDecoder]:
    with IsolatedDecoder(fallbacks=()) as decoder:
        yield decoder


def index_of(pixels: NDArray[np.uint8]) -> int:
    """The index that a picture of `stripes` carries."""
    width = pixels.shape[1]
    centres = (np.arange(10) * width + width // 2) // 10
    return int((pixels[pixels.shape[0] // 2, centres, 1] > 127) @ 2 ** np.arange(10))


def requests(facts: VideoFacts, row: Good | None = None) -> list[FrameRequest]:
    """The centre of every clip (at most some hundred), and the times that the row names."""
    length_s = max(1.0, facts.duration_s / 300)
    centres = facts.grid(length_s).starts_s[:, None] + length_s / 2
    wanted = [FrameRequest("clip", centres, View(16))]
    if row and row.shows:
        times = np.array([list(row.shows)])
        wanted.append(FrameRequest("shows", times, View(32, crop=False), inclusive=True))
    return wanted


@pytest.mark.parametrize("name", GOOD)
def test_a_hard_file_gives_the_frames_that_are_in_it(
    name: str, tmp_path: Path, isolated: IsolatedDecoder
) -> None:
    row = GOOD[name]
    video = Video("a", row.make(tmp_path))
    decoder = open_decoder("pyav")
    facts = decoder.probe(video)
    if isinstance(row.frames, range):
        assert facts.frames in row.frames
        assert facts.duration_s == pytest.approx(row.duration_s, abs=0.5)
    else:
        assert facts.frames == row.frames
        assert facts.duration_s == pytest.approx(row.duration_s, abs=2e-3)
        assert facts.grid(1.0).n == row.n
    assert (facts.width, facts.height) == row.size
    assert facts.fps == pytest.approx(row.fps, rel=1e-2)
    assert bool(facts.damaged) == row.damaged
    assert isolated.probe(video) == facts
    own = list(decoder.windows(video, requests(facts, row)))
    theirs = list(isolated.windows(video, requests(facts, row)))
    assert len(own) == len(theirs) == min(facts.grid(1.0).n, 300) + bool(row.shows)
    for one, other in zip(own, theirs, strict=True):
        assert (one.request, one.unit) == (other.request, other.unit)
        np.testing.assert_array_equal(one.frames, other.frames)
        np.testing.assert_array_equal(one.times_s, other.times_s)
    shown = [index_of(frame) for each in own if each.request == "shows" for frame in each.frames]
    assert shown == list(row.shows.values())


@pytest.mark.parametrize("name", BAD)
def test_a_file_without_a_video_is_refused_with_its_reason(
    name: str, tmp_path: Path, isolated: IsolatedDecoder
) -> None:
    row = BAD[name]
    video = Video("a", row.make(tmp_path))
    request = FrameRequest("a", np.zeros((1, 1)), View(32))
    own = open_decoder("pyav")
    for attempt in (
        lambda: own.probe(video),
        lambda: list(own.windows(video, [request])),
        lambda: isolated.probe(video),
        lambda: list(isolated.windows(video, [request])),
    ):
        with pytest.raises(InputError) as caught:
            attempt()
        assert caught.value.reason == row.reason
        assert str(video.path) in str(caught.value)


@pytest.mark.parametrize("name", [name for name, row in GOOD.items() if row.ffprobe])
def test_ffprobe_counts_the_same_frames(name: str, tmp_path: Path) -> None:
    if shutil.which("ffprobe") is None:
        pytest.skip("the ffprobe command is not installed")
    path = GOOD[name].make(tmp_path)
    wanted = ["-select_streams", "v:0", "-count_frames", "-show_entries", "stream=nb_read_frames"]
    command = ["ffprobe", "-v", "quiet", *wanted, "-of", "csv=p=0", f"file:{path}"]
    counted = subprocess.run(command, check=False, capture_output=True, text=True).stdout.split()
    assert open_decoder("pyav").probe(Video("a", path)).frames == int(counted[0].strip(","))


@pytest.mark.parametrize("name", [name for name, row in GOOD.items() if row.decord is not None])
def test_decord_gives_the_same_frames_or_refuses(name: str, tmp_path: Path) -> None:
    pytest.importorskip("decord")
    row = GOOD[name]
    video = Video("a", row.make(tmp_path))
    decoder = open_decoder("decord")
    if not row.decord:
        with pytest.raises(InputError) as caught:
            decoder.probe(video)
        assert caught.value.reason == "undecodable"
        return
    facts = decoder.probe(video)
    assert (facts.frames, facts.width, facts.height) == (row.frames, *row.size)
    shows = [each for each in decoder.windows(video, requests(facts, row)) if each.frames.size]
    got = [index_of(frame) for each in shows if each.request == "shows" for frame in each.frames]
    assert got == list(row.shows.values())


def test_a_file_that_decord_refuses_is_decoded_by_the_fallback(tmp_path: Path) -> None:
    pytest.importorskip("decord")
    row = GOOD["edit list that cuts the beginning"]
    with IsolatedDecoder("decord", fallbacks=("pyav",)) as decoder:
        assert decoder.probe(Video("a", row.make(tmp_path))).frames == row.frames
        assert decoder.used == "pyav"


def test_real_files_equal_the_golden_facts_through_the_child(
    shared: Path, isolated: IsolatedDecoder
) -> None:
    """decode.json says what PyAV and ffprobe found (its README: how)."""
    golden = json.loads((shared / "golden/extractors/decode.json").read_text())["files"]
    present = [each for each in golden if (shared / "media" / each["file"]).exists()]
    assert present
    for each in present:
        facts = isolated.probe(Video("a", shared / "media" / each["file"]))
        assert facts.frames == each["tolerant_decode"]["frames"], each["file"]
        assert facts.damaged == each["tolerant_decode"]["packets_refused"], each["file"]
        assert facts.rotation == each["rotation"], each["file"]
        sides = each["stream"]["width"], each["stream"]["height"]
        turned = each["rotation"] % 180 != 0
        assert (facts.width, facts.height) == (sides[::-1] if turned else sides), each["file"]
        video = Video("a", shared / "media" / each["file"])
        windows = list(isolated.windows(video, requests(facts)))
        assert [window.unit for window in windows] == list(range(facts.grid(1.0).n))
