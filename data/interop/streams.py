"""Features of videos, from the files of others into a stage of the store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median

from data.annotations.types import Annotation
from data.errors import UsageError, some
from data.identity import digest
from data.interop.form import NOT_STREAMS, Form, ImportOptions, Looked, look
from data.interop.lengths import Lengths
from data.interop.report import ImportReport, Line
from data.interop.sources import Source
from data.interop.writing import (
    IMPORT_VERSION,
    Draft,
    Journey,
    check_target,
    current_of,
    imported,
)
from data.store import Recipe, Schema, StageReader, Store, StreamSpec
from data.store.recipes import is_import

__all__ = ["import_streams"]

_OTHER_LENGTH = 1.25
"""How far from the wanted number of rows per clip files are of another clip length."""

_SYSTEMATIC = 3
"""From so many misfits on, if they are most of the videos, it is the clip length that differs."""


def import_streams(
    store: Store,
    source: Source,
    options: ImportOptions,
    annotations: Iterable[Annotation] = (),
    journey: Journey | None = None,
) -> ImportReport:
    """Bring features of videos into a stage of a store, or look what would be brought.

    Videos that the store has probed keep the content that was measured, so that imported streams
    and those of the pipeline belong together. What is there already is left out; a file that
    changed is another recipe, to which readers are sent when all its rows are there.

    Args:
        store: the store; it need not exist before `journey.begin`.
        source: the files.
        options: what is made of them.
        annotations: rows whose durations say how many clips a video has.
        journey: how rows travel.

    Raises:
        UsageError: nothing to import; most files do not fit the clip length; the stage has rows
            that the pipeline made.
        StoreError: the store cannot be written.
    """
    journey = journey or Journey()
    if not source.entries:
        raise UsageError(
            f"{source.told}: nothing in it is a video ({_reasons(source.left_out)}); look at "
            "--format, --suffix and --strip-prefix"
        )
    check_target(store, options.stage, journey.replace)
    catalogue = store.catalogue()
    lengths = Lengths(catalogue, annotations, _other_streams(store, options.stage))
    hashes = journey.hashes(store)
    looked = [look(entry, catalogue, lengths, hashes) for entry in source.entries]
    form = Form.of(looked, options, store.clip_len_s)
    recipe = _recipe(source, options, looked, form, store.clip_len_s)
    drafts = [form.draft(each) for each in looked]
    _check_clip_length(drafts, looked, form)
    before = current_of(store, options.stage)
    journey.start(store, recipe)
    lines, whole = journey.write(store, recipe, drafts, len(drafts))
    is_current = journey.end(store, recipe, whole=whole)
    return ImportReport(
        stage=options.stage,
        recipe=recipe.id,
        source=source.told,
        lines=lines,
        left_out=source.left_out,
        notes=[
            *_changes(store, before, recipe, looked),
            *form.notes(),
            *_misfits(lengths, looked, lines),
        ],
        current=is_current,
        interrupted=not whole,
    )


def _recipe(
    source: Source,
    options: ImportOptions,
    looked: Sequence[Looked],
    form: Form,
    clip_len_s: float,
) -> Recipe:
    """Everything that determines the rows: the bytes of the files, how long the videos are."""
    params = {
        "format": source.format,
        "files": len(looked),
        "sha256": digest({each.entry.id: list(each.sha256) for each in looked}),
        # Also where nobody said it: a later import may know the same from this one's rows.
        "durations": digest(
            {each.entry.id: form.grid(each).duration_s for each in looked if each.header}
        ),
        "origin": options.origin,
        "key": options.names.key,
        "suffixes": list(options.names.suffixes),
        "rows_per_clip": options.rows_per_clip,
        "lengths": options.lengths,
        "most": options.most,
    }
    spec = StreamSpec((form.width,), form.dtype, "clip")
    schema = Schema({options.stage: spec})
    return Recipe(options.stage, IMPORT_VERSION, imported(params, clip_len_s), {}, schema)


def _check_clip_length(drafts: Sequence[Draft], looked: Sequence[Looked], form: Form) -> None:
    """UsageError with the numbers where most files have rows of another length than the clips."""
    misfits = [draft for draft in drafts if draft.line.reason == "length"]
    if len(misfits) < _SYSTEMATIC or 2 * len(misfits) <= len(drafts):
        return
    known = [each for each in looked if each.expected and each.header]
    per_clip = median(each.header.shape[0] / form.grid(each).n for each in known if each.header)
    row_s = form.clip_len_s / per_clip
    whole = max(1, round(per_clip))
    asked = form.options.rows_per_clip
    if not (per_clip > _OTHER_LENGTH * asked or asked > _OTHER_LENGTH * per_clip):
        return  # of this clip length, but of other cuts of the videos: each is refused by itself
    advice = (
        f"--rows-per-clip {whole} takes the mean of each {whole}"
        if abs(per_clip - whole) < 0.05 * whole
        else f"a clip of {form.clip_len_s:g} s is no whole number of these rows"
    )
    raise UsageError(
        f"{len(misfits):,} of {len(drafts):,} files do not fit their videos: they have about "
        f"{per_clip:.3g} rows per clip of {form.clip_len_s:g} s, one every {row_s:.3g} s; "
        f"{advice}; or import into a store with clips of {row_s:.3g} s (--clip-len), or with "
        "--lengths resample"
    )


def _other_streams(store: Store, stage: str) -> list[StageReader]:
    try:
        current = store.current
    except FileNotFoundError:  # --dry-run before there is a store
        return []
    return [
        store.reader(name, strict=False)
        for name in current
        if name not in (stage, *NOT_STREAMS) and store.shards(name)
    ]


def _changes(
    store: Store, before: Recipe | None, recipe: Recipe, looked: Sequence[Looked]
) -> Iterator[str]:
    """What differs from the import that readers were sent to until now."""
    if before is None or before.id == recipe.id:
        return
    if not is_import(before):
        yield f"readers were sent to recipe {before.id} of `pipeline run` until now"
        return
    reader = store.reader(before.stage, before.id, strict=False)
    there = {id: tuple(reader.facts(id).get("sha256", ())) for id in reader.ids()}
    now = {each.entry.id: each.sha256 for each in looked}
    told = {
        "changed": [id for id in now if id in there and now[id] != there[id]],
        "new": [id for id in now if id not in there],
        "gone": [id for id in there if id not in now],
    }
    files = "; ".join(f"{len(ids):,} {what}: {some(ids, 3)}" for what, ids in told.items() if ids)
    yield f"since the import {before.id}: {files or 'the same files, other options or lengths'}"


def _misfits(lengths: Lengths, looked: Sequence[Looked], lines: Sequence[Line]) -> Iterator[str]:
    """Other streams that have another number of clips, with which no sample can be made."""
    clips = {line.id: line.clips for line in lines if line.outcome != "refused"}
    found: dict[str, list[str]] = {}
    for one in looked:
        for stage, grid in lengths.others(one.entry.id, one.key.content):
            if clips.get(one.entry.id) not in (None, grid.n):
                found.setdefault(stage, []).append(one.entry.id)
    for stage, ids in found.items():
        yield (
            f"{len(ids):,} videos have another number of clips in stream '{stage}' "
            f"({some(ids, 3)}): import that one again, so that both follow the same durations"
        )
    if lengths.disputed:
        yield (
            f"{len(lengths.disputed):,} videos have several durations in the annotations; the "
            f"first one counts ({some(sorted(lengths.disputed), 3)})"
        )


def _reasons(left_out: Mapping[str, str]) -> str:
    return some([f"{name}: {why}" for name, why in left_out.items()], 2) or "no files"
