"""How fast are features extracted, beside the way of the public extractors?

    python benchmarks/extract.py [--check] [--json FILE] [--seconds 30] [--repeats 3]
        [--parts rates,memory,engine] [--videos 200] [--executors inline,ray] [--minutes 60]

rates   decode-and-preprocess of one film, from the file to the uint8 clips that go to the networks,
        in CPU seconds of all processes: (a) as the public extractors do it, one pass and one array
        of the whole film per feature, with PyAV's filter graph (the bytes of their ffmpeg command)
        and with ffmpeg itself through a pipe where there is one; (b) Storyline exact; (c) fast.
        Targets (issue 5): for CLIP + SlowFast per core at least 1.8x (a) exact, 3x fast. Like for
        like is the sampling `hero`, whose frames are those of the public SlowFast features; the
        default `centered` takes other ones.
memory  peak of `pipeline run` (worker, decoder, torch) over a film of an hour in 720p: under 1 GB.
engine  200 short videos through `pipeline run`, inline and on Ray with a worker per core, CLIP and
        SlowFast: the time of workers in neither decoder nor network is under 10 %.

Rates of the networks on a GPU: benchmarks/networks.py.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from harness import Benchmark
from numpy.typing import NDArray
from processes import PeakMemory, tree_cpu_s
from rich.console import Console

from data.grid import Grid
from data.video import FrameRequest, IsolatedDecoder, Video, View
from models.backbones import Backbone, create
from pipeline.config import load_pipeline_config
from pipeline.engine.spent import TimeOfWorkers
from pipeline.engine.stop import StopFlag
from pipeline.progress import Progress
from pipeline.run import Run, look, ray_or_inline

FPS = 30
CLIP_LEN_S = 2.0
FILMS = {"360p": (640, 360, 150), "480p": (854, 480, 250)}
"""Width, height, pictures from one key frame to the next."""
STREAMS = (("clip",), ("clip", "slowfast"), ("clip", "slowfast", "i3d"))
SHORT_SIDES = {"clip": 224, "slowfast": 224, "i3d": 256}
PUBLIC_FPS = {"clip": 1 / CLIP_LEN_S, "slowfast": 30.0, "i3d": 25.0}
TARGETS = {"exact": 1.8, "fast": 3.0}


def main() -> None:
    """Measure what is asked for and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=30, help="length of the films for the rates")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", default="rates,memory,engine")
    parser.add_argument("--videos", type=int, default=200, help="short videos for the engine")
    parser.add_argument("--executors", default="inline,ray")
    parser.add_argument("--minutes", type=int, default=60, help="length of the 720p film")
    bench = Benchmark("How fast are features extracted?", parser)
    parts = {"rates": rates, "memory": memory, "engine": engine}
    with tempfile.TemporaryDirectory() as folder:
        for name in bench.args.parts.split(","):
            parts[name](bench, Path(folder))
    bench.finish()


# --- rates of decoding and preprocessing


def rates(bench: Benchmark, folder: Path) -> None:
    """All ways over both films; the median of interleaved repeats."""
    seconds: int = bench.args.seconds
    for size, (width, height, gop) in FILMS.items():
        film = render(folder / f"{size}.mp4", width, height, gop, seconds)
        with IsolatedDecoder() as decoder:
            decoder.probe(film)  # its child runs before anything is timed
            ways = ways_over(film, seconds, decoder)
            spent = interleaved(ways, bench.args.repeats)
        for name, (cpu_s, wall_s) in spent.items():
            pace = f"{seconds * FPS / cpu_s:,.0f} frames/s per core, {seconds / wall_s:.1f}x by the"
            bench.figure(f"{size} {name}: {pace} clock", seconds / cpu_s, "x realtime per core")
        for streams in STREAMS:
            tell_ratios(bench, size, "+".join(streams), {k: cpu for k, (cpu, _) in spent.items()})


def tell_ratios(bench: Benchmark, size: str, streams: str, cpu_s: Mapping[str, float]) -> None:
    """Storyline beside the public way. Only the like-for-like pair of the issue has a target."""
    public = cpu_s[f"{streams} (a) public, PyAV"]
    for mode, target in TARGETS.items():
        for sampling in ("hero", "centered"):
            ratio = public / cpu_s[f"{streams} {mode} {sampling}"]
            name = f"{size} {streams}: {mode} {sampling} / public"
            aimed = target if (streams, sampling) == ("clip+slowfast", "hero") else None
            bench.figure(name, ratio, "x per core", at_least=aimed)


