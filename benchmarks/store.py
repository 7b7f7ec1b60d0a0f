"""How much faster does a trainer read a store than one npz per stream per video?

    python benchmarks/store.py [--check] [--videos 2000]

QVHighlights-shaped features: 75 clips, SlowFast 2304 and CLIP 512, float16, and a query of 8 to 32
tokens on each video. The other side is how public loaders of this field keep and read features
(`public_loader`). Random reads give one query as the model takes it: (75, 2818) and (T, 512)
float32. An epoch gives shuffled padded batches of 32, video and text with their masks, by the
trainer's own reader (`training.data`) and by torch's DataLoader over the public code, with the same
number of workers. Both sides give the same tensors, which is checked.

Both read from the page cache, where the files are after they were written: no disk is measured.
Sides alternate; medians. Torch computes on one core in each thread and process of either side, as
it does in DataLoader's workers. The first epoch of the store, which checks every CRC32, is by
itself.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from harness import Benchmark, median_ratio
from numpy.typing import NDArray
from public_loader import PublicDataset, collate
from torch import Tensor
from torch.utils.data import DataLoader

from data.annotations.types import Annotation
from data.dataset import MomentDataset
from data.grid import Grid
from data.identity import query_id
from data.store import ItemKey, Recipe, Row, Schema, StageReader, Store, StreamSpec
from training.data import Order, StreamedQueries

STREAMS = {"slowfast": 2304, "clip": 512}
CLIPS, BATCH = 75, 32
CPU = torch.device("cpu")
SCALE_IDS = 100_000


def features(rows: int, width: int, *seed: int) -> NDArray[np.float16]:
    """Seeded values; what they are does not matter to either side."""
    rng = np.random.default_rng([width, *seed])
    return rng.standard_normal((rows, width), np.float32).astype(np.float16)


def tokens_of(number: int) -> NDArray[np.float16]:
    """Token states of the query of a video."""
    return features(8 + number % 25, 512, number, 1)


def annotations_of(videos: Sequence[str]) -> list[Annotation]:
    """One query on each video."""
    return [
        Annotation(number, f"query {number} on {id}", id, 150.0, ((10.0, 40.0),))
        for number, id in enumerate(videos)
    ]


def write_store(path: Path, videos: list[str]) -> tuple[Store, float]:
    """The store, and the seconds that it took to write its videos (fsync included)."""
    store = Store.create(path, dataset="benchmark", clip_len_s=2.0)
    seconds = 0.0
    for stream, width in STREAMS.items():
        recipe = Recipe(
            stream, 1, {}, {}, Schema({stream: StreamSpec((width,), "float16", "clip")})
        )
        with store.writer(recipe) as writer:
            for number, id in enumerate(videos):
                row = features(CLIPS, width, number)
                start = time.perf_counter()
                writer.add(Row(ItemKey(id, "0" * 64), Grid(150.0, 2.0), {stream: row}))
                seconds += time.perf_counter() - start
            start = time.perf_counter()
        seconds += time.perf_counter() - start
        store.set_current({stream: recipe.id})
    recipe = Recipe("queries", 1, {}, {}, Schema({"tokens": StreamSpec((512,), "float16", "item")}))
    with store.writer(recipe) as writer:
        for row in annotations_of(videos):
            key = ItemKey(query_id(row.query), "0" * 64)
            writer.add(Row(key, arrays={"tokens": tokens_of(int(row.qid))}))
    store.set_current({"queries": recipe.id})
    store.save_annotations("train", annotations_of(videos))
    return store, seconds


def write_npz(path: Path, videos: list[str]) -> None:
    """One file per stream per video and per query, as the public feature packs have it."""
    for stream, width in STREAMS.items():
        (path / stream).mkdir(parents=True)
        for number, id in enumerate(videos):
            np.savez(path / stream / f"{id}.npz", features=features(CLIPS, width, number))
    (path / "text").mkdir()
    for number in range(len(videos)):
        np.savez(path / "text" / f"qid{number}.npz", last_hidden_state=tokens_of(number))


def read_rows(readers: dict[str, StageReader], order: Iterable[str]) -> float:
    """Raw rows of every video; the sum makes both ends of each array be touched."""
    total = 0.0
    for id in order:
        for stream, reader in readers.items():
            rows = reader.array(id, stream)
            total += float(rows[0, 0]) + float(rows[-1, -1])
    return total


def read_rows_npz(path: Path, order: Iterable[str]) -> float:
    """As `read_rows`."""
    total = 0.0
    for id in order:
        for stream in STREAMS:
            with np.load(path / stream / f"{id}.npz", allow_pickle=False) as file:
                rows = file["features"]
            total += float(rows[0, 0]) + float(rows[-1, -1])
    return total


def our_batches(samples: MomentDataset, epoch: int, workers: int) -> Iterable[Sequence[Tensor]]:
    """One epoch as the trainer reads it."""
    order = Order(len(samples), BATCH).batches(epoch)
    for batch in StreamedQueries(samples, CPU, workers).read(order, None):
        x = batch.tensors
        yield x.video, x.video_mask, x.text, x.text_mask


def public_batches(dataset: PublicDataset, epoch: int, workers: int) -> Iterable[Sequence[Tensor]]:
    """The same epoch by the public code."""
    order = [rows.tolist() for rows in Order(len(dataset), BATCH).batches(epoch)]
    return DataLoader(dataset, batch_sampler=order, collate_fn=collate, num_workers=workers)


def consume(batches: Iterable[Sequence[Tensor]]) -> None:
    """Look at each batch as it comes."""
    for video, *_ in batches:
        float(video[0, 0, 0]) + float(video[-1, -1, -1])


def consume_one(videos: Iterable[Tensor | NDArray[np.float32]]) -> None:
    """Let go of each video before the next one is read."""
    for video in videos:
        assert len(video)


def check_same(one: Iterable[Sequence[Tensor]], other: Iterable[Sequence[Tensor]]) -> None:
    """Both give equal batches, to the rounding of float32."""
    for ours, theirs in zip(one, other, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.float(), b.float(), rtol=1e-5, atol=1e-6)


def reads(bench: Benchmark, samples: MomentDataset, public: PublicDataset) -> None:
    """One query after the other in random order, video and text as the model takes them."""
    order = np.random.default_rng(0).permutation(len(samples)).tolist()
    for row in order[:20]:
        video = torch.from_numpy(samples.together([row]).video[0])
        torch.testing.assert_close(video, public[row][0])
    slow, fast, ratio = median_ratio(
        lambda: consume_one(public[row][0] for row in order),
        lambda: consume_one(samples.together([row]).video for row in order),
    )
    bench.figure("random read, public loader, per query", 1e3 * slow / len(order), "ms")
    bench.figure("random read, store, per query", 1e3 * fast / len(order), "ms")
    bench.figure("random read, speed-up", ratio, "x", at_least=6)


def raw_reads(bench: Benchmark, store: Store, npz: Path) -> None:
    """The same without any arithmetic; also from two processes at once."""
    ids = np.random.default_rng(0).permutation(store.reader("clip").ids()).tolist()
    readers = {stream: store.reader(stream) for stream in STREAMS}
    assert read_rows(readers, ids) == read_rows_npz(npz, ids)
    _, fast, ratio = median_ratio(lambda: read_rows_npz(npz, ids), lambda: read_rows(readers, ids))
    bench.figure("raw rows, store, per video", 1e3 * fast / len(ids), "ms")
    bench.figure("raw rows, speed-up", ratio, "x", at_least=6)
    halves = [ids[::2], ids[1::2]]
    _, fast, ratio = median_ratio(
        lambda: in_processes(lambda some: read_rows_npz(npz, some), halves),
        lambda: in_processes(lambda some: read_rows(readers, some), halves),
    )
    bench.figure("raw rows, 2 processes, store, per video", 1e3 * fast / len(ids), "ms")
    bench.figure("raw rows, 2 processes, speed-up", ratio, "x")


def in_processes(work: Callable[[list[str]], object], shares: Sequence[list[str]]) -> None:
    """Each share in a forked process of its own, all at once."""
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work, args=(share,)) for share in shares]
    for each in processes:
        each.start()
    for each in processes:
        each.join()
        assert each.exitcode == 0


def epochs(bench: Benchmark, samples: MomentDataset, public: PublicDataset, repeats: int) -> None:
    """Whole epochs of shuffled batches, without workers, with one and with two."""
    start = time.perf_counter()
    consume(our_batches(samples, 0, 0))
    first_s = time.perf_counter() - start
    bench.figure("first epoch of the store, with CRC32", first_s, "s")
    for workers in (0, 1, 2):
        check_same(our_batches(samples, 1, workers), public_batches(public, 1, workers))
        slow, fast, ratio = median_ratio(
            lambda workers=workers: consume(public_batches(public, 2, workers)),
            lambda workers=workers: consume(our_batches(samples, 2, workers)),
            repeats,
        )
        name = f"epoch, {workers} workers" if workers else "epoch, one process"
        bench.figure(f"{name}, public loader", slow, "s")
        bench.figure(f"{name}, store", fast, "s")
        bench.figure(f"{name}, speed-up", ratio, "x", at_least=8)


def opening_many(bench: Benchmark, path: Path) -> None:
    """Opening 100,000 videos: facts only in few shards, and a feature stage in shards of 128 MB."""
    store = Store.create(path, dataset="benchmark", clip_len_s=2.0)
    probe = Recipe("probe", 1, {}, {}, Schema())
    with store.writer(probe, target_bytes=4 << 20) as writer:
        for number in range(SCALE_IDS):
            key = ItemKey(f"video-{number:06}", f"{number:064x}")
            writer.add(Row(key, Grid(150.0, 2.0), facts={"fps": 25.0, "frames": number}))
    # 75 clips of 64 numbers: as many shards as 1,000 hours of CLIP would be, on a small disk
    clip = Recipe("clip", 1, {}, {}, Schema({"clip": StreamSpec((64,), "float16", "clip")}))
    rows = features(CLIPS, 64, 0)
    sizes = []
    with store.writer(clip, target_bytes=16 << 20) as writer:
        for number in range(SCALE_IDS):
            id = f"{number:011x}_{number % 600:.1f}_{number % 600 + 150:.1f}"
            added = writer.add(Row(ItemKey(id, f"{number:064x}"), Grid(150.0, 2.0), {"clip": rows}))
            sizes += [added.size_bytes] if added else []
    for stage, recipe in (("probe", probe), ("clip", clip)):
        seconds = statistics.median(open_seconds(store, stage, recipe) for _ in range(3))
        shards = len(store.shards(stage, recipe.id))
        name = f"opening 100,000 items of {stage} in {shards} shards"
        bench.figure(name, seconds, "s", at_most=2)
    spread = (max(sizes) - min(sizes)) / statistics.mean(sizes)
    bench.figure("spread of the sizes of full shards", 100 * spread, "%", at_most=5)


def open_seconds(store: Store, stage: str, recipe: Recipe) -> float:
    """Seconds until the ids of a stage are listed."""
    start = time.perf_counter()
    assert len(store.reader(stage, recipe.id).ids()) == SCALE_IDS
    return time.perf_counter() - start


def size_mb(path: Path) -> float:
    """Size of all files below a folder."""
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file()) / 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=2000, help="how many videos")
    parser.add_argument("--repeats", type=int, default=3, help="epochs of each side")
    torch.set_num_threads(1)
    bench = Benchmark("How much faster does a trainer read a store than npz files?", parser)
    videos = [f"video{number:06}_0.0_150.0" for number in range(bench.args.videos)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        store, write_s = write_store(root / "store", videos)
        write_npz(root / "npz", videos)
        samples = MomentDataset(store, "train")
        public = PublicDataset(root / "npz", samples.annotations, tuple(STREAMS))
        epochs(bench, samples, public, bench.args.repeats)
        reads(bench, samples, public)
        raw_reads(bench, store, root / "npz")
        bench.figure("store, size", size_mb(root / "store"), "MB")
        bench.figure("npz, size", size_mb(root / "npz"), "MB")
        written_mb = sum(size_mb(root / "store" / stream) for stream in STREAMS)
        bench.figure("store, writing with fsync", written_mb / write_s, "MB/s")
        opening_many(bench, root / "many")
    bench.finish()


if __name__ == "__main__":
    main()
