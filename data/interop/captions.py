"""Captions of a store as text: for people, for language models, for the captioner `precomputed`.

`captions` is one file: JSON lines with the whole record of each caption, or CSV in the columns that
LifelongMemory reads (`cid,vid,timestamp,caption`). `paragraphs` is a folder with the text of each
video, a line `t: caption` for each caption.
"""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.errors import StoreError, UsageError
from data.foreign import json_kind, strict_json
from data.identity import canonical_json, check_id
from data.interop.export import ExportReport, OutFolder
from data.registry import Registry
from data.store import StageReader, Store

__all__ = ["CAPTION_FORMATS", "CaptionExport", "caption_line", "export_captions", "paragraph"]

_STAGE = "captions"


@dataclass(frozen=True)
class _Caption:
    """One caption of a store.

    Args:
        video: its id.
        content: 64 hex of the video's content.
        index: which of the video.
        time_s: its timestamp, or the start of its clip.
        text: the caption; "" if it failed.
        record: how it came about.
    """

    video: str
    content: str
    index: int
    time_s: float
    text: str
    record: Mapping[str, Any]

    @property
    def line(self) -> str:
        """See `caption_line`."""
        return caption_line(self.time_s, self.text)


def caption_line(time_s: float, text: str) -> str:
    """`t: caption`, on one line whatever is in the caption."""
    return f"{_seconds(time_s)}: {' '.join(text.split())}"


def _seconds(time_s: float) -> str:
    """To microseconds, as the decoder tells frames apart; `g` would make 12345.67 of 12345.678."""
    return f"{time_s:.6f}".rstrip("0").rstrip(".")


def paragraph(captions: Iterable[_Caption]) -> str:
    """The text of one video: captions in time order, those that failed left out."""
    said = sorted((each for each in captions if each.text), key=lambda each: each.time_s)
    return "".join(f"{each.line}\n" for each in said)


@dataclass
class CaptionExport:
    """What is written, and what was found on the way.

    Args:
        reader: of the captions.
        ids: videos, in the order in which they are written.
        stop: whether to end early.
    """

    reader: StageReader
    ids: Sequence[str]
    stop: Callable[[], bool] = bool
    captions: int = 0
    failed: int = 0
    done: int = 0
    stopped: bool = field(default=False, init=False)

    def videos(self) -> Iterator[tuple[str, list[_Caption]]]:
        """The captions of each video."""
        for id_ in self.ids:
            if self.stop():
                self.stopped = True
                return
            found = self._of(check_id(id_))
            self.captions += len(found)
            self.failed += sum(not each.text for each in found)
            yield id_, found
            self.done += 1

    def _of(self, id_: str) -> list[_Caption]:
        row = self.reader.row(id_)
        columns = (row["time_s"].tolist(), row.texts["caption"], row.texts["record"])
        return [
            _Caption(id_, row.key.content, index, time_s, text, _record(record, id_, index))
            for index, (time_s, text, record) in enumerate(zip(*columns, strict=True))
        ]


def _record(text: str, id_: str, index: int) -> Mapping[str, Any]:
    """The record of a caption; the store may be a stranger's."""
    try:
        value = strict_json(text, whole=True)
    except ValueError as error:
        raise StoreError(
            f"the record of caption {index} of '{id_}' is not JSON that can be used: {error}; "
            "caption this video again"
        ) from None
    if not isinstance(value, dict):
        raise StoreError(
            f"the record of caption {index} of '{id_}' is {json_kind(value)}, expected an object; "
            "caption this video again"
        )
    return value


Write = Callable[[CaptionExport, Path, bool, Mapping[str, Any]], int]
"""(what, where, whether to overwrite, what a manifest says) -> files that were written."""

CAPTION_FORMATS: Registry[Write] = Registry("format of exported captions")


