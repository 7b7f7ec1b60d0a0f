"""The table of `glove`: vectors of the words of some texts, out of the file that others publish.

`glove.840B.300d.txt` has 2.2 million words in 5.6 GB. It is streamed once and never held; of its
numbers only those of the wanted words are parsed. The format is the public loaders' (VSLNet and
EMB, `util/data_gen.py`): a word and `dim` numbers, separated by blanks; a line of another length (a
word with blanks in it, a header) is left out and counted; of a word that comes twice the last
counts.
"""

from __future__ import annotations

import gzip
import io
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from data.errors import UsageError, some
from data.foreign import check_plain_file

__all__ = ["Vectors", "Vocabulary", "glove_table", "read_vectors"]

_LONGEST_LINE = 1 << 20
"""Bytes; lines of 300 numbers have 2,500."""

_MOST_ROWS = 20_000_000
_LARGEST_HALF = 65504.0

_Numbers = NDArray[np.float32]
Progress = Callable[[int, int], None]


@dataclass
class Vocabulary:
    """Words and signs of texts, with how often each occurs.

    Args:
        texts: texts that were counted.
        words: by word.
    """

    texts: int = 0
    words: Counter[str] = field(default_factory=Counter)

    def add(self, texts: Iterable[str]) -> None:
        """Count the words of more texts, as the encoder cuts them."""
        from models.text.glove import glove_words

        for text in texts:
            self.texts += 1
            self.words.update(glove_words(text))

    @property
    def wanted(self) -> set[str]:
        """What is looked up: the words, and the usual signs."""
        from models.text.glove import SIGNS

        return {*self.words, *SIGNS}


@dataclass(frozen=True)
class Vectors:
    """What was found in a file of vectors.

    Args:
        rows: vector by word, float32 (dim,).
        lines: lines of the file.
        left_out: lines that are no word with `dim` numbers.
        twice: words that came more than once.
    """

    rows: Mapping[str, _Numbers]
    lines: int
    left_out: int
    twice: int


def read_vectors(
    path: Path,
    dim: int,
    wanted: Collection[str] | None,
    progress: Progress = lambda done, total: None,
) -> Vectors:
    """The vectors of some words of a file.

    Args:
        path: text, also in .gz or .zip; of several files in a .zip that with `dim` in its name.
        dim: numbers of a vector.
        wanted: words to keep; None: all.
        progress: is told bytes that were read, and how many there are.

    Raises:
        UsageError: not found, damaged, no line has `dim` numbers, a wanted vector is not finite.
    """
    check_plain_file(path, "the file of vectors")
    keys = None if wanted is None else {each.encode() for each in wanted}
    rows: dict[str, _Numbers] = {}
    lines = left_out = twice = 0
    lengths: Counter[int] = Counter()
    for line in _lines(path, dim, progress):
        lines += 1
        line = line.rstrip(b" \r\n")
        blanks = line.count(b" ")
        if blanks != dim:
            left_out += 1
            lengths[blanks] += 1
            continue
        word, numbers = line.split(b" ", 1)
        if keys is not None and word not in keys:
            continue
        name = word.decode("utf-8", "replace")
        twice += name in rows
        rows[name] = _numbers(numbers, name, path)
        if len(rows) > _MOST_ROWS:
            raise UsageError(f"'{path}' has more than the {_MOST_ROWS:,} words that are read")
    if lines == left_out:
        usual = f"; most have {lengths.most_common(1)[0][0]}" if lengths else ""
        raise UsageError(
            f"'{path}' holds no vectors of {dim} numbers: none of its {lines:,} lines is a word "
            f"and {dim} numbers{usual}; say --dim, or name a file like glove.840B.300d.txt"
        )
    return Vectors(rows, lines, left_out, twice)


def glove_table(found: Vectors, wanted: Collection[str] | None, dtype: str) -> bytes:
    """The bytes of the table, words in alphabetical order.

    Raises:
        UsageError: nothing to write, or numbers that float16 cannot hold.
    """
    from models.word_tables import table_bytes

    if dtype not in ("float16", "float32"):
        raise UsageError(f"a table is of float16 or float32, not '{dtype}'")
    if not found.rows:
        raise UsageError(f"none of the {len(wanted or ()):,} words is in the file of vectors")
    words = sorted(found.rows)
    vectors = np.stack([found.rows[each] for each in words])
    if dtype == "float16" and float(np.abs(vectors).max()) > _LARGEST_HALF:
        raise UsageError("a vector holds numbers that float16 cannot; say --dtype float32")
    unknown = sorted(set(wanted or ()) - found.rows.keys())
    blobs = {"words": "\n".join(words).encode(), "unknown": "\n".join(unknown).encode()}
    whole = "1" if wanted is None else "0"
    return table_bytes("glove", vectors.astype(dtype), blobs, {"whole": whole})


def _numbers(text: bytes, word: str, path: Path) -> _Numbers:
    try:
        values = [float(each) for each in text.split(b" ")]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise UsageError(f"'{path}' is damaged: the vector of '{word[:80]}' is not made of finite "
                         "numbers; download it again")  # fmt: skip
    return np.array(values, np.float32)


def _lines(path: Path, dim: int, progress: Progress) -> Iterator[bytes]:
    """All lines; progress now and then."""
    with _opened(path, dim) as (stream, raw, total):
        number = 0
        while line := _line(stream, path):
            number += 1
            if number % 20_000 == 1:
                progress(raw.tell(), total)
            yield line
        progress(total, total)


def _line(stream: IO[bytes], path: Path) -> bytes:
    try:
        line = stream.readline(_LONGEST_LINE + 1)
    except (EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
        raise UsageError(f"'{path}' is damaged or cut off ({error}); download it again") from None
    if len(line) > _LONGEST_LINE:
        raise UsageError(f"'{path}' is no file of vectors: a line has more than "
                         f"{_LONGEST_LINE:,} bytes")  # fmt: skip
    return line


@contextmanager
def _opened(path: Path, dim: int) -> Iterator[tuple[IO[bytes], IO[bytes], int]]:
    """The stream of text, the stream whose place tells how far it is, and the end of that."""
    with path.open("rb") as raw:
        start = raw.read(4)
        raw.seek(0)
        if start.startswith(b"\x1f\x8b"):
            with gzip.open(raw) as stream:
                yield stream, raw, path.stat().st_size  # type: ignore[misc]  # GzipFile is one
        elif start.startswith(b"PK\x03\x04"):
            with _archive(path, raw) as archive, _member(archive, path, dim) as (stream, size):
                yield stream, stream, size
        else:
            yield raw, raw, path.stat().st_size


def _archive(path: Path, raw: IO[bytes]) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(raw)
    except zipfile.BadZipFile as error:
        raise UsageError(f"'{path}' is damaged or cut off ({error}); download it again") from None


@contextmanager
def _member(archive: zipfile.ZipFile, path: Path, dim: int) -> Iterator[tuple[IO[bytes], int]]:
    texts = [each for each in archive.infolist() if not each.is_dir()]
    fits = [each for each in texts if f".{dim}d." in each.filename] or texts
    if len(fits) != 1:
        names = some([each.filename[:80] for each in texts]) or "nothing"
        raise UsageError(
            f"'{path}' holds several files ({names}) and none with {dim} in its name; say --dim, "
            "or unpack the one that is meant"
        )
    try:
        stream = archive.open(fits[0])
    except (NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise UsageError(f"'{path}' cannot be unpacked here ({error}); unpack it first") from None
    with stream:
        yield io.BufferedReader(stream, 1 << 20), fits[0].file_size  # type: ignore[type-var]
