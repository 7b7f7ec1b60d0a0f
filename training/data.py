"""Batches of a split: features held on the device where they fit, else streamed by threads.

Both ways give equal batches in equal order. The order is a function of (seed, epoch), so resuming
in the middle of an epoch means skipping the batches that were done.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.annotations import Ratings
from data.annotations.types import Annotation
from data.dataset import Sample, Together
from models.retrieval.types import Batch, Side
from training.batch import (
    SUMS,
    Draw,
    QueryTruth,
    collate,
    numbers_of,
    other_texts,
    pad,
    query_info,
    side_streams,
    targets_of,
    truth_of,
)
from training.task import MomentBatch

__all__ = ["Order", "Queries", "ResidentQueries", "Samples", "StreamedQueries", "hold"]

Cache = Literal["auto", "device", "none"]

SHARE_OF_FREE_MEMORY = 0.5
"""Features may take so much of the free memory of a device; the rest is for the model."""

BATCHES_AHEAD = 2
"""So many batches of each worker may wait for the model."""

Rows = NDArray[np.int64]


class Samples(Protocol):
    """What a split of a store offers, e.g. `data.dataset.MomentDataset`."""

    @property
    def annotations(self) -> Sequence[Annotation]:
        """Of every sample, in order."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def together(self, rows: Sequence[int]) -> Together:
        """Some samples, their videos and texts padded."""
        ...


