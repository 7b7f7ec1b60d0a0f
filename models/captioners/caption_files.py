"""Files of captions that others made, read with suspicion: CSV, JSON, JSON lines, folders of text.

Columns are found by their names, as the public projects write them (specs/tea_lmr_cqval_splits.md
§6): LifelongMemory's `cid,vid,timestamp,caption`, LLoVi's `{video: [a caption a second]}`,
ActivityNet Captions' `{video: {timestamps, sentences}}`, and what `pipeline export --format
captions|paragraphs` writes.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from data.errors import UsageError, nearest, some
from data.foreign import (
    LONGEST_LINE,
    MAX_LINES,
    brief,
    check_plain_file,
    json_kind,
    json_object,
    key_names,
    read_limited,
    strict_json,
    text_lines,
)
from data.identity import digest, file_sha256
from models.captioners.caption_table import ForeignCaption
from models.captioners.guards import FLAGS

__all__ = ["COLUMNS", "Reading", "captions_of", "files_of", "files_sha256"]

COLUMNS: dict[str, tuple[str, ...]] = {
    "video": ("video_id", "vid", "video", "video_uid", "uid", "video_name", "clip_uid"),
    "time": ("time_s", "timestamp", "time", "t", "start_s", "start", "start_time", "start_sec"),
    "end": ("end_s", "end", "end_time", "end_sec", "t_end"),
    "text": ("caption", "text", "narration", "narration_text", "description", "sentence"),
}
"""What is read, and the names it is found by, the first that is there."""

MOST_BYTES = 512 * 2**20
"""Of a JSON file, which is read whole; JSON lines and CSV have no such limit."""

LONGEST_CAPTION = 10_000
LATEST_S = 1e7
_LONGEST_NAME = 512
_CLOCK = re.compile(r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2}(?:[.,]\d{1,9})?)")


@dataclass(frozen=True)
class Reading:
    """How a file is read.

    Args:
        columns: own names for `COLUMNS`: `{video: clip, time: frame}`.
        unit_s: seconds that 1 in a column of times means; 0.001 for milliseconds.
        every_s: seconds between captions that are a plain list.
        offset_s: time of the first of them.
        ids: "exact", or "stem": `a/b.mp4` in the file is video `b`.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    unit_s: float = 1.0
    every_s: float = 1.0
    offset_s: float = 0.0
    ids: str = "exact"


def files_of(path: Path) -> list[Path]:
    """The file, or the text files of a folder by name; UsageError if there are none."""
    if not path.is_dir():
        check_plain_file(path, "the captions")
        return [path]
    found = sorted(path.glob("*.txt"))
    if not found:
        raise UsageError(
            f"the folder {path} holds no .txt: captions in a folder are one VIDEO_ID.txt for each "
            "video, with lines `SECONDS: caption` (pipeline export --format paragraphs)"
        )
    return found


def files_sha256(path: Path) -> str:
    """64 hex of what is in the file or folder: another name is the same captions."""
    files = files_of(path)
    try:
        if files == [path]:
            return file_sha256(path)
        return digest({each.name: file_sha256(each) for each in files})
    except OSError as error:
        raise UsageError(f"cannot read the captions {path}: {error.strerror or error}") from None


def captions_of(path: Path, reading: Reading) -> Iterator[ForeignCaption]:
    """Every caption of a file or folder, one by one.

    Raises:
        UsageError: a file that is not what its suffix says, a column that is missing, a row
            without a time; with the line.
    """
    form = _paragraphs if path.is_dir() else _FORMS.get(path.suffix.lower())
    if form is None:
        raise UsageError(
            f"the captions {path} have a suffix that is not known; allowed: "
            f"{', '.join(_FORMS)}, or a folder of VIDEO_ID.txt (unpack archives first)"
        )
    return form(path, reading)


# --- forms


