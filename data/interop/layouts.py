"""How the files of an export are called and what is in them, for each code that reads them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.registry import Registry

__all__ = ["LAYOUTS", "Layout", "Shaped"]


@dataclass(frozen=True)
class Shaped:
    """One file of an export.

    Args:
        path: from the folder of the export, with '/'.
        arrays: what it holds; a `.npy` file has one.
    """

    path: str
    arrays: Mapping[str, NDArray[Any]]

    def bytes(self) -> bytes:
        """The file; equal arrays give equal bytes."""
        buffer = io.BytesIO()
        if self.path.endswith(".npy"):
            (array,) = self.arrays.values()
            np.lib.format.write_array(buffer, array, allow_pickle=False)
        else:
            np.savez(buffer, allow_pickle=False, **self.arrays)
        return buffer.getvalue()


@dataclass(frozen=True)
class Layout:
    """A way to name files.

    Args:
        name: what it is called.
        video: path of a video's file; `{stream}` and `{id}` are put in.
        text: path of a query's file; `{qid}` is put in.
        told: who reads it.
        video_array: name of the array in a video's file.
        whole_text: whether a query's file has the pooled vector, too.
    """

    name: str
    video: str
    text: str
    told: str
    video_array: str = "features"
    whole_text: bool = True

    def video_file(self, stream: str, id: str, rows: NDArray[Any]) -> Shaped:
        """The file of one video."""
        return Shaped(self.video.format(stream=stream, id=id), {self.video_array: rows})

    def text_file(
        self, qid: int | str, tokens: NDArray[Any], pooled: NDArray[Any] | None
    ) -> Shaped:
        """The file of one query; token states are stored without padding."""
        arrays = {"last_hidden_state": tokens}
        if pooled is not None and self.whole_text:
            arrays["pooler_output"] = pooled.reshape(-1)
        return Shaped(self.text.format(qid=qid), arrays)


LAYOUTS: Registry[Layout] = Registry("format of an export")
"""All layouts by name."""

for _layout in (
    Layout(
        "moment-detr",
        "{stream}_features/{id}.npz",
        "clip_text_features/qid{qid}.npz",
        "Moment-DETR, QD-DETR, CG-DETR, UniVTG, Lighthouse",
    ),
    Layout(
        "npy",
        "{stream}/{id}.npy",
        "text/{qid}.npy",
        "VSLNet, UMT and everything that reads one array per video",
        whole_text=False,
    ),
):
    LAYOUTS.register(_layout.name)(_layout)