@dataclass(frozen=True)
class Order:
    """In which order the queries of a split are visited.

    Args:
        count: queries of the split.
        batch_size: queries per step and process.
        seed: of the shuffle.
        shuffle: a new order in each epoch; otherwise as in the file.
        rank, world: which of how many processes. With several, the order is padded from its own
            start to a multiple of their number and dealt out in turn, as DistributedSampler does.
    """

    count: int
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    rank: int = 0
    world: int = 1

    def batches(self, epoch: int) -> list[Rows]:
        """Rows of each batch of an epoch for this process."""
        rows = np.arange(self.count)
        if self.shuffle:
            np.random.default_rng([self.seed, epoch]).shuffle(rows)
        rows = np.resize(rows, self.count + -self.count % self.world)[self.rank :: self.world]
        return [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]

    def __len__(self) -> int:
        per_process = -(-self.count // self.world)
        return -(-per_process // self.batch_size)


class Queries(Protocol):
    """A split, ready to be read in batches."""

    about: str

    def read(self, batches: Sequence[Rows], draw: Draw | None) -> Iterator[MomentBatch]:
        """One batch on the device for each array of rows; targets only if `draw` is given."""
        ...


def hold(
    samples: Samples,
    device: torch.device,
    cache: Cache = "auto",
    workers: int = 0,
    ratings: Ratings = SUMS,
) -> Queries:
    """Choose how a split is held.

    Args:
        samples: the split.
        device: where batches go.
        cache: "device": all features in the memory of `device`; "none": read for each batch;
            "auto": the first if it fits, which `about` of the result says.
        workers: threads that read, where features are not held.
        ratings: how the scores of annotators become labels.
    """
    needed, free = _bytes_needed(samples), _free_memory(device)
    fits = needed <= SHARE_OF_FREE_MEMORY * free
    sizes = f"about {needed / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB are free on {device}"
    if cache == "device" or (cache == "auto" and fits):
        return ResidentQueries(samples, device, sizes, ratings)
    return StreamedQueries(samples, device, workers, sizes, ratings)


class ResidentQueries:
    """Features in padded tensors on the device; each video is held once, however many queries.

    Args:
        samples: read once, from first to last.
        device: where the tensors live.
        sizes: half a sentence for `about`.
        ratings: how the scores of annotators become labels.
    """

    def __init__(
        self, samples: Samples, device: torch.device, sizes: str = "", ratings: Ratings = SUMS
    ) -> None:
        self.device = device
        videos: dict[str, int] = {}
        shown: list[Sample] = []
        texts, others, self._infos, self._truths, video_rows = [], [], [], [], []
        for index in range(len(samples)):
            sample = samples[index]
            info = query_info(sample.annotation, sample.grid)
            if info.video_id not in videos:
                videos[info.video_id] = len(videos)
                shown.append(sample)
            texts.append(sample.text)
            others.append(sample.texts)
            video_rows.append(videos[info.video_id])
            self._infos.append(info)
            self._truths.append(truth_of(sample, ratings))
        self._video_rows = np.asarray(video_rows)
        self._clips = np.asarray([len(each.video) for each in shown])
        self._numbers = numbers_of(list(videos))
        self._sample_numbers = numbers_of([str(each.qid) for each in self._infos])
        self._video = pad([each.video for each in shown])[0].to(device)
        self._text = _Words.of(Side(*pad(texts)), device)
        self._texts = {name: _Words.of(each, device) for name, each in other_texts(others).items()}
        side, events, event_mask = side_streams(shown)
        self._side = {
            name: Side(each.x.to(device), each.mask.to(device)) for name, each in side.items()
        }
        self._events = None if events is None else events.to(device)
        self._event_counts = None if event_mask is None else event_mask.sum(1).numpy()
        held = f"features of {len(texts)} queries on {len(shown)} videos are held on {device}"
        self.about = f"{held} ({sizes})"

    def read(self, batches: Sequence[Rows], draw: Draw | None) -> Iterator[MomentBatch]:
        """See `Queries.read`."""
        for rows in batches:
            yield self._gather(rows, draw)

    def _gather(self, rows: Rows, draw: Draw | None) -> MomentBatch:
        videos = self._video_rows[rows]
        clips, text = self._clips[videos], self._gather_words(self._text, rows)
        video_index = self._index(videos)
        longest = int(clips.max())
        targets = (
            targets_of([(self._infos[i].qid, self._truths[i]) for i in rows], draw)
            if draw
            else None
        )
        events, event_mask = self._gather_events(videos, video_index)
        tensors = Batch(
            video=self._video[video_index, :longest],
            video_mask=self._mask(clips),
            text=text.x,
            text_mask=text.mask,
            side={
                name: Side(each.x[video_index, :longest], each.mask[video_index, :longest])
                for name, each in self._side.items()
            },
            texts={name: self._gather_words(each, rows) for name, each in self._texts.items()},
            events=events,
            event_mask=event_mask,
            video_ids=self._numbers[torch.from_numpy(videos)],
            sample_ids=self._sample_numbers[torch.as_tensor(np.asarray(rows))],
            targets=targets,
        )
        infos = tuple(self._infos[i] for i in rows)
        return MomentBatch(tensors, infos).to(self.device)

    def _gather_words(self, held: _Words, rows: Rows) -> Side:
        counts = held.counts[rows]
        return Side(held.x[self._index(rows), : int(counts.max())], self._mask(counts))

    def _gather_events(
        self, videos: Rows, video_index: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        if self._events is None or self._event_counts is None:
            return None, None
        counts = self._event_counts[videos]
        return self._events[video_index, : int(counts.max())], self._mask(counts)

    def _index(self, rows: Rows) -> Tensor:
        return torch.from_numpy(rows).to(self.device, non_blocking=True)

    def _mask(self, lengths: Rows) -> Tensor:
        mask = np.arange(int(lengths.max())) < lengths[:, None]
        return torch.from_numpy(mask).to(self.device, non_blocking=True)


@dataclass(frozen=True)
class _Words:
    """One embedding of all queries of a split.

    Args:
        x: (N, T, D) on the device, T that of the longest.
        counts: (N,) words of each.
    """

    x: Tensor
    counts: Rows

    @staticmethod
    def of(padded: Side, device: torch.device) -> _Words:
        return _Words(padded.x.to(device), padded.mask.sum(1).numpy())


class StreamedQueries:
    """Features read for each batch, by threads that work ahead.

    Threads and not processes: reading, checking and converting rows hold no interpreter lock, so
    they use several cores, a batch need not travel between processes (which costs more than to
    read it), and an error arrives as it was raised. They end with the pass that they read for.

    Args:
        samples: may be read by several threads at once.
        device: where batches go.
        workers: number of threads; 0 is one that reads a batch when it is asked for.
        sizes: half a sentence for `about`.
        ratings: how the scores of annotators become labels.
    """

    def __init__(
        self,
        samples: Samples,
        device: torch.device,
        workers: int,
        sizes: str = "",
        ratings: Ratings = SUMS,
    ) -> None:
        self.device = device
        self._samples, self._workers, self._ratings = samples, workers, ratings
        self._truths: dict[int, QueryTruth | None] = {}
        self.about = f"features are read for each batch by {workers} workers ({sizes})"

    def read(self, batches: Sequence[Rows], draw: Draw | None) -> Iterator[MomentBatch]:
        """See `Queries.read`.

        Raises:
            DamageError: a row is not what was written; no batch holds anything of it.
        """
        ahead = BATCHES_AHEAD * self._workers
        waiting: deque[Future[MomentBatch]] = deque()
        rest = iter(batches)
        pool = ThreadPoolExecutor(max(self._workers, 1), "reader", initializer=_stay_on_one_core)
        try:
            while True:
                some = islice(rest, 1 + ahead - len(waiting))
                waiting.extend(pool.submit(self._batch, rows, draw) for rows in some)
                if not waiting:
                    return
                yield waiting.popleft().result().to(self.device)
        finally:
            pool.shutdown(cancel_futures=True)

    def _batch(self, rows: Rows, draw: Draw | None) -> MomentBatch:
        numbers: list[int] = rows.tolist()
        together = self._samples.together(numbers)
        if draw is None:
            return collate(together, None)
        truths = [self._truth(*each) for each in zip(numbers, together.samples, strict=True)]
        return collate(together, draw, truths)

    def _truth(self, row: int, sample: Sample) -> QueryTruth | None:
        """Made once for each query: it does not depend on the epoch."""
        if row not in self._truths:
            self._truths[row] = truth_of(sample, self._ratings)
        return self._truths[row]


def _stay_on_one_core() -> None:
    """Of this thread only. Several for a video of a megabyte gain little, and lose all of it where
    another process wants the cores, because OpenMP's threads wait for each other by spinning.
    """
    torch.set_num_threads(1)


def _bytes_needed(samples: Samples, looked_at: int = 32) -> int:
    """Estimated bytes of `ResidentQueries`, from samples across the split.

    There every video is held once, and all are padded to the longest.
    """
    rows = np.unique(np.linspace(0, len(samples) - 1, looked_at).astype(int))
    seen = [samples[int(row)] for row in rows]
    videos = len({each.video_id for each in samples.annotations})
    longest_video = max(_bytes(each.video, each.narrative, each.events) for each in seen)
    longest_text = max(_bytes(each.text, *each.texts.values()) for each in seen)
    return videos * longest_video + len(samples) * longest_text


def _bytes(*arrays: NDArray[np.float32] | None) -> int:
    return sum(array.nbytes for array in arrays if array is not None)


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
