"""Text features of queries, from the files of others into the stage `queries`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.annotations.types import Annotation
from data.errors import InputError, UsageError, some
from data.identity import digest, query_id
from data.interop.arrays import Header, as_rows
from data.interop.report import ImportReport, Line
from data.interop.sources import Source, TextEntry
from data.interop.writing import (
    IMPORT_VERSION,
    Draft,
    Hashes,
    Journey,
    changes,
    check_target,
    current_of,
    grown,
    imported,
)
from data.store import ItemKey, Recipe, Row, Schema, Store, StreamSpec
from data.store.recipes import is_import

__all__ = ["STAGE", "import_texts"]

STAGE = "queries"


def import_texts(
    store: Store,
    source: Source,
    annotations: Iterable[Annotation],
    *,
    origin: str = "",
    journey: Journey | None = None,
) -> ImportReport:
    """Bring token states and pooled vectors of queries into the stage `queries`.

    A store knows a query by its sentence, so the annotations must say which sentence a file
    belongs to. Of several queries with the same sentence the first one gives the row, or the one
    that gave it before.

    Args:
        store: the store; it need not exist before `journey.begin`.
        source: the files.
        annotations: rows that say the sentence of each qid.
        origin: where the files come from, in the user's words.
        journey: how rows travel.

    Raises:
        UsageError: no annotations, or none of the files belongs to one.
        StoreError: the store cannot be written.
    """
    journey = journey or Journey()
    sentences = _sentences(annotations)
    check_target(store, STAGE, journey.replace)
    hashes = journey.hashes(store)
    before = current_of(store, STAGE)
    there = _files_of(store, before)
    left_out = dict(source.left_out)
    looked: dict[str, _Looked] = {}
    for entry in source.texts:
        texts = sentences.get(entry.qid, ())
        if len(texts) != 1:
            left_out[entry.file.name] = _no_sentence(entry.qid, texts)
            continue
        id = query_id(texts[0])
        if id not in looked or there.get(id) == [entry.file.name]:
            looked[id] = _look(entry, texts[0], hashes)
    if not looked:
        raise UsageError(
            f"{source.told}: none belongs to a query of the annotations, for example "
            f"{_first(left_out)}; give the annotations of these files"
        )
    form = _Form.of(list(looked.values()))
    drafts = [form.draft(each) for each in looked.values()]
    fresh = _recipe(source, list(looked.values()), form, origin, store.clip_len_s)
    recipe = grown(store, fresh, drafts, before, replace=journey.replace)
    changed = list(changes(store, before, recipe, drafts))
    journey.start(store, recipe)
    lines, whole = journey.write(store, recipe, drafts, len(drafts))
    is_current = journey.end(store, recipe, before, whole=whole)
    return ImportReport(
        stage=STAGE,
        recipe=recipe.id,
        source=source.told,
        lines=lines,
        left_out=left_out,
        notes=[*changed, *_notes(sentences, looked, source)],
        current=is_current,
        interrupted=not whole,
    )


@dataclass(frozen=True)
class _Looked:
    """One sentence before its numbers are read; see `data.interop.streams._Looked`."""

    entry: TextEntry
    key: ItemKey
    sentence: str
    tokens: Header | None
    pooled: int | None
    sha256: str
    fault: InputError | None = None


def _look(entry: TextEntry, sentence: str, hashes: Hashes) -> _Looked:
    key = ItemKey(query_id(sentence), hashlib.sha256(sentence.encode()).hexdigest())
    sha256 = ""
    try:
        sha256 = hashes.of(entry.file)
        tokens = entry.tokens.look()
        try:
            rows = tokens.rows
        except InputError as error:
            raise InputError("shape", f"{entry.tokens.name} {error}") from None
        pooled = entry.pooled.look() if entry.pooled else None
        columns = int(np.prod(pooled.shape)) if pooled else None
        return _Looked(entry, key, sentence, Header(rows, tokens.dtype), columns, sha256)
    except InputError as error:
        return _Looked(entry, key, sentence, None, None, sha256, error)


@dataclass(frozen=True)
class _Form:
    """What the rows look like.

    Args:
        width: columns of token states.
        pooled: columns of the pooled vector; None without.
        dtype: name of the type of both.
    """

    width: int
    pooled: int | None
    dtype: str

    @staticmethod
    def of(looked: Sequence[_Looked]) -> _Form:
        """The widths that most files have."""
        whole = [each for each in looked if each.tokens is not None]
        if not whole:
            raise UsageError(
                f"none of the {len(looked):,} files can be imported, for example: {looked[0].fault}"
            )
        pairs = Counter((each.tokens.shape[1], each.pooled) for each in whole if each.tokens)
        ((width, pooled), _), *_ = pairs.most_common(1)
        types = {each.tokens.dtype.newbyteorder("=") for each in whole if each.tokens}
        return _Form(width, pooled, np.result_type(*types).name)

    @property
    def schema(self) -> Schema:
        """As the stage `queries` writes it."""
        arrays = {"tokens": StreamSpec((self.width,), self.dtype, "item")}
        if self.pooled is not None:
            arrays["pooled"] = StreamSpec((self.pooled,), self.dtype, "item")
        return Schema(arrays)

    def draft(self, one: _Looked) -> Draft:
        """The row to be, or the refusal."""
        qid, names = one.entry.qid, [one.entry.file.name]
        fault = one.fault
        if one.tokens is not None and (one.tokens.shape[1], one.pooled) != (
            self.width,
            self.pooled,
        ):
            fault = InputError(
                "width",
                f"token states have {one.tokens.shape[1]} columns and the pooled vector "
                f"{one.pooled}; in most files {self.width} and {self.pooled}",
            )
        if fault is not None:
            line = Line(qid, "refused", names, reason=fault.reason, told=str(fault))
        else:
            line = Line(qid, "planned", names, one.tokens.shape[0] if one.tokens else None)
        return Draft(line, one.key, lambda: self._row(one), self._seen(one, fault))

    def _seen(self, one: _Looked, fault: InputError | None) -> dict[str, Any]:
        """Facts of the row that are known before it is read."""
        if one.tokens is None:
            return {}
        fit = {"fit": fault.reason} if fault is not None else {}
        return {"sha256": [one.sha256], **fit}

    def _row(self, one: _Looked) -> Row:
        tokens = as_rows(one.entry.tokens.read())
        kept = _without_padding(len(tokens), tokens.any(axis=1))
        arrays = {"tokens": tokens[:kept].astype(self.dtype)}
        if one.entry.pooled is not None:
            arrays["pooled"] = one.entry.pooled.read().reshape(1, -1).astype(self.dtype)
        if any(not np.isfinite(array).all() for array in arrays.values()):
            raise InputError("not-finite", f"{one.entry.file.name} holds NaN or infinite values")
        facts: dict[str, Any] = {
            "files": [one.entry.file.name],
            "sha256": [one.sha256],
            "rows": len(tokens),
            "clips": kept,
        }
        if kept < len(tokens):
            facts["told"] = f"{len(tokens) - kept} rows of zeros at the end are padding: left out"
        return Row(one.key, None, arrays, facts=facts)


def _without_padding(rows: int, used: Any) -> int:
    """How many rows there are without zeros at the end; at least one."""
    return max(1, rows - int(np.argmax(used[::-1])) if used.any() else 1)


def _files_of(store: Store, current: Recipe | None) -> dict[str, list[str]]:
    """The file that gave the row of each sentence in the present import."""
    if current is None or not is_import(current):
        return {}
    reader = store.reader(STAGE, current.id, strict=False)
    return {id: list(reader.facts(id).get("files", ())) for id in reader.ids()}


def _sentences(annotations: Iterable[Annotation]) -> dict[str, list[str]]:
    """The different sentences of each qid."""
    found: dict[str, dict[str, None]] = {}
    for row in annotations:
        found.setdefault(str(row.qid), {})[row.query] = None
    if not found:
        raise UsageError(
            "a store knows a query by its sentence, and files of texts say only its qid; give the "
            "annotations: --annotations train=FILE"
        )
    return {qid: list(texts) for qid, texts in found.items()}


def _no_sentence(qid: str, texts: Sequence[str]) -> str:
    if not texts:
        return f"no-annotation: no query of the annotations has the qid {qid}"
    return f"no-annotation: qid {qid} has {len(texts)} different sentences in the annotations"


def _first(left_out: Mapping[str, str]) -> str:
    return some([f"{name} ({why})" for name, why in left_out.items()], 2)


def _recipe(
    source: Source, looked: Sequence[_Looked], form: _Form, origin: str, clip_len_s: float
) -> Recipe:
    files = {each.key.id: each.sha256 for each in looked}
    params = {
        "format": source.format,
        "files": len(files),
        "sha256": digest(files),
        "origin": origin,
        "key": looked[0].entry.tokens.key,
    }
    return Recipe(STAGE, IMPORT_VERSION, imported(params, clip_len_s), {}, form.schema)


def _notes(
    sentences: Mapping[str, Sequence[str]], looked: Mapping[str, _Looked], source: Source
) -> list[str]:
    wanted = {query_id(text): text for texts in sentences.values() for text in texts}
    lacking = [text for id, text in wanted.items() if id not in looked]
    notes = []
    if lacking:
        notes.append(
            f"{len(lacking):,} sentences of the annotations have no file, for example "
            f"'{lacking[0]}': training on their splits needs all (`data.require`)"
        )
    if not any(entry.pooled for entry in source.texts):
        notes.append("the files hold no pooled vectors; training reads token states only")
    return notes
