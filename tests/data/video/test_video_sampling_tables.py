"""Every frame table of the public extractors, and what their loader makes of real files."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from data.video import FrameRequest, Video, View, open_decoder
from data.video.select import Picture, serve
from models.backbones import create

pytest.importorskip("av")

GOLDEN = "golden/extractors"
"""Of the shared folder; README.md there says how each number was made."""


def meta(shared: Path, name: str) -> Any:
    return json.loads((shared / GOLDEN / f"{name}.json").read_text())


def seconds(case: dict[str, Any]) -> list[float]:
    """Timestamps of a table's file from its start, as a decoder gives them."""
    pts, base = case["pts"], Fraction(case["time_base"])
    ticks = pts.get("list") or [pts["first"] + i * pts["step"] for i in range(pts["n"])]
    start = Fraction(case["container_start_time"])
    return [float(tick * base - start) for tick in ticks]


def numbered(index: int) -> Picture:
    def convert(_: View) -> NDArray[np.uint8]:
        return np.array([[[index % 256, index // 256, 0]]], np.uint8)

    return convert


def served(times_s: list[float], request: FrameRequest) -> list[list[int]]:
    """Native indices of the frames that each window gets."""
    frames = ((time_s, numbered(index)) for index, time_s in enumerate(times_s))
    return [
        (window.frames[:, 0, 0, 0] + 256 * window.frames[:, 0, 0, 1].astype(int)).tolist()
        for window in serve(frames, [request])
    ]


def at_rate(rate: float, n: int) -> FrameRequest:
    """The `n` outputs of ffmpeg's filter `fps=rate`."""
    return FrameRequest("a", (np.arange(n, dtype=np.float64)[:, None] + 0.5) / rate, View(1))


def test_every_table_of_the_public_clip_loader_is_reproduced(shared: Path) -> None:
    cases = meta(shared, "frame_sampling_clip")["cases"]
    for case in cases:
        rate = float(Fraction(*case["framerate_rational"]))
        got = served(seconds(case), at_rate(rate, len(case["selected"])))
        assert [index for (index,) in got] == case["selected"], case["name"]
    assert len(cases) == 40


def test_every_table_of_the_public_slowfast_loader_is_reproduced(shared: Path) -> None:
    cases = meta(shared, "frame_sampling_slowfast")["cases"]
    hero = create("slowfast", preset="tiny", calibrated=False, sampling="hero")
    for case in cases:
        times_s = seconds(case)
        resampled = served(times_s, at_rate(30.0, len(case["frames_at_30fps"])))
        assert [index for (index,) in resampled] == case["frames_at_30fps"], case["name"]

        clip_len_s = float(Fraction(case["clip_len"]))
        last_s = float(case["last_duration"] * Fraction(case["time_base"]))
        wanted = hero.clip_times(
            np.arange(len(case["clips"])) * clip_len_s,
            clip_len_s,
            native_fps=case["info_fps"],
            duration_s=times_s[-1] + last_s,
        )
        clips = served(times_s, FrameRequest("slowfast", wanted, View(1)))
        assert clips == case["clips"], case["name"]
    assert len(cases) == 13


LOADED = [
    "av1_video.mkv",
    "bt709_full_range.mp4",
    "corrupted.mp4",
    "h264_10bits.mp4",
    "h265_10bits.mp4",
    "h265_video.mp4",
    "nasa_13013.mp4",
]
"""The files that the public loader gives pictures for; it gives none for those of 0.1 s."""


@pytest.mark.parametrize("name", LOADED)
def test_pictures_of_real_files_are_those_of_the_public_clip_loader(
    name: str, shared: Path
) -> None:
    files = {each["file"]: each for each in meta(shared, "decode")["files"]}
    golden = load_file(shared / GOLDEN / "decode.safetensors")
    decoder = open_decoder("pyav")
    video = Video("a", shared / "media" / name)
    duration_s = decoder.probe(video).duration_s
    # Behind its broken packet two versions of FFmpeg guess differently.
    atol = 1.0 if name == "corrupted.mp4" else 0.05
    for clip_len_s in (1.0, 2.0):
        expected = files[name]["public_clip_loader"][str(clip_len_s)]
        # The loader's rule for short videos, which needs a duration in the stream's header.
        short = duration_s < clip_len_s + 0.1 and not name.endswith(".mkv")
        rate = 2 / max(int(duration_s), 1) if short else 1 / clip_len_s
        request = FrameRequest("a", at_rate(rate, expected["n"]).times_s, View(224))
        pictures = np.stack([each.frames[0] for each in decoder.windows(video, [request])])
        for statistic, key in ((np.mean, "mean_rgb"), (np.std, "std_rgb")):
            got = np.stack([statistic(each.astype(float), axis=(0, 1)) for each in pictures])
            np.testing.assert_allclose(got, expected[key], atol=atol)
        if clip_len_s == 2.0:
            cells = pictures.reshape(len(pictures), 28, 8, 28, 8, 3).astype(float).mean((2, 4))
            alike = 1 if name == "corrupted.mp4" else len(cells)
            grid = golden[f"{name}/clip_len2_crop224_grid"]
            np.testing.assert_allclose(cells[:alike], grid[:alike], atol=0.1)
            first = golden.get(f"{name}/clip_len2_crop224_first")
            if first is not None:
                np.testing.assert_array_equal(pictures[0], first)


def test_sampled_frames_of_real_files_have_the_measured_times_and_colours(shared: Path) -> None:
    files = meta(shared, "decode")["files"]
    for each in files:
        base = float(Fraction(each["stream"]["time_base"]))
        times = [(sample["pts"] - each["first_pts"]) * base for sample in each["samples"]]
        short = min(each["stream"]["width"], each["stream"]["height"])
        request = FrameRequest("a", np.array(times)[:, None], View(short, False), inclusive=True)
        windows = list(
            open_decoder("pyav").windows(Video("a", shared / "media" / each["file"]), [request])
        )
        used = [float(window.times_s[0]) for window in windows]
        assert used == pytest.approx(times, abs=1e-9), each["file"]
        for window, sample in zip(windows, each["samples"], strict=True):
            colours = window.frames[0].astype(float).mean((0, 1))
            # The fixture allows 1.0 for RGB; its rotated files are upright here, with equal means.
            np.testing.assert_allclose(colours, sample["rgb24"]["mean"], atol=1.0)
    assert len(files) == 12
