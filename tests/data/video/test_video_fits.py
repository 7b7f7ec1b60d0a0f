"""Pictures of vision-language models: PIL's to the last grey level, through every decoder."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data.video import FrameRequest, IsolatedDecoder, Video, View, open_decoder
from data.video.fits import fit_picture, within_size
from data.video.wire import Job, Message

pytest.importorskip("av")
Image: Any = pytest.importorskip("PIL.Image")

MakeVideo = Callable[..., Video]
Pixels = NDArray[np.uint8]

GREY = (122, 116, 104)
SIZES = [(320, 180), (180, 320), (641, 359), (5, 3), (3, 5), (1, 1), (336, 336), (200, 200)]


def view(fit: Any, side: int = 336, mode: Any = "exact") -> View:
    return View(side, False, mode, fit, GREY)


def noise(width: int, height: int) -> Pixels:
    rng = np.random.default_rng([width, height])
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def padded_by_the_public_code(pixels: Pixels, side: int) -> Pixels:
    """`expand2square` and the resize of CLIPImageProcessor, as they read."""
    picture = Image.fromarray(pixels)
    width, height = picture.size
    long = max(width, height)
    square = Image.new("RGB", (long, long), GREY)
    square.paste(picture, ((long - width) // 2, (long - height) // 2))
    return np.asarray(square.resize((side, side), Image.Resampling.BICUBIC))


def test_padded_pictures_are_the_golden_ones(shared: Path) -> None:
    folder = shared / "golden" / "extractors"
    spec = importlib.util.spec_from_file_location("fill_ext", folder / "fill_ext.py")
    assert spec is not None
    assert spec.loader is not None
    rule = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rule)
    golden = json.loads((folder / "llava_image.json").read_text())
    assert tuple(golden["background_uint8"]) == GREY
    for each in golden["images"]:
        i = each["image"]
        frame = rule.make_frames(i["name"], i["t"], i["h"], i["w"], i["c"], i["salt"])[0]
        made = fit_picture(frame, view("padded"))
        assert hashlib.sha256(made.tobytes()).hexdigest() == each["uint8_336_sha256"], each["name"]


def pictures(root: Path) -> list[tuple[int, int, Any, int, str]]:
    """tests/golden/pictures: what Pillow 10.4 makes of noise, before Pillow changed its order."""
    golden = json.loads((root / "tests/golden/pictures/pillow_10_4.json").read_text())
    assert tuple(golden["background"]) == GREY
    return [(w, h, fit, side, sha) for w, h, fit, side, _, sha in golden["pictures"]]


def test_every_fit_is_that_of_the_pillow_of_the_public_code(root: Path) -> None:
    for width, height, fit, side, sha256 in pictures(root):
        made = np.ascontiguousarray(fit_picture(noise(width, height), view(fit, side)))
        assert hashlib.sha256(made.tobytes()).hexdigest() == sha256, (width, height, fit, side)


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 400), height=st.integers(1, 400), side=st.sampled_from([28, 56, 224, 337])
)
def test_padding_after_the_first_step_gives_the_bytes_of_padding_before_both(
    width: int, height: int, side: int
) -> None:
    frame = noise(width, height)
    made = fit_picture(frame, view("padded", side))
    np.testing.assert_array_equal(made, padded_by_the_public_code(frame, side))


@pytest.mark.parametrize("fit", ["padded", "cropped"])
@pytest.mark.parametrize("side", [56, 224, 336])
def test_fast_pictures_differ_by_a_grey_level_or_two_in_few_pixels(fit: Any, side: int) -> None:
    for size in [*SIZES, (853, 480), (480, 853)]:
        exact = fit_picture(noise(*size), view(fit, side)).astype(int)
        difference = np.abs(exact - fit_picture(noise(*size), view(fit, side, "fast")))
        assert difference.max() <= 2, size
        assert (difference.max(-1) > 0).mean() < 0.01, size


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((1280, 720), 448, (448, 252)),
        ((720, 1280), 448, (252, 448)),
        ((320, 180), 448, (320, 180)),
        ((448, 448), 448, (448, 448)),
        ((4000, 2), 448, (448, 1)),
        ((854, 480), 448, (448, 252)),
    ],
)
def test_within_makes_pictures_smaller_and_never_larger(
    size: tuple[int, int], side: int, expected: tuple[int, int]
) -> None:
    assert within_size(*size, side) == expected
    frame = noise(*size)
    made = fit_picture(frame, view("within", side))
    assert made.shape == (expected[1], expected[0], 3)
    if size == expected:
        np.testing.assert_array_equal(made, frame)


# --- through decoders


def at(video: Video, seconds: float, *views: View, decoder: Any = None) -> list[Pixels]:
    requests = [
        FrameRequest(str(index), np.array([[seconds]]), each, inclusive=True)
        for index, each in enumerate(views)
    ]
    windows = (decoder or open_decoder("pyav")).windows(video, requests)
    found = {each.request: each.frames[0].copy() for each in windows}
    return [found[each.name] for each in requests]


@pytest.mark.parametrize("name", ["nasa_13013.mp4", "bt709_full_range.mp4", "h265_video.mp4"])
def test_a_frame_is_made_rgb_as_the_ffmpeg_command_line_does_it(name: str, shared: Path) -> None:
    path = shared / "media" / name
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs the ffmpeg command")
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-i",
        str(path),
        "-map",
        "0:v:0",
        "-frames:v",
        "1",
        "-sws_flags",
        "bicubic",
    ]
    raw = subprocess.run(
        [*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], check=True, capture_output=True
    ).stdout
    facts = open_decoder("pyav").probe(Video("a", path))
    frame = np.frombuffer(raw, np.uint8).reshape(facts.height, facts.width, 3)
    large = max(facts.width, facts.height)
    own, padded = at(Video("a", path), 0.0, view("within", large), view("padded"))
    np.testing.assert_array_equal(own, frame)
    np.testing.assert_array_equal(padded, padded_by_the_public_code(frame, 336))


@pytest.mark.parametrize("fit", ["padded", "cropped", "within"])
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_the_decoding_child_makes_the_same_pictures(
    fit: Any, mode: Any, make_video: MakeVideo
) -> None:
    video, wanted = make_video(), view(fit, 60, mode)
    with IsolatedDecoder() as decoder:
        (there,) = at(video, 0.5, wanted, decoder=decoder)
    (here,) = at(video, 0.5, wanted)
    np.testing.assert_array_equal(there, here)
    assert here.shape == ((24, 60, 3) if fit == "within" else (60, 60, 3))


def test_fit_and_background_travel_to_the_child() -> None:
    wanted = View(56, False, "fast", "padded", (1, 2, 3))
    request = FrameRequest("a", np.array([[0.5]]), wanted)
    header, payload = Job("windows", "pyav", Video("a", Path("a.mp4")), (request,)).pack()
    read = json.loads(json.dumps(header))
    job = Job.unpack(Message(read, np.frombuffer(payload, np.uint8)))
    assert job.requests[0].view == wanted


def test_the_background_is_the_colour_that_was_asked_for(make_video: MakeVideo) -> None:
    red = View(80, False, "exact", "padded", (250, 3, 4))
    (picture,) = at(make_video(size=(160, 64)), 0.5, red)
    assert (picture[:20] == (250, 3, 4)).all()  # 64 of 160 rows: 16 of 40 in the middle, halved
    assert (picture[-20:] == (250, 3, 4)).all()
    assert not (picture[40] == (250, 3, 4)).all()


def test_a_turned_video_is_padded_upright(make_video: MakeVideo) -> None:
    plain, turned = make_video("plain.mp4"), make_video("turned.mp4", rotation=90)
    (before,), (after,) = (at(each, 0.5, view("padded", 160)) for each in (plain, turned))
    facts = open_decoder("pyav").probe(turned)
    upright = np.rot90(before, facts.rotation // 90)
    assert np.abs(after.astype(int) - upright).mean() < 2
    assert (after[:, :40] == GREY).all()


def test_pictures_within_a_size_stack_when_the_stream_changes_its_resolution(
    make_video: MakeVideo, tmp_path: Path
) -> None:
    wide = make_video("wide.ts", size=(160, 64), b_frames=0)
    tall = make_video("tall.ts", size=(96, 128), ticks=range(30, 60), b_frames=0)
    both = tmp_path / "both.ts"
    both.write_bytes(wide.path.read_bytes() + tall.path.read_bytes())
    request = FrameRequest("a", np.array([[0.2, 1.5]]), view("within", 80))
    (window,) = open_decoder("pyav").windows(Video("b", both), [request])
    assert window.frames.shape == (2, 32, 80, 3)
    assert window.times_s[1] > 1.0


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_other_decoders_show_nearly_the_same_pictures(backend: str, shared: Path) -> None:
    video = Video("a", shared / "media" / "nasa_13013.mp4")
    try:
        decoder = open_decoder(backend)
    except Exception as error:  # each library is optional and says in its own way what it lacks
        pytest.skip(f"needs {backend}: {error}")
    views = [view("padded"), view("cropped", 224), view("within", 300)]
    for ours, theirs in zip(
        at(video, 4.0, *views), at(video, 4.0, *views, decoder=decoder), strict=True
    ):
        assert ours.shape == theirs.shape
        # Their own conversion to RGB rounds otherwise; a neighbouring frame differs by 30.
        assert np.abs(ours.astype(int) - theirs).mean() < 3