def ways_over(
    film: Video, seconds: int, decoder: IsolatedDecoder
) -> dict[str, Callable[[], object]]:
    """Every way to the clips of every set of streams."""
    ways: dict[str, Callable[[], object]] = {}
    grid = Grid(float(seconds), CLIP_LEN_S)
    for streams in STREAMS:
        name = "+".join(streams)
        ways[f"{name} (a) public, PyAV"] = lambda s=streams: public_clips(film, s, pyav_frames)
        if shutil.which("ffmpeg"):
            ways[f"{name} (a) public, ffmpeg"] = lambda s=streams: public_clips(film, s, cli_frames)
        for mode in ("exact", "fast"):
            for sampling in ("hero", "centered"):
                wanted = requests(grid, streams, mode, sampling)
                ways[f"{name} {mode} {sampling}"] = lambda r=wanted: drain(decoder, film, r)
    return ways


def interleaved(
    ways: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, tuple[float, float]]:
    """Medians of (CPU seconds of all processes, wall seconds) of each way, taken in turns."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            cpu_s, wall_s = tree_cpu_s(), time.perf_counter()
            way()
            taken[name].append((tree_cpu_s() - cpu_s, time.perf_counter() - wall_s))
    return {
        name: (statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs))
        for name, pairs in taken.items()
    }


def drain(decoder: IsolatedDecoder, video: Video, wanted: Sequence[FrameRequest]) -> int:
    """Take all windows, as a worker does, and drop them."""
    return sum(int(window.frames[0, 0, 0, 0]) for window in decoder.windows(video, wanted))


def requests(grid: Grid, streams: Sequence[str], mode: Any, sampling: str) -> list[FrameRequest]:
    """What the stages ask for, at the size of the published networks."""
    return [
        FrameRequest(name, times_of(name, sampling, grid), View(SHORT_SIDES[name], mode=mode))
        for name in streams
    ]


def times_of(name: str, sampling: str, grid: Grid) -> NDArray[np.float64]:
    """Times of the frames of each clip; those of CLIP are the centres."""
    if name == "clip":
        return np.asarray(grid.centres_s)[:, None]
    options = (("sampling", sampling),) if name == "slowfast" else ()
    return _network(name, options).clip_times(
        grid.starts_s, CLIP_LEN_S, native_fps=float(FPS), duration_s=grid.duration_s
    )


@functools.cache
def _network(name: str, options: tuple[tuple[str, str], ...]) -> Backbone:
    """Asked for its frames only; building one takes seconds."""
    return create(name, preset="full", **dict(options))


# --- the public extractors' way


def public_clips(
    film: Video, streams: Sequence[str], frames_of: Callable[[Path, float, int], NDArray[np.uint8]]
) -> int:
    """One pass per feature, the whole film as an array, then its clips: uint8 (clips, T, H, W, 3).

    The filters and their arguments are those of HERO's loader; see specs/feature_extractors.md
    §2.0 to §2.3 for what is taken of the frames of each second.
    """
    total = 0
    for name in streams:
        frames = frames_of(film.path, PUBLIC_FPS[name], SHORT_SIDES[name])
        total += int(PUBLIC_CLIPS[name](frames)[0, 0, 0, 0, 0])
    return total


def hero_clips(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """32 of the 60 frames of every 2 s, as HERO picks them for a film of 30 frames per second."""
    length = round(30 * CLIP_LEN_S)
    clips = frames[: len(frames) // length * length].reshape(-1, length, *frames.shape[1:])
    index = np.minimum(np.linspace(0, 63, 32), length - 1).astype(int)
    return clips[:, index]


def i3d_clips(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """All frames of every 2 s."""
    length = round(25 * CLIP_LEN_S)
    return frames[: len(frames) // length * length].reshape(-1, length, *frames.shape[1:])


PUBLIC_CLIPS: Mapping[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "clip": lambda frames: frames[:, None],
    "slowfast": hero_clips,
    "i3d": i3d_clips,
}


def scaled(width: int, height: int, short: int) -> tuple[int, int, int, int]:
    """Size after scaling and the corner of the crop, as the public loaders compute them."""
    wide, high = int(width * short / height), short
    return wide, high, int((wide - 224) / 2), int((high - 224) / 2)


def pyav_frames(path: Path, fps: float, short: int) -> NDArray[np.uint8]:
    """`fps, scale, format=rgb24, crop` in this process: the same bytes as ffmpeg's."""
    frames: list[NDArray[np.uint8]] = []
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        stream.thread_type = "NONE"
        wide, high, x, y = scaled(stream.width, stream.height, short)
        graph = av.filter.Graph()
        graph.threads = 1  # its threads would only add CPU time to the side that is compared with
        nodes = [
            graph.add_buffer(template=stream),
            graph.add("fps", f"{fps}"),
            graph.add("scale", f"{wide}:{high}"),
            graph.add("format", "rgb24"),
            graph.add("crop", f"224:224:{x}:{y}"),
            graph.add("buffersink"),
        ]
        graph.link_nodes(*nodes).configure()
        for frame in film.decode(stream):
            graph.vpush(frame)
            pull(graph, frames)
        graph.vpush(None)
        pull(graph, frames)
    return np.stack(frames)


