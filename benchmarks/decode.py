"""What does sharing one decode between two feature streams save, and what does isolation cost?

    python benchmarks/decode.py [--check] [--seconds 20]

A 640x360 H.264 film with noise is rendered and decoded for two requests on clips of 2 s: CLIP (one
frame per clip) and SlowFast (32 frames per clip, every second one at 30 fps), both 224 x 224.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from harness import Benchmark, cpu_seconds, median_ratio

from data.grid import Grid
from data.video import Decoder, FrameRequest, IsolatedDecoder, Video, View, open_decoder

FPS = 30
CLIP_LEN_S = 2.0
SIZE = (640, 360)


def main() -> None:
    """Render, decode both ways, print."""
    question = "What does one decode for two streams save, and the child process cost?"
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--seconds", type=int, default=20, help="length of the film")
    bench = Benchmark(question, parser)
    seconds: int = bench.args.seconds
    with tempfile.TemporaryDirectory() as folder, IsolatedDecoder() as isolated:
        video = render(Path(folder) / "film.mp4", seconds)
        requests = both_requests(Grid(float(seconds), CLIP_LEN_S))
        decoder = open_decoder("pyav")
        isolated.probe(video)  # the child is running before anything is timed

        separate_s, shared_s, saving = median_ratio(
            lambda: [drain(decoder, video, [request]) for request in requests],
            lambda: drain(decoder, video, requests),
        )
        bench.figure("one decode per stream", separate_s, "s")
        bench.figure("one decode for both", shared_s, "s")
        bench.figure("separate / shared", saving, "x", at_least=1.2)
        bench.figure("shared, times real time", seconds / shared_s, "x")

        isolated_s, in_process_s, cost = median_ratio(
            lambda: drain(isolated, video, requests), lambda: drain(decoder, video, requests)
        )
        bench.figure("in the child process", isolated_s, "s")
        bench.figure("in this process", in_process_s, "s")
        bench.figure("child / in process", cost, "x", at_most=1.5)
        parent_s = cpu_seconds(lambda: drain(isolated, video, requests))
        bench.figure("CPU of the worker while its child decodes", parent_s, "s")
    bench.finish()


def drain(decoder: Decoder, video: Video, requests: Sequence[FrameRequest]) -> int:
    """Take all windows and drop them."""
    return sum(1 for _ in decoder.windows(video, requests))


def both_requests(grid: Grid) -> list[FrameRequest]:
    """What the `clip` and `slowfast` stages ask for, on the same crops."""
    view = View(224)
    strides = (np.arange(32) - 15.5) * 2 / FPS
    return [
        FrameRequest("clip", grid.centres_s[:, None], view),
        FrameRequest("slowfast", grid.centres_s[:, None] + strides, view, inclusive=True),
    ]


def render(path: Path, seconds: int) -> Video:
    """A film of drifting noise: as hard to decode as a natural one of the same size."""
    rng = np.random.default_rng(0)
    width, height = SIZE
    noise = rng.integers(0, 256, (height + 8, width * 2 + 8, 3), dtype=np.uint8)
    coarse = noise[::8, ::8].repeat(8, 0).repeat(8, 1)
    av.logging.set_level(av.logging.ERROR)
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "26"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(seconds * FPS):
            shift = number * 2 % width
            picture = coarse[:height, shift : shift + width] // 2 + rng.integers(
                0, 24, (height, width, 1), dtype=np.uint8
            )
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
    return Video("film", path)


if __name__ == "__main__":
    main()
