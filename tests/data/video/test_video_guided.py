"""Packets that nobody needs are left out, and nothing changes by it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from hard_media import Clip
from hard_media import write as write_clip
from hard_rows import UNSHIFTED
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import InputError
from data.video import FrameRequest, Video, View, Window
from data.video.checks import unheard
from data.video.convert import Converter
from data.video.guided import UnforeseenError, guided_frames
from data.video.index import Index, index_of, length_prefixed_marks
from data.video.limits import DEFAULT_LIMITS, VideoLimits
from data.video.plan import Feed, Plan, planned
from data.video.pyav import PyAVDecoder
from data.video.select import Selection

av = pytest.importorskip("av")

MakeVideo = Callable[..., Video]


@dataclass(frozen=True)
class Film:
    """How a small film is written."""

    codec: str = "libx264"
    container: str = "mp4"
    ticks: Sequence[int] = tuple(range(90))
    time_base: Fraction = Fraction(1, 30)
    options: dict[str, str] = field(default_factory=dict)
    b_frames: int = 2
    gop: int = 12

    def write(self, path: Path, size: tuple[int, int] = (96, 64)) -> Path:
        """Noise that drifts, so that every frame differs and refers to others."""
        noise = np.random.default_rng(0).integers(0, 255, (size[1], 400, 3), dtype=np.uint8)
        container = av.open(str(path), "w")
        stream = container.add_stream(self.codec, rate=30, options=dict(self.options))
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        codec = stream.codec_context
        codec.time_base, codec.gop_size, codec.thread_count = self.time_base, self.gop, 1
        codec.max_b_frames = self.b_frames
        for index, tick in enumerate(self.ticks):
            shift = index * 3 % 300
            picture = np.ascontiguousarray(noise[:, shift : shift + size[0]])
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = tick, self.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        container.close()
        return path


def x264(gop: int, *params: str, **other: Any) -> Film:
    joined = ":".join(("log-level=none", f"keyint={gop}", *params))
    return Film(options={"preset": "veryfast", "x264-params": joined}, gop=gop, **other)


def x265(gop: int, *params: str, container: str = "mp4") -> Film:
    joined = ":".join(("log-level=none", "pools=none", "frame-threads=1", f"keyint={gop}", *params))
    options = {"preset": "ultrafast", "x265-params": joined}
    return Film("libx265", container, options=options, gop=gop)


FILMS = {
    "h264 pyramid": x264(25, "bframes=3", "b-pyramid=normal"),
    "h264 open gop": x264(12, "bframes=3", "open-gop=1"),
    "h264 interlaced": x264(12, "bframes=2", "interlaced=1"),
    "h264 slices, headers": x264(12, "slices=3", "repeat-headers=1"),
    "h264 no keys": x264(250, "bframes=2", "intra-refresh=1"),
    "h264 keys only": x264(1),
    "h264 mkv": x264(12, "bframes=3", container="mkv"),
    "h264 ts": x264(12, "bframes=3", container="ts"),
    "h264 late": x264(12, ticks=tuple(range(2700, 2790)), container="mkv"),
    "hevc": x265(12, "bframes=3"),
    "hevc open gop mkv": x265(12, "bframes=3", "open-gop=1", container="mkv"),
    "hevc layers": x265(25, "bframes=4", "temporal-layers=3"),
    "mpeg4": Film("mpeg4", options={"bf": "2"}),
    "mpeg4 mkv": Film("mpeg4", "mkv", options={"bf": "2"}),
    "mpeg2": Film("mpeg2video", options={"bf": "2"}),
    "mpeg2 ts": Film("mpeg2video", "ts", options={"bf": "2"}),
    "vp9": Film("libvpx-vp9", "webm", options={"deadline": "realtime", "cpu-used": "8"}),
}
"""Each has an index; hypothesis draws others, such as variable rates, at random."""


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The files of `FILMS`, each written once."""
    folder, written = tmp_path_factory.mktemp("films"), dict[str, Path]()

    def get(name: str) -> Path:
        if name not in written:
            film = FILMS[name]
            path = folder / f"{len(written)}.{film.container}"
            written[name] = film.write(path)
        return written[name]

    return get


