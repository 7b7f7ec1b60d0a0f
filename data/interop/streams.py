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
    changes,
    check_target,
    current_of,
    grown,
    imported,
)
from data.store import Recipe, Schema, StageReader, Store, StreamSpec

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
    and those of the pipeline belong together. What is there already is left out, and new videos
    are added to the import before (`grown`); if a file changed it is another recipe, to which
    readers are sent when all its rows are there.

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
    annotations = list(annotations)
    lengths = Lengths(catalogue, annotations, _other_streams(store, options.stage))
    hashes = journey.hashes(store)
    looked = [look(entry, catalogue, lengths, hashes) for entry in source.entries]
    form = Form.of(looked, options, store.clip_len_s)
    drafts = [form.draft(each) for each in looked]
    _check_clip_length(drafts, looked, form)
    before = current_of(store, options.stage)
    fresh = _recipe(source, options, looked, form, store.clip_len_s)
    recipe = grown(store, fresh, drafts, before, replace=journey.replace)
    changed = list(changes(store, before, recipe, drafts))
    kept = _ids_of(store, before) if before and before.id == recipe.id else ()
    journey.start(store, recipe)
    lines, whole = journey.write(store, recipe, drafts, len(drafts))
    is_current = journey.end(store, recipe, before, whole=whole)
    return ImportReport(
        stage=options.stage,
        recipe=recipe.id,
        source=source.told,
        lines=lines,
        left_out=source.left_out,
        notes=[
            *changed,
            *form.notes(),
            *_misfits(lengths, looked, lines),
            *_beside(annotations, kept, looked),
        ],
        current=is_current,
        interrupted=not whole,
    )


def _ids_of(store: Store, recipe: Recipe) -> list[str]:
    return store.reader(recipe.stage, recipe.id, strict=False).ids()


def _recipe(
    source: Source,
    options: ImportOptions,
    looked: Sequence[Looked],
    form: Form,
    clip_len_s: float,
) -> Recipe:
    """How files are read, and with which files and durations the import began."""
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


def _beside(
    annotations: Sequence[Annotation], there: Iterable[str], looked: Sequence[Looked]
) -> Iterator[str]:
    """Videos of the annotations without a file, and files of videos that they do not name."""
    wanted = dict.fromkeys(row.video_id for row in annotations)
    if not wanted:
        return
    given = {each.entry.id for each in looked}
    lacking = sorted(wanted.keys() - given - set(there))
    other = sorted(given - wanted.keys())
    if lacking:
        yield (
            f"{len(lacking):,} of {len(wanted):,} videos of the annotations have no file "
            f"({some(lacking, 3)}){_another_spelling(lacking, other)}"
        )
    if other:
        yield f"{len(other):,} files are of videos that no annotation names ({some(other, 3)})"


def _another_spelling(lacking: Sequence[str], other: Sequence[str]) -> str:
    """A hint where ids differ only by a prefix or by upper and lower case."""
    folded = {each.casefold(): each for each in other}
    twin = next((each for each in lacking if each.casefold() in folded), None)
    if twin is not None:
        return f"; '{folded[twin.casefold()]}' is there: ids differ by upper and lower case"
    for longer, shorter, what in (
        (other, lacking, "--strip-prefix {}"),
        (lacking, other, "the annotations have the prefix {}"),
    ):
        known = set(shorter)
        for each in longer[:1000]:
            for cut in range(1, min(8, len(each))):
                if each[cut:] in known:
                    return f"; '{each}' and '{each[cut:]}' differ: {what.format(each[:cut])}"
    return ""


def _reasons(left_out: Mapping[str, str]) -> str:
    return some([f"{name}: {why}" for name, why in left_out.items()], 2) or "no files"