def export_captions(
    store: Store,
    out: Path,
    form: str,
    *,
    splits: Sequence[str] = (),
    overwrite: bool = False,
    stop: Callable[[], bool] = bool,
) -> ExportReport:
    """Write the captions that readers of a store are sent to.

    Args:
        store: the store, here or remote.
        out: FILE.jsonl or FILE.csv for `captions`, a folder for `paragraphs`.
        form: a name of `CAPTION_FORMATS`.
        splits: only videos of these; () takes all.
        overwrite: replace what is there.
        stop: whether to end early; a single file is then not there at all.

    Raises:
        UsageError: no captions, an unknown split, or something else is in the way.
        StoreError: rows that cannot be read; a file that cannot be written.
    """
    write = CAPTION_FORMATS.get(form)
    if _STAGE not in store.current:
        raise UsageError(
            f"store {store.path} has no captions; make some with: pipeline run --stage captions"
        )
    reader = store.reader(_STAGE)
    wanted = {row.video_id for split in splits for row in store.annotations(split)}
    there = reader.ids()
    work = CaptionExport(reader, [id_ for id_ in there if not splits or id_ in wanted], stop)
    manifest = {
        "format": form,
        "dataset": store.dataset,
        "splits": sorted(splits),
        "recipe": reader.recipe.to_json() | {"id": reader.recipe_id},
    }
    written = write(work, out, overwrite, manifest)
    missing = sorted(wanted - set(there))
    return ExportReport(
        out=str(out),
        layout=form,
        recipes={_STAGE: reader.recipe_id},
        files={"captions": work.captions, "videos": work.done},
        written=written,
        missing={_STAGE: missing} if missing else {},
        notes=[*_left_out(work, out)],
        interrupted=work.stopped,
    )


def _left_out(work: CaptionExport, out: Path) -> Iterator[str]:
    if work.failed and out.suffix != ".jsonl":
        yield f"{work.failed:,} captions failed and have no text; they were left out"


@CAPTION_FORMATS.register("captions")
def _one_file(work: CaptionExport, out: Path, overwrite: bool, manifest: Mapping[str, Any]) -> int:
    lines = {".jsonl": _json_lines, ".csv": _csv_lines}.get(out.suffix)
    if lines is None:
        raise UsageError(
            f"--out '{out}' must end in .jsonl (whole records) or .csv (cid,vid,timestamp,caption) "
            "for --format captions"
        )
    if out.exists() and not (overwrite and out.is_file()):
        raise UsageError(f"{out} is there already; give another name, or --overwrite")
    beside = out.with_name(f"{out.name}.recipe.json")
    written = _replace_streamed(out, lines(work, manifest["recipe"]["id"]), lambda: work.stopped)
    if written:
        text = json.dumps({**manifest, "videos": work.done}, indent=2, sort_keys=True) + "\n"
        _replace_streamed(beside, [text], bool)
    return written


def _json_lines(work: CaptionExport, recipe: str) -> Iterator[str]:
    for _, captions in work.videos():
        for each in captions:
            own = {
                "video_id": each.video,
                "content": each.content,
                "index": each.index,
                "time_s": each.time_s,
                "caption": each.text,
                "recipe": recipe,
            }
            yield canonical_json({**each.record, **own}) + "\n"


def _csv_lines(work: CaptionExport, recipe: str) -> Iterator[str]:
    del recipe
    yield "cid,vid,timestamp,caption\n"
    number = 0
    for _, captions in work.videos():
        for each in captions:
            if each.text:
                buffer = io.StringIO()
                row = (number, each.video, _seconds(each.time_s), " ".join(each.text.split()))
                csv.writer(buffer, lineterminator="\n").writerow(row)
                yield buffer.getvalue()
                number += 1


@CAPTION_FORMATS.register("paragraphs")
def _folder(work: CaptionExport, out: Path, overwrite: bool, manifest: Mapping[str, Any]) -> int:
    folder = OutFolder(out, manifest, overwrite)
    folder.begin()
    for id_, captions in work.videos():
        folder.put(f"{id_}.txt", paragraph(captions).encode())
    if not work.stopped:
        folder.end({"videos": work.done})
    return folder.written


def _replace_streamed(target: Path, lines: Iterable[str], stopped: Callable[[], bool]) -> int:
    """Write a file whole or not at all, without holding it in memory; how many were written."""
    temporary = target.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(6)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.writelines(lines)
        if stopped():
            return 0
        temporary.replace(target)
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return 1
