"""What a run was trained on, kept in its folder as `trained_on.json`.

    {"split": "train", "dataset": "charades_sta", "queries": 12404, "annotations_sha256": "…",
     "videos": [ids], "sources": [recordings that they were cut from],
     "queries_seen": [16 hex of a sha256 of video and words], "rows_seen": [… and moments]}

Whatever store and split a run is asked about later, its overlap is checked against this: splits of
one dataset are cut from the test videos of another (Charades-CD and -CG from Charades-STA).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.annotations.jsonl import jsonl_bytes
from data.annotations.leakage import Seen
from data.annotations.mend import mended
from data.annotations.types import Annotation
from data.errors import UsageError
from data.foreign import read_limited, strict_json
from data.store.files import atomic_write

__all__ = ["TrainedOn", "recall", "remember"]

_NAME = "trained_on.json"

_MAX_BYTES = 1 << 28
"""256 MiB: 50 bytes a query and 60 a video, for millions of both."""

_KEYS = {"videos": "videos", "sources": "sources", "queries": "queries_seen", "rows": "rows_seen"}
"""Fields of `Seen` and what they are called in the file."""


@dataclass(frozen=True)
class TrainedOn:
    """The training split of a run.

    Args:
        split: its name.
        dataset: name of the store's dataset.
        queries: how many.
        sha256: of the annotations in normal form, mended as they are trained on.
        seen: its rows as the file has them, queries, videos and their recordings.
    """

    split: str
    dataset: str
    queries: int
    sha256: str
    seen: Seen

    @classmethod
    def of(
        cls,
        rows: Sequence[Annotation],
        split: str,
        dataset: str,
        source_of: Callable[[str], str],
    ) -> TrainedOn:
        """The rows of a split that is trained on, as the file has them."""
        used, _ = mended(rows)
        kept = {row.qid for row in used}
        place = f"the training split '{split}'"
        seen = Seen.of(((place, row) for row in rows if row.qid in kept), source_of)
        return cls(split, dataset, len(used), hashlib.sha256(jsonl_bytes(used)).hexdigest(), seen)


def remember(folder: Path, trained: TrainedOn) -> None:
    """Write `trained_on.json` into the folder of a run."""
    seen = trained.seen.to_json()
    content = {
        "split": trained.split,
        "dataset": trained.dataset,
        "queries": trained.queries,
        "annotations_sha256": trained.sha256,
    } | {key: seen[name] for name, key in _KEYS.items()}
    atomic_write(folder / _NAME, (json.dumps(content, indent=1) + "\n").encode())


def recall(folder: Path) -> TrainedOn | None:
    """What the run in a folder was trained on; None if it did not write it down.

    Raises:
        UsageError: the file is there and is not what `remember` wrote.
    """
    path = folder / _NAME
    if not path.exists():
        return None
    content = read_limited(path, _MAX_BYTES, "what the run was trained on")
    try:
        return _parsed(strict_json(content))
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"'{path}' should say what the run was trained on and cannot be read ({error!r}); "
            "take it from a copy, or train again"
        ) from None


def _parsed(content: Any) -> TrainedOn:
    split, sha256 = str(content["split"]), str(content["annotations_sha256"])
    seen = {name: content[key] for name, key in _KEYS.items()}
    return TrainedOn(
        split,
        str(content["dataset"]),
        int(content["queries"]),
        sha256,
        Seen.from_json(seen, f"the training split '{split}'"),
    )
