"""How much faster is a trainer's random read from a store than from one npz per stream per video?

QVHighlights-shaped features: 75 clips, SlowFast 2304 and CLIP 512, float16. The other side is how
public loaders of this field keep features (specs/peers_formats_metrics.md §3.2): `np.load` of
`<stream>/<video>.npz`, key `features`. Both sides read the same videos in the same random order,
from the page cache, one process, and give the two arrays of a video; alternating, median of five.
The first pass of the store checks every CRC32; it is shown by itself.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import Benchmark, median_ratio
from numpy.typing import NDArray

from data.grid import Grid
from data.store import ItemKey, Recipe, Row, Schema, StageReader, Store, StreamSpec

STREAMS = {"slowfast": 2304, "clip": 512}
CLIPS = 75
SCALE_IDS = 100_000


def features(video: int, width: int) -> NDArray[np.float16]:
    """Seeded values; what they are does not matter to either side."""
    rng = np.random.default_rng([video, width])
    return rng.standard_normal((CLIPS, width), np.float32).astype(np.float16)


def write_store(path: Path, videos: list[str]) -> tuple[Store, float]:
    """The store, and the seconds that it took to write (fsync included)."""
    store = Store.create(path, dataset="benchmark", clip_len_s=2.0)
    seconds = 0.0
    for stream, width in STREAMS.items():
        schema = Schema({stream: StreamSpec((width,), "float16", "clip")})
        recipe = Recipe(stream, 1, {}, {}, schema)
        rows = [
            Row(ItemKey(id, "0" * 64), Grid(150.0, 2.0), {stream: features(number, width)})
            for number, id in enumerate(videos)
        ]
        start = time.perf_counter()
        with store.writer(recipe, target_bytes=32 << 20) as writer:
            for row in rows:
                writer.add(row)
        store.set_current({stream: recipe.id})
        seconds += time.perf_counter() - start
    return store, seconds


def write_npz(path: Path, videos: list[str]) -> None:
    """One file per stream per video, as the public feature packs have it."""
    for stream, width in STREAMS.items():
        (path / stream).mkdir(parents=True)
        for number, id in enumerate(videos):
            np.savez(path / stream / f"{id}.npz", features=features(number, width))


def read_store(readers: dict[str, StageReader], order: list[str]) -> float:
    """Read every video; the sum makes both ends of each array be touched."""
    total = 0.0
    for id in order:
        for stream, reader in readers.items():
            rows = reader.array(id, stream)
            total += float(rows[0, 0]) + float(rows[-1, -1])
    return total


def read_npz(path: Path, order: list[str]) -> float:
    """As `read_store`."""
    total = 0.0
    for id in order:
        for stream in STREAMS:
            with np.load(path / stream / f"{id}.npz", allow_pickle=False) as file:
                rows = file["features"]
            total += float(rows[0, 0]) + float(rows[-1, -1])
    return total


def seconds_to_open_many(path: Path) -> float:
    """Seconds to open a stage of 100,000 small items and list its ids."""
    store = Store.create(path, dataset="benchmark", clip_len_s=2.0)
    recipe = Recipe("probe", 1, {}, {}, Schema())
    with store.writer(recipe, target_bytes=4 << 20) as writer:
        for number in range(SCALE_IDS):
            key = ItemKey(f"video-{number:06}", f"{number:064x}")
            writer.add(Row(key, Grid(150.0, 2.0), facts={"fps": 25.0, "frames": number}))
    start = time.perf_counter()
    assert len(store.reader("probe", recipe.id).ids()) == SCALE_IDS
    return time.perf_counter() - start


def size_mb(path: Path) -> float:
    """Size of all files below a folder."""
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file()) / 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=300, help="how many videos")
    bench = Benchmark("How much faster is a random read from a store than from npz files?", parser)
    videos = [f"video_{number}_0.0_150.0" for number in range(bench.args.videos)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        store, write_s = write_store(root / "store", videos)
        write_npz(root / "npz", videos)
        order = [str(id) for id in np.random.default_rng(0).permutation(videos)]
        readers = {stream: store.reader(stream) for stream in STREAMS}
        start = time.perf_counter()
        total = read_store(readers, order)
        first_s = time.perf_counter() - start
        assert total == read_npz(root / "npz", order)
        npz_s, store_s, ratio = median_ratio(
            lambda: read_npz(root / "npz", order), lambda: read_store(readers, order)
        )
        count = len(videos)
        bench.figure("store, per video", 1e3 * store_s / count, "ms")
        bench.figure("npz, per video", 1e3 * npz_s / count, "ms")
        bench.figure("speed-up", ratio, "x", at_least=3)
        bench.figure("store, per video, first read with CRC32", 1e3 * first_s / count, "ms")
        bench.figure("store, size", size_mb(root / "store"), "MB")
        bench.figure("npz, size", size_mb(root / "npz"), "MB")
        bench.figure("store, writing with fsync", size_mb(root / "store") / write_s, "MB/s")
        open_s = seconds_to_open_many(root / "many")
        bench.figure("opening 100,000 items", open_s, "s", at_most=2)
    bench.finish()


if __name__ == "__main__":
    main()