def _csv(path: Path, reading: Reading) -> Iterator[ForeignCaption]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    rows = csv.reader(_csv_lines(path), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    try:
        for cells in rows:
            where = f"line {rows.line_num}"
            if not cells:
                continue  # a blank line
            if names is None:
                names = _header(cells, path)
                continue
            if len(cells) != len(names):
                raise UsageError(
                    f"{path}, {where}: {len(cells)} cells under a header of {len(names)} "
                    f"({', '.join(names)}); a caption with a comma stands in double quotes"
                )
            yield _caption(dict(zip(names, cells, strict=True)), path, where, reading)
    except csv.Error as error:
        raise UsageError(f"{path}, line {rows.line_num} is not CSV: {error}") from None


def _csv_lines(path: Path) -> Iterator[str]:
    """Lines with their ends, for quoted texts that span several."""
    check_plain_file(path, "the captions")
    try:
        with path.open("r", encoding="utf-8-sig", newline="") as file:
            number = 0
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise UsageError(
                        f"{path}, line {number} is longer than the {LONGEST_LINE:,} characters "
                        "that are read"
                    )
                if number > MAX_LINES:
                    raise UsageError(f"{path} has more than the {MAX_LINES:,} lines; split it")
                yield line
    except UnicodeDecodeError as error:
        raise UsageError(f"the captions {path} are not text in UTF-8 ({error.reason})") from None
    except OSError as error:
        raise UsageError(f"cannot read the captions {path}: {error.strerror or error}") from None


def _header(cells: list[str], path: Path) -> list[str]:
    names = [cell.strip() for cell in cells]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise UsageError(f"{path}: the header names {brief(twice)} twice; rename one")
    return names


def _json_lines(path: Path, reading: Reading) -> Iterator[ForeignCaption]:
    for number, line in text_lines(path, "the captions"):
        where = f"line {number}"
        yield _caption(json_object(line, f"{path}, {where}"), path, where, reading)


def _json(path: Path, reading: Reading) -> Iterator[ForeignCaption]:
    """An object of videos, or a list of rows."""
    try:
        whole = strict_json(read_limited(path, MOST_BYTES, "the captions"))
    except ValueError as error:
        raise UsageError(f"the captions {path} are not JSON that can be used: {error}") from None
    if isinstance(whole, dict):
        for video, value in whole.items():
            yield from _video(video, value, path, reading)
        return
    if not isinstance(whole, list):
        raise UsageError(f"{path}: expected an object or a list, found {json_kind(whole)}")
    for number, row in enumerate(whole):
        yield _caption(_object(row, path, f"item {number}"), path, f"item {number}", reading)


def _video(video: str, value: Any, path: Path, reading: Reading) -> Iterator[ForeignCaption]:
    """`[caption, …]`, `[{start, end, caption}, …]`, or `{timestamps: […], sentences: […]}`."""
    where = f"video {brief(video, 60)}"
    if isinstance(value, dict) and {"timestamps", "sentences"} <= set(value):
        value = _dense(value, path, where)
    if not isinstance(value, list):
        raise UsageError(
            f"{path}, {where}: expected a list of captions, or an object with `timestamps` and "
            f"`sentences`, found {json_kind(value)}"
        )
    for number, each in enumerate(value):
        at = f"{where}, caption {number}"
        if isinstance(each, str):
            time_s = reading.offset_s + number * reading.every_s
            yield ForeignCaption(_id(video, path, at, reading), time_s, _text(each, path, at), at)
        else:
            row = {"video_id": video, **_object(each, path, at)}
            own = Reading({**reading.columns, "video": "video_id"}, reading.unit_s, ids=reading.ids)
            yield _caption(row, path, at, own)


def _dense(value: Mapping[str, Any], path: Path, where: str) -> list[dict[str, Any]]:
    spans, sentences = value["timestamps"], value["sentences"]
    both = isinstance(spans, list) and isinstance(sentences, list)
    if not both or len(spans) != len(sentences):
        raise UsageError(f"{path}, {where}: `timestamps` and `sentences` differ in length")
    if any(not isinstance(span, list) or len(span) != 2 for span in spans):
        raise UsageError(f"{path}, {where}: every one of `timestamps` is [start, end] in seconds")
    rows = zip(spans, sentences, strict=True)
    return [{"start": span[0], "end": span[1], "caption": text} for span, text in rows]


def _paragraphs(path: Path, reading: Reading) -> Iterator[ForeignCaption]:
    for file in files_of(path):
        for number, line in text_lines(file, "the captions"):
            where = f"{file.name}, line {number}"
            time, colon, text = _utf8(line, path, where).partition(": ")
            if not colon:
                raise UsageError(
                    f"{path}, {where}: expected `SECONDS: caption`, found {brief(time)}"
                )
            yield ForeignCaption(
                _id(file.stem, path, where, reading),
                _time_s(time, path, where, reading),
                _text(text, path, where),
                where,
            )


_FORMS: dict[str, Callable[[Path, Reading], Iterator[ForeignCaption]]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
}


# --- one row


def _caption(row: Mapping[str, Any], path: Path, where: str, reading: Reading) -> ForeignCaption:
    video = _cell(row, "video", path, where, reading)
    time_s = _time_s(_cell(row, "time", path, where, reading), path, where, reading)
    end = _cell(row, "end", path, where, reading, optional=True)
    end_s = None if end in (None, "") else _time_s(end, path, where, reading)
    if end_s is not None and end_s < time_s:
        raise UsageError(f"{path}, {where}: it ends at {end_s:g} s, before its start, {time_s:g} s")
    text = _cell(row, "text", path, where, reading)
    return ForeignCaption(
        _id(video, path, where, reading),
        time_s,
        "" if text is None else _text(text, path, where),
        where,
        end_s,
        *_told(row),
    )


def _told(row: Mapping[str, Any]) -> tuple[tuple[str, ...] | None, str]:
    """Flags and reason of our own export; other files have no such columns, or other words."""
    flags = row.get("flags")
    if row.get("status") not in ("ok", "flagged", "failed") or not isinstance(flags, list):
        return None, ""
    reason = row.get("reason")
    known = tuple(flag for flag in FLAGS if flag in flags)
    return known, _line(reason[:1000]) if isinstance(reason, str) else ""


def _line(text: str) -> str:
    """One line of printable characters: it is shown, and stored as UTF-8."""
    return "".join(sign if sign.isprintable() else "?" for sign in " ".join(text.split()))


def _cell(
    row: Mapping[str, Any],
    what: str,
    path: Path,
    where: str,
    reading: Reading,
    *,
    optional: bool = False,
) -> Any:
    own = reading.columns.get(what)
    names = (own,) if own else COLUMNS[what]
    name = next((name for name in names if name in row), None)
    if name is not None:
        return row[name]
    if optional and not own:
        return None
    raise UsageError(
        f"{path}, {where}: no column for the {what}, looked for {some(names)}; there are: "
        f"{key_names(map(str, row))}. Name yours: options: {{columns: {{{what}: NAME}}}}"
    )


def _id(video: Any, path: Path, where: str, reading: Reading) -> str:
    if isinstance(video, int) and not isinstance(video, bool):
        video = str(video)
    if not isinstance(video, str) or not 0 < len(video.strip()) <= _LONGEST_NAME:
        raise UsageError(f"{path}, {where}: {brief(video)} is no name of a video")
    name = _line(video)
    return PurePosixPath(name.replace("\\", "/")).stem if reading.ids == "stem" else name


def _time_s(value: Any, path: Path, where: str, reading: Reading) -> float:
    seconds = _seconds(value, reading.unit_s)
    if seconds is None or not 0 <= seconds <= LATEST_S:
        raise UsageError(
            f"{path}, {where}: {brief(value)} is no time; allowed: a number from 0 (times unit_s, "
            f"{reading.unit_s:g}, in seconds) or a clock, [HH:]MM:SS[.mmm]"
        )
    return seconds


def _seconds(value: Any, unit_s: float) -> float | None:
    if isinstance(value, str):
        clock = _CLOCK.fullmatch(value.strip())
        if clock:
            hours, minutes, seconds = clock.groups()
            whole = int(hours or 0) * 3600 + int(minutes) * 60
            return whole + float(seconds.replace(",", "."))
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    number = float(value) * unit_s + 0.0  # -0 is 0
    return number if math.isfinite(number) else None


def _text(text: Any, path: Path, where: str) -> str:
    if not isinstance(text, str):
        raise UsageError(f"{path}, {where}: the caption is {json_kind(text)}, not a text")
    if "\0" in text:
        raise UsageError(f"{path}, {where}: the caption holds a NUL; is this a text file?")
    if len(text) > LONGEST_CAPTION:
        raise UsageError(
            f"{path}, {where}: the caption has {len(text):,} characters, more than the "
            f"{LONGEST_CAPTION:,} that are read"
        )
    return text.encode("utf-8", "replace").decode().strip()  # half a surrogate pair is no text


def _utf8(line: bytes, path: Path, where: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}, {where} is not text in UTF-8 ({error.reason})") from None


def _object(value: Any, path: Path, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{path}, {where}: expected an object, found {json_kind(value)}")
    return value


def check_columns(columns: Mapping[str, str]) -> None:
    """UsageError for names that say nothing."""
    for what, name in columns.items():
        if what not in COLUMNS:
            raise UsageError(f"columns: unknown '{what}'; {nearest(what, COLUMNS)}")
        if not isinstance(name, str) or not name:
            raise UsageError(f"columns: {what} is {brief(name)}; give the name of a column")