def pull(graph: Any, frames: list[NDArray[np.uint8]]) -> None:
    """All frames that the graph has ready."""
    while True:
        try:
            frames.append(graph.vpull().to_ndarray())
        except (av.error.BlockingIOError, av.error.EOFError):
            return


def cli_frames(path: Path, fps: float, short: int) -> NDArray[np.uint8]:
    """The public command itself, with ffmpeg's own choice of threads."""
    with av.open(str(path)) as film:
        size = film.streams.video[0].width, film.streams.video[0].height
    wide, high, x, y = scaled(*size, short)
    filters = f"fps={fps},scale={wide}:{high},crop=224:224:{x}:{y}"
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-vf", filters]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, 224, 224, 3)


# --- memory


def memory(bench: Benchmark, folder: Path) -> None:
    """`pipeline run` as a user starts it, over one long film."""
    minutes: int = bench.args.minutes
    source = render(folder / "source.mp4", 1280, 720, 250, 10, noise=4)
    videos = folder / "long"
    videos.mkdir()
    repeat(source.path, videos / "film.mp4", 6 * minutes)
    config = config_file(folder, "long", videos, "inline")
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "run"]
    began = time.perf_counter()
    with (
        subprocess.Popen([*command, "--config", str(config)], stdout=subprocess.DEVNULL) as running,
        PeakMemory(running.pid) as peak,
    ):
        code = running.wait()
    if code != 0:
        raise SystemExit(f"pipeline run over the long film ended with exit code {code}")
    bench.figure(
        f"probe + clip + slowfast of {minutes} min of 720p", time.perf_counter() - began, "s"
    )
    bench.figure("peak memory of all its processes", peak.peak_mb, "MB", at_most=1000)


def repeat(source: Path, target: Path, times: int) -> None:
    """The packets of a film again and again, with shifted timestamps: nothing is encoded."""
    with av.open(str(source)) as film, av.open(str(target), "w") as out:
        stream = film.streams.video[0]
        copy = out.add_stream_from_template(stream)
        packets = [packet for packet in film.demux(stream) if packet.dts is not None]
        stored = [(bytes(each), each.pts, each.dts, each.is_keyframe) for each in packets]
        step = int(Fraction(1, FPS) / stream.time_base)
        for turn in range(times):
            for data, pts, dts, key in stored:
                packet = av.Packet(data)
                shift = turn * len(stored) * step
                packet.pts, packet.dts, packet.is_keyframe = pts + shift, dts + shift, key
                packet.time_base, packet.stream, packet.duration = stream.time_base, copy, step
                out.mux(packet)


# --- the engine


