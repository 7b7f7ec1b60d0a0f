"""How far are the pixels of each decoder and mode from those of the ffmpeg command?

    python benchmarks/pixels.py [FILE ...] [--fps 1] [--json FILE]

The reference is what the public loaders run: `ffmpeg -vf fps=F,scale=W:H,crop=224:224:x:y -pix_fmt
rgb24` on the first video stream, in one thread. A figure is the mean absolute difference in grey
levels over all frames of a file; 0 is equal to the byte. Without files a film is rendered. A
decoder that refuses a file is told above the table.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from decode import render
from harness import Benchmark
from numpy.typing import NDArray

from data.errors import StorylineError
from data.video import FrameRequest, Video, VideoFacts, View, open_decoder
from data.video.convert import Geometry
from data.video.types import Mode

SIDE = 224
WAYS: tuple[tuple[str, Mode], ...] = (
    ("pyav", "exact"),
    ("pyav", "fast"),
    ("decord", "exact"),
    ("torchcodec", "exact"),
)


def main() -> None:
    """Compare every way on every file."""
    question = "Mean difference of pixels from those of the ffmpeg command, grey levels"
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--fps", type=float, default=1.0, help="frames per second")
    bench = Benchmark(question, parser)
    if shutil.which("ffmpeg") is None:
        print("nothing compared: the ffmpeg command is not installed")
        return
    with tempfile.TemporaryDirectory() as folder:
        files = bench.args.files or [render(Path(folder) / "film.mp4", 6).path]
        for file in files:
            measure(bench, file, bench.args.fps)
    bench.finish()


def measure(bench: Benchmark, file: Path, fps: float) -> None:
    """One file in every way; a way that refuses it is told."""
    video = Video("film", file)
    try:
        reference = ffmpeg_frames(file, open_decoder("pyav").probe(video), fps)
    except StorylineError as error:
        print(f"{file.name}: {error}")
        return
    if not len(reference):
        print(f"{file.name}: too short for a frame at {fps:g} fps")
        return
    times = (np.arange(len(reference)) + 0.5)[:, None] / fps
    for decoder, mode in WAYS:
        request = FrameRequest("pixels", times, View(SIDE, mode=mode))
        try:
            windows = list(open_decoder(decoder).windows(video, [request]))
        except StorylineError as error:
            print(f"{file.name}, {decoder}: {str(error)[:160]}")
            continue
        ours = np.concatenate([each.frames for each in windows])
        difference = np.abs(ours.astype(np.int16) - reference).mean()
        bench.figure(f"{file.name}: {decoder} {mode}", float(difference), "levels")


def ffmpeg_frames(file: Path, facts: VideoFacts, fps: float) -> NDArray[np.uint8]:
    """uint8 (n, 224, 224, 3) of the command line."""
    geometry = Geometry.of(facts.width, facts.height, View(SIDE))
    assert geometry.crop is not None
    side, x, y = geometry.crop
    filters = f"fps={fps},scale={geometry.width}:{geometry.height}:flags=bicubic"
    command = ["ffmpeg", "-v", "quiet", "-threads", "1", "-i", str(file), "-map", "0:v:0", "-vf"]
    command += [f"{filters},crop={side}:{side}:{x}:{y}", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, side, side, 3)


if __name__ == "__main__":
    main()
