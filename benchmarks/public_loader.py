"""How public loaders of this field read features: the other side of `store.py`.

The steps of moment_detr's `StartEndDataset` and `start_end_collate`, which QD-DETR, CG-DETR and
others share (specs/peers_formats_metrics.md §3.2, §3.3), written plainly: one npz per stream per
video and per query; float32; L2 normalisation per row; streams side by side; clip edges; padding
to the longest of the batch with a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from data.annotations.types import Annotation

__all__ = ["PublicDataset", "collate"]

MAX_CLIPS, MAX_TOKENS = 75, 32


class PublicDataset(Dataset[tuple[Tensor, Tensor]]):
    """Video and text of one query.

    Args:
        root: `<stream>/<video>.npz` with `features`, `text/qid<n>.npz` with `last_hidden_state`.
        rows: the queries.
        streams: in the order of their columns.
    """

    def __init__(self, root: Path, rows: Sequence[Annotation], streams: Sequence[str]) -> None:
        self.root, self.rows, self.streams = root, rows, streams

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.video(index), self.text(index)

    def video(self, index: int) -> Tensor:
        """(L, 2818)."""
        streams = []
        for stream in self.streams:
            path = self.root / stream / f"{self.rows[index].video_id}.npz"
            rows = np.load(path)["features"][:MAX_CLIPS].astype(np.float32)
            streams.append(l2_normalise(rows))
        shortest = min(len(each) for each in streams)
        video = torch.from_numpy(np.concatenate([each[:shortest] for each in streams], axis=1))
        start = torch.arange(0, shortest, 1.0) / shortest
        edges = torch.stack([start, start + 1.0 / shortest], dim=1)
        return torch.cat([video, edges], dim=1)

    def text(self, index: int) -> Tensor:
        """(T, 512)."""
        path = self.root / "text" / f"qid{self.rows[index].qid}.npz"
        rows = np.load(path)["last_hidden_state"].astype(np.float32)[:MAX_TOKENS]
        return torch.from_numpy(l2_normalise(rows))


def l2_normalise(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """`x / (‖x‖₂ + 1e-5)` for each row."""
    normalised: NDArray[np.float32] = rows / (np.linalg.norm(rows, axis=-1, keepdims=True) + 1e-5)
    return normalised


def collate(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Videos, their mask, texts, their mask."""
    return (*pad([video for video, _ in samples]), *pad([text for _, text in samples]))


def pad(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(B, N, D) and the mask (B, N)."""
    lengths = [len(each) for each in rows]
    padded = torch.zeros(len(rows), max(lengths), rows[0].shape[1])
    mask = torch.zeros(len(rows), max(lengths))
    for number, (each, length) in enumerate(zip(rows, lengths, strict=True)):
        padded[number, :length] = each
        mask[number, :length] = 1
    return padded, mask