def engine(bench: Benchmark, folder: Path) -> None:
    """Many short videos, inline and on Ray."""
    videos = short_videos(folder / "short", bench.args.videos)
    cores = os.cpu_count() or 1
    for executor in bench.args.executors.split(","):
        config = config_file(folder, executor, videos, executor)
        began = time.perf_counter()
        times = run_of(config)
        wall_s = time.perf_counter() - began
        tell_engine(bench, f"{executor}, {bench.args.videos} videos", times, wall_s, cores)


def tell_engine(
    bench: Benchmark, name: str, times: dict[str, TimeOfWorkers], wall_s: float, cores: int
) -> None:
    """Where the time of the workers went."""
    clips = bench.args.videos * SHORT_S / CLIP_LEN_S
    for stages, time_ in times.items():
        print(f"{name}: {stages}: {time_.sentence}; start {time_.starting_s:.1f} s")
    features = times["clip, slowfast"]
    bench.figure(f"{name}: wall, start to end, probe included", wall_s, "s")
    bench.figure(f"{name}: clips of both streams per second", clips / wall_s, "clips/s")
    for words, share in features.shares.items():
        bench.figure(f"{name}: {words}", 100 * share, "% of workers' time")
    bench.figure(f"{name}: engine's overhead", 100 * features.overhead, "%", at_most=10)
    share = features.work_s / (features.present_s + features.starting_s)
    bench.figure(f"{name}: the same, start of workers included", 100 * (1 - share), "%")


SHORT_S = 10
"""Length of a short video."""


def short_videos(folder: Path, count: int, films: int = 4) -> Path:
    """A few rendered films, copied under other titles, so that every file has its own hash."""
    folder.mkdir()
    sources = folder.parent / "sources"
    sources.mkdir()
    rendered = [render(sources / f"{n}.mp4", 640, 360, 150, SHORT_S, seed=n) for n in range(films)]
    for number in range(count):
        source, target = rendered[number % films].path, folder / f"v{number:04}.mp4"
        with av.open(str(source)) as film, av.open(str(target), "w") as out:
            out.metadata["title"] = f"film {number}"
            copy = out.add_stream_from_template(film.streams.video[0])
            for packet in film.demux(film.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = copy
                    out.mux(packet)
    return folder


def run_of(config: Path) -> dict[str, TimeOfWorkers]:
    """One `pipeline run` in this process; where the time of the workers went, by stage set."""
    loaded = load_pipeline_config(config)
    view = look(loaded, [], None)
    with StopFlag() as stop:
        job = Run(loaded, view, ray_or_inline(loaded), Progress(Console(quiet=True)), stop)
        result = job.run()
    if result.exit_code != 0:
        raise SystemExit(f"the run ended with exit code {result.exit_code}: {result.failures}")
    return {", ".join(names): time_ for names, time_ in result.times}


def config_file(folder: Path, name: str, videos: Path, executor: str) -> Path:
    """CLIP and SlowFast at narrow widths."""
    file = folder / f"{name}.yaml"
    stages = "probe: {}, clip: {preset: tiny}, slowfast: {preset: tiny}"
    file.write_text(
        f"stages: {{{stages}}}\nvideos: {{root: {videos}}}\nstore: {folder / f'{name}-store'}\n"
        f"engine: {{executor: {executor}}}\n"
    )
    return file


# --- films


def render(
    path: Path, width: int, height: int, gop: int, seconds: int, *, seed: int = 1, noise: int = 6
) -> Video:
    """ffmpeg's moving test picture under temporal noise, H.264 with B-frames (specs §3.3).

    With this noise 1.8 Mbit/s at 640x360 and 2.5 at 854x480: those of web video, or a little above.
    """
    graph = av.filter.Graph()
    nodes = [
        graph.add("testsrc2", f"size={width}x{height}:rate={FPS}"),
        graph.add("noise", f"alls={noise}:allf=t:all_seed={seed}"),
        graph.add("format", "yuv420p"),
        graph.add("buffersink"),
    ]
    graph.link_nodes(*nodes).configure()
    av.logging.set_level(av.logging.ERROR)
    with av.open(str(path), "w") as film:
        options = {"preset": "veryfast", "crf": "26", "g": str(gop), "bf": "3"}
        stream = film.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(seconds * FPS):
            film.mux(stream.encode(graph.vpull()))
        film.mux(stream.encode(None))
    return Video(path.stem, path)


if __name__ == "__main__":
    main()