def requests(seed: int) -> list[FrameRequest]:
    """One or two requests at random times, some of them in no order."""
    draw = random.Random(seed)
    made = []
    for name in range(draw.randint(1, 2)):
        units, k = draw.choice([1, 3, 8]), draw.choice([1, 2, 4])
        times = np.array([draw.uniform(-0.1, 4) for _ in range(units * k)])
        times = np.sort(times) if draw.random() < 0.7 else times
        view = View(32, draw.random() < 0.5)
        made.append(FrameRequest(str(name), times.reshape(units, k), view, draw.random() < 0.5))
    return made


Delivered = list[tuple[str, int, bytes, bytes]]


def delivered(windows: Sequence[Window]) -> Delivered:
    return [(w.request, w.unit, w.frames.tobytes(), w.times_s.tobytes()) for w in windows]


def without_skipping(video: Video, wanted: Sequence[FrameRequest]) -> Delivered | str:
    """Everything is decoded: the plain pass that is also the fallback."""
    decoder = PlainDecoder()
    try:
        return delivered(list(decoder.windows(video, wanted)))
    except InputError as error:
        return error.reason


def with_skipping(video: Video, wanted: Sequence[FrameRequest]) -> Delivered | str:
    try:
        return delivered(list(PyAVDecoder().windows(video, wanted)))
    except InputError as error:
        return error.reason


class PlainDecoder(PyAVDecoder):
    """Never has an index, as for AVI."""

    def _guided(self, *_: Any, **__: Any) -> NoReturn:
        raise UnforeseenError


def guided_only(video: Video, wanted: Sequence[FrameRequest]) -> Delivered:
    """The guided pass without its fallback."""
    picture = Converter().picture
    frames = guided_frames(video, wanted, picture, unheard, DEFAULT_LIMITS)
    return delivered(list(Selection(wanted).serve(frames)))


@pytest.mark.parametrize("name", FILMS)
def test_windows_are_the_same_bytes_with_and_without_skipping(
    name: str, films: Callable[[str], Path]
) -> None:
    for seed in range(12):
        part = [(0.0, None), (0.0, None), (0.5, 2.0), (1.3, None)][seed % 4]
        video = Video("a", films(name), *part)
        wanted = requests(seed)
        expected = without_skipping(video, wanted)
        assert guided_only(video, wanted) == expected
        assert with_skipping(video, wanted) == expected


@pytest.mark.parametrize("hidden", [1, 7, 31])
@pytest.mark.parametrize("gop", [12, 250])
def test_frames_that_an_edit_list_hides_are_hidden_with_and_without_skipping(
    hidden: int, gop: int, tmp_path: Path
) -> None:
    """Cuts inside a group: frames before them are decoded and not shown."""
    clip = Clip(range(120), gop=gop, b_frames=3)
    path = write_clip(tmp_path / "a.mp4", clip, shift=-hidden, options=UNSHIFTED)
    index = index_of(Video("a", path), DEFAULT_LIMITS, unheard)
    assert index is not None
    assert 0 < int((~index.shown).sum()) < 120
    for seed in range(8):
        video, wanted = Video("a", path, *[(0.0, None), (1.3, 2.0)][seed % 2]), requests(seed)
        assert guided_only(video, wanted) == without_skipping(video, wanted)


films_of_any_kind = st.fixed_dictionaries(
    {
        "codec": st.sampled_from(["libx264", "libx264", "mpeg4", "libvpx-vp9"]),
        "container": st.sampled_from(["mp4", "mkv"]),
        "gop": st.sampled_from([1, 5, 12, 60]),
        "b_frames": st.integers(0, 4),
        "steps": st.lists(st.integers(1, 90), min_size=1, max_size=70),
    }
)


def any_film(
    folder: Path, *, codec: str, container: str, gop: int, b_frames: int, steps: list[int]
) -> Path:
    """A film with `steps` milliseconds between its frames."""
    options = {
        "libx264": {"preset": "ultrafast", "x264-params": f"log-level=none:keyint={gop}"},
        "mpeg4": {"bf": str(b_frames)},
        "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
    }[codec]
    ticks, base = np.cumsum(steps).tolist(), Fraction(1, 1000)
    film = Film(codec, container, ticks, base, options, b_frames if gop > 1 else 0, max(gop, 5))
    return film.write(folder / f"a.{container}")


