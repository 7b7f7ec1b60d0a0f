"""Numbers of clauses that were counted elsewhere: `{"2579": 1, "9769": 0, ...}`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.annotations.types import Annotation
from data.errors import UsageError
from data.foreign import brief, json_object, read_limited
from data.identity import file_sha256
from training.cqval.parses import PARSERS, Counted, by_qid_text, check_complete

__all__ = ["Sidecar"]

_LIMIT = 64 * 2**20
"""Bytes; a million queries have a fifth."""

_MOST = 10_000
"""Clauses; no query that is read has so many characters."""


class Sidecar:
    """A JSON object from qid (as text) to number of clauses, for every query."""

    option: str | None = "--counts"
    default: str | None = None

    def __call__(self, annotations: Sequence[Annotation], given: str | None) -> Counted:
        """See `Source`."""
        path = Path(given or "")
        counts = json_object(read_limited(path, _LIMIT, "the numbers of clauses"), str(path))
        wanted = by_qid_text(annotations)
        remark = check_complete(wanted, counts, path)
        for qid in wanted:
            if type(counts[qid]) is not int or not 0 <= counts[qid] <= _MOST:
                raise UsageError(
                    f"{path}: qid {qid} has {brief(counts[qid])}; expected a whole number of "
                    f"clauses from 0 to {_MOST:,}"
                )
        return Counted(
            about={"source": "sidecar", "file": path.name, "sha256": file_sha256(path)},
            counts=[counts[qid] for qid in wanted],
            remarks=(
                "the clauses were counted elsewhere: which parser and labels is not known here",
                *((remark,) if remark else ()),
            ),
        )


PARSERS.register("sidecar")(Sidecar())
