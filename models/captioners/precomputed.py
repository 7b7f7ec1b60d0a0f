"""`precomputed`: captions that are there already, in a file; nothing is decoded or asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data.errors import UsageError, nearest, some
from models.captioners.base import CAPTIONERS, Captioner, CaptionRequest, CaptionResult, Sight
from models.captioners.caption_files import (
    Reading,
    captions_of,
    check_columns,
    files_of,
    files_sha256,
)
from models.captioners.caption_table import SAME_TIME, CaptionTable, ForeignCaption
from models.captioners.guards import GUARDS_VERSION, caption_flags
from models.options import defaults_of

if TYPE_CHECKING:
    from models.weights import Checkpoint

__all__ = ["Precomputed"]

_IDS = ("exact", "stem")
_LARGEST_S = 1e6
_LOOKED_AT = 100  # rows, before a run starts


@CAPTIONERS.register("precomputed")
class Precomputed(Captioner):
    """Captions from a file, at the times that the file has. Forms: see `caption_files`.

    Args:
        checkpoint: none.
        seed: taken and not used.
        device: taken and not used.
        path: of the file or folder; what is in it is in the recipe, its name is not.
        columns: own names of columns, by `video`, `time`, `end`, `text`.
        unit_s: seconds that 1 in a column of times means.
        every_s: seconds between the captions of a plain list.
        offset_s: time of the first of them.
        ids: "exact", or "stem": `a/b.mp4` in the file is video `b`.
        same_time: what becomes of two captions of a video at one time: "refuse", "join", "first".
        guards: whether captions are flagged as generated ones are, where the file does not say.

    Raises:
        UsageError: no such file, or one that cannot be read.
    """

    name = "precomputed"
    has_weights = False
    works_here = False
    own_times = True
    follows_prompt = False
    machine_options = frozenset({"device", "path"})

    def __init__(
        self,
        checkpoint: Checkpoint | None = None,
        *,
        seed: int = 0,
        device: str = "cpu",
        path: str = "",
        columns: Mapping[str, str] | None = None,
        unit_s: float = 1.0,
        every_s: float = 1.0,
        offset_s: float = 0.0,
        ids: str = "exact",
        same_time: str = "refuse",
        guards: bool = True,
    ) -> None:
        del seed, device
        if checkpoint is not None:
            raise UsageError(
                "captioner precomputed has no checkpoint; its file is an option: {path: FILE}"
            )
        given = {"path": path, "columns": columns, "unit_s": unit_s, "every_s": every_s}
        file, reading = _checked(given | {"offset_s": offset_s, "ids": ids, "same_time": same_time})
        self.sight = Sight(frames=0, side=16)  # nothing is looked at
        self._source = file.name
        self._guards = guards
        self._sha256 = files_sha256(file)
        self._table = CaptionTable(captions_of(file, reading), str(file), same_time)

    @classmethod
    def recipe(
        cls, options: Mapping[str, Any], checkpoint: Checkpoint | None = None
    ) -> dict[str, Any]:
        """See `Captioner.recipe`; with the hash of the file instead of its name."""
        every = {**defaults_of(cls), **options}
        file, _ = _checked(every)
        own: dict[str, Any] = {"sha256": _remembered_sha256(file, _stamps(file))}
        if every["guards"]:
            own["guards"] = GUARDS_VERSION
        return super().recipe(options, checkpoint) | own

    @classmethod
    def check(cls, checkpoint: Checkpoint | None, options: Mapping[str, Any]) -> None:
        """See `Captioner.check`: the first rows of the file can be read."""
        del checkpoint
        for _ in islice(captions_of(*_checked({**defaults_of(cls), **options})), _LOOKED_AT):
            pass

    def params(self) -> dict[str, Any]:
        """See `Captioner.params`."""
        return {"captioner": "precomputed", "sha256": self._sha256, "captions": len(self._table)}

    def times_s(self, video: str) -> NDArray[np.float64]:
        """When there are captions of a video, ascending; none for one that the file lacks."""
        return self._table.times_s(video)

    def caption(self, requests: Sequence[CaptionRequest]) -> list[CaptionResult]:
        """See `Captioner.caption`; found by `video` and `time_s`."""
        return [self._one(request) for request in requests]

    def _one(self, request: CaptionRequest) -> CaptionResult:
        found = self._table.at(request.video, request.time_s)
        if found is None:
            return CaptionResult("", "failed", reason=self._missing(request))
        if not found.text:
            reason = found.reason or f"{self._source}, {found.where}: the caption is empty"
            return CaptionResult("", "failed", flags=found.flags or (), reason=reason)
        flags = self._flags(found)
        return CaptionResult(
            found.text,
            "flagged" if flags else "ok",
            flags=flags,
            new_tokens=len(found.text.split()),
            end_s=found.end_s,
        )

    def _flags(self, found: ForeignCaption) -> tuple[str, ...]:
        if found.flags is not None:
            return found.flags
        return caption_flags(found.text) if self._guards else ()

    def _missing(self, request: CaptionRequest) -> str:
        times = self._table.times_s(request.video)
        if not len(times):
            return (
                f"{self._source} has no captions of '{request.video}'; {self._like(request.video)}"
            )
        closest = times[np.abs(times - request.time_s).argmin()]
        return (
            f"{self._source} has no caption of '{request.video}' at {request.time_s:g} s, the "
            f"closest is at {closest:g} s"
        )

    def _like(self, video: str) -> str:
        with_stem = [name for name in self._table.videos if Path(name).stem == video]
        if with_stem:
            return f"it has {some(with_stem, 3)}: set ids: stem if that is the same"
        return nearest(video, self._table.videos)


def _checked(options: Mapping[str, Any]) -> tuple[Path, Reading]:
    """The file and how it is read; UsageError for the first option that cannot be."""
    what = "captioner precomputed"
    if not options["path"]:
        raise UsageError(
            f"{what}: path is missing: options: {{path: FILE}} (.csv, .jsonl, .json, or a folder "
            "of VIDEO_ID.txt)"
        )
    columns = options["columns"] or {}
    if not isinstance(columns, Mapping):
        raise UsageError(
            f"{what}: columns takes {{video: NAME, time: NAME, end: NAME, text: NAME}}"
        )
    check_columns(columns)
    for name, least in (("unit_s", 1e-9), ("every_s", 1e-9), ("offset_s", 0.0)):
        if not least <= options[name] <= _LARGEST_S:
            raise UsageError(
                f"{what}: {name} is {options[name]}; allowed: {least:g} to {_LARGEST_S:g} seconds"
            )
    for name, allowed in (("ids", _IDS), ("same_time", SAME_TIME)):
        if options[name] not in allowed:
            given = options[name]
            raise UsageError(f"{what}: {name}: unknown '{given}'; {nearest(str(given), allowed)}")
    names = ("unit_s", "every_s", "offset_s", "ids")
    reading = Reading(columns, **{name: options[name] for name in names})
    return Path(options["path"]).expanduser(), reading


Stamps = tuple[tuple[str, int, int], ...]


def _stamps(path: Path) -> Stamps:
    stats = [(each.name, each.stat()) for each in files_of(path)]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


@lru_cache(maxsize=8)
def _remembered_sha256(path: Path, stamps: Stamps) -> str:
    """Asked for several times in one command; a file that changes has another stamp."""
    del stamps
    return files_sha256(path)