def any_part(path: Path, draw: random.Random) -> Video:
    return Video("a", path, draw.choice([0.0, 0.4]), draw.choice([None, 1.0]))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(kind=films_of_any_kind, seed=st.integers(0, 10_000))
def test_no_film_of_any_rate_is_served_differently_by_skipping(
    tmp_path_factory: pytest.TempPathFactory, kind: dict[str, Any], seed: int
) -> None:
    path = any_film(tmp_path_factory.mktemp("any"), **kind)
    video = any_part(path, random.Random(seed))
    assert with_skipping(video, requests(seed)) == without_skipping(video, requests(seed))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(kind=films_of_any_kind, seed=st.integers(0, 10_000), damage=st.sampled_from([1, 2, 10]))
def test_a_damaged_film_is_served_or_refused_alike_with_and_without_skipping(
    tmp_path_factory: pytest.TempPathFactory, kind: dict[str, Any], seed: int, damage: int
) -> None:
    """Its pictures may differ: a decoder conceals with what it decoded before, and says nothing."""
    path, draw = any_film(tmp_path_factory.mktemp("any"), **kind), random.Random(seed)
    contents = bytearray(path.read_bytes())
    for _ in range(damage):
        contents[draw.randrange(len(contents) // 4, len(contents))] ^= 1 << draw.randrange(8)
    path.write_bytes(contents)
    video = any_part(path, draw)
    skipping, plain = (
        each if isinstance(each, str) else [window[:2] for window in each]
        for each in (with_skipping(video, requests(seed)), without_skipping(video, requests(seed)))
    )
    assert skipping == plain


# --- how much is left out ------------------------------------------------------------------------


def plan_of(video: Video, wanted: Sequence[FrameRequest], time_base: float) -> Plan:
    index = index_of(video, DEFAULT_LIMITS, unheard)
    assert index is not None
    plan = planned(index, video, wanted, 0, time_base)
    assert plan is not None
    return plan


def test_b_frames_and_rests_of_groups_are_not_decoded(films: Callable[[str], Path]) -> None:
    wanted = [FrameRequest("a", np.array([[0.01], [1.5]]), View(32), inclusive=True)]
    plan = plan_of(Video("a", films("h264 pyramid")), wanted, 1 / 15360)
    kinds = [Feed(each) for each in plan.feed]
    assert kinds[0] == Feed.DECODE
    assert kinds[1:25] == [Feed.DROP] * 24  # the rest of the first group of 25
    assert kinds.count(Feed.DECODE) == 2
    assert len(kinds) < 60  # nothing behind the last wanted frame


def test_a_part_begins_at_the_key_frame_before_it(films: Callable[[str], Path]) -> None:
    wanted = [FrameRequest("a", np.array([[0.0]]), View(32), inclusive=True)]
    plan = plan_of(Video("a", films("h264 pyramid"), start_s=2.0), wanted, 1 / 15360)
    assert plan.first == 50
    assert plan.seek_ticks is None  # so near the start reading is cheaper


def test_a_late_part_is_sought(tmp_path: Path) -> None:
    path = x264(30, ticks=tuple(range(900)), container="mkv").write(tmp_path / "long.mkv")
    video = Video("a", path, start_s=25.0)
    wanted = [FrameRequest("a", np.array([[0.0, 0.5], [3.0, 3.5]]), View(32))]
    plan = plan_of(video, wanted, 1e-3)
    assert plan.first >= 690
    assert plan.seek_ticks is not None
    calls: list[int] = []
    decoder = PyAVDecoder()
    index_of(video, decoder.limits, unheard)
    decoder.progress = lambda: calls.append(1)
    assert delivered(list(decoder.windows(video, wanted))) == without_skipping(video, wanted)
    assert 10 < len(calls) < 200  # one call a packet; 900 packets are in the file


def test_open_groups_are_no_place_to_begin(films: Callable[[str], Path]) -> None:
    index = index_of(Video("a", films("h264 open gop")), DEFAULT_LIMITS, unheard)
    assert index is not None
    assert index.starts.tolist() == [0]


def test_streams_of_several_temporal_layers_lose_no_frame(films: Callable[[str], Path]) -> None:
    one = index_of(Video("a", films("hevc")), DEFAULT_LIMITS, unheard)
    several = index_of(Video("a", films("hevc layers")), DEFAULT_LIMITS, unheard)
    assert one is not None
    assert one.skips
    assert several is not None
    assert not several.skips


def test_avi_and_av1_have_no_index_and_are_served(make_video: MakeVideo, shared: Path) -> None:
    wanted = [FrameRequest("a", np.array([[0.2, 0.9]]), View(32))]
    for video in (make_video("old.avi"), Video("a", shared / "media" / "av1_video.mkv")):
        assert index_of(video, DEFAULT_LIMITS, unheard) is None
        assert with_skipping(video, wanted) == without_skipping(video, wanted)


def test_an_index_takes_nine_bytes_a_frame(films: Callable[[str], Path]) -> None:
    index = index_of(Video("a", films("h264 pyramid")), DEFAULT_LIMITS, unheard)
    assert index is not None
    assert (index.pts.nbytes + index.shown.nbytes) / len(index.pts) == 9


def test_a_file_of_too_many_frames_is_refused_as_without_an_index(
    films: Callable[[str], Path],
) -> None:
    decoder = PyAVDecoder()
    decoder.limits = VideoLimits(max_frames=50)
    wanted = [FrameRequest("a", np.array([[2.9]]), View(32))]
    with pytest.raises(InputError, match="max_frames"):
        list(decoder.windows(Video("a", films("h264 ts")), wanted))


def test_a_file_that_changed_gets_a_new_index(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    counts = []
    for frames in (30, 60):
        x264(12, ticks=tuple(range(frames))).write(path)
        index = index_of(Video("a", path), DEFAULT_LIMITS, unheard)
        assert index is not None
        counts.append(len(index.pts))
    assert counts == [30, 60]


# --- files that are not as foreseen --------------------------------------------------------------


def test_after_a_refused_packet_the_windows_go_on_and_none_comes_twice(shared: Path) -> None:
    video = Video("a", shared / "media" / "corrupted.mp4")
    wanted = [FrameRequest("a", (np.arange(25)[:, None] + 0.5) / 5, View(32))]
    decoder = PyAVDecoder()
    windows = list(decoder.windows(video, wanted))
    assert [window.unit for window in windows] == list(range(25))
    assert delivered(windows) == without_skipping(video, wanted)
    assert decoder.damaged == 1
    with pytest.raises(UnforeseenError):
        guided_only(video, wanted)


def test_an_index_that_lies_is_found_out(
    films: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    video = Video("a", films("h264 pyramid"))
    wanted = [FrameRequest("a", np.array([[0.1], [0.5], [2.5]]), View(32))]
    honest = index_of(video, DEFAULT_LIMITS, unheard)
    assert honest is not None
    for pts in (honest.pts + 1, honest.pts[:-1], np.flip(honest.pts)):
        lying = Index(
            pts, honest.shown[: len(pts)], honest.starts, honest.starts_ticks, honest.skips
        )
        monkeypatch.setattr("data.video.guided.index_of", lambda *_, index=lying: index)
        assert with_skipping(video, wanted) == without_skipping(video, wanted)


# --- what packets say ----------------------------------------------------------------------------


def unit(*contents: int) -> bytes:
    return len(contents).to_bytes(4, "big") + bytes(contents)


@pytest.mark.parametrize(
    ("packet", "start", "sets"),
    [
        (unit(0x65, 1), True, b""),
        (unit(0x06, 5) + unit(0x65, 1) + unit(0x65, 2), True, b""),
        (unit(0x67, 7) + unit(0x68, 8) + unit(0x65, 1), True, b"\x67\x07\x68\x08"),
        (unit(0x41, 1), False, b""),
        (unit(0x65, 1) + unit(0x41, 1), False, b""),
        (b"", False, b""),
        (b"\xff\xff\xff\xff\x65", True, b""),
    ],
    ids=["idr", "sei, two slices", "headers", "other slice", "mixed", "empty", "wrong length"],
)
def test_marks_of_length_prefixed_packets(packet: bytes, start: bool, sets: bytes) -> None:
    kinds = {5: "idr", 1: "slice", 7: "set", 8: "set"}
    marks = length_prefixed_marks(4, lambda byte: kinds.get(byte & 31, "other"))
    assert marks(memoryview(packet)) == (start, sets)
