"""The rendered corpus of `data.synthetic`: rows as QVHighlights, clip length in `dataset.json`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from data.annotations.formats import DATASETS, PostProcessing, Ratings, Sample
from data.annotations.published import read_rows
from data.annotations.qvhighlights import RatedRow
from data.errors import UsageError
from data.foreign import read_limited, strict_json
from data.grid import SHORTEST_CLIP_S

__all__ = ["Synthetic"]

_MAX_BYTES = 1 << 20


class Synthetic:
    """Nothing is done to predictions: its moments are not bound to the grid."""

    name = "synthetic"
    clip_len_s: float | None = None
    post = PostProcessing()
    metrics: tuple[str, ...] = ("mr_hd",)
    ratings = Ratings()

    def records(self, path: Path) -> Iterator[RatedRow]:
        """The queries of a file."""
        return read_rows(path, RatedRow)

    def clip_len_at(self, path: Path) -> float:
        """`clip_len_s` of the `dataset.json` beside the annotations.

        Args:
            path: an annotation file, its folder, or the folder of the corpus.

        Raises:
            UsageError: there is none, or it does not say.
        """
        places = [folder / "dataset.json" for folder in (path, path.parent, path / "annotations")]
        found = [place for place in places if place.is_file()]
        if not found:
            raise UsageError(
                f"no dataset.json at {path} or beside it, and a synthetic corpus is rendered with "
                "one; name the folder of one, or the dataset `custom` for videos of your own"
            )
        try:
            stated = strict_json(read_limited(found[0], _MAX_BYTES, "the corpus"))
            clip_len_s = float(stated["clip_len_s"])
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{found[0]} has no usable 'clip_len_s': {error!r}") from None
        if not SHORTEST_CLIP_S <= clip_len_s < math.inf:
            raise UsageError(
                f"{found[0]}: 'clip_len_s' must be seconds, at least {SHORTEST_CLIP_S:g}, "
                f"got {clip_len_s}"
            )
        return clip_len_s

    def source_of(self, video_id: str) -> str:
        """The video itself."""
        return video_id

    def claims(self, sample: Sample) -> bool:
        """Its files look like anybody's; `custom` reads them in the same way."""
        del sample
        return False


DATASETS.register(Synthetic.name)(Synthetic())
