"""What training and evaluation check of annotations: faults are told, leaks are refused."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from data.annotations import DATASETS, dataset_of, guess_dataset
from data.annotations.findings import Sheet, SheetRow
from data.annotations.jsonl import read_lines
from data.annotations.leakage import LEAKS, Seen
from data.annotations.lint import lint, read_sheet, sheet_of
from data.annotations.types import Annotation
from data.errors import StoreError, UsageError
from data.interop.lengths import imported_lengths
from data.store import Store
from data.store.files import size_of
from data.store.place import Place, anchored, place_of, text_of

__all__ = [
    "clip_len_of",
    "faults_of_file",
    "faults_told",
    "lengths_in",
    "open_sheet",
    "open_store",
    "refuse_overlap",
    "refuse_trained_on",
    "rows_trained_on",
]


def lengths_in(store: Store) -> dict[str, float]:
    """Length in seconds of each video as the pipeline measured it, else as the imported feature
    files say by their number of rows; nothing of videos that have neither.

    Raises:
        StoreError: the catalogue of the videos is damaged.
    """
    measured = {id: entry.facts.duration_s for id, entry in store.catalogue().items()}
    return imported_lengths(store) | measured


def faults_told(sheet: Sheet, command: str) -> str | None:
    """One sentence about the errors in a split, None if there are none.

    Args:
        sheet: the split.
        command: shows them all.
    """
    found = [each for each in lint(sheet) if each.kind.level == "error"]
    if not found:
        return None
    told = "; ".join(f"{each.message} ({each.spots[0].detail})" for each in found)
    return f"{sheet.name} has faults: {told}. All of them: {command}"


def clip_len_of(file: Path, dataset: str) -> float:
    """Seconds of a clip of an annotation file: those of the store whose split it is, else those of
    its dataset there.
    """
    folder = file.absolute().parent
    if folder.name == "annotations" and _is_store(folder.parent):
        return open_store(str(folder.parent)).clip_len_s
    return DATASETS.get(dataset).clip_len_at(file)


def faults_of_file(rows: Sequence[Annotation], file: str, dataset: str) -> str | None:
    """One sentence about the errors in the rows of an annotation file, None if there are none."""
    sheet = sheet_of(rows, file, DATASETS.get(dataset), clip_len_of(Path(file), dataset))
    return faults_told(sheet, f"trainer lint {shlex.quote(file)} --dataset {dataset}")


def refuse_overlap(
    scored: Sequence[Annotation],
    trained: Seen,
    *,
    scored_name: str,
    source_of: Callable[[str], str],
    allow: bool,
) -> str | None:
    """Refuse to score on videos, or other cuts of recordings, that were trained on.

    Args:
        scored: the queries to score.
        trained: what the training has seen.
        scored_name: what they are, for the message: "split 'val'".
        source_of: the recording of each of their videos, as `Dataset.source_of`.
        allow: only describe the overlap.

    Returns:
        A sentence about the overlap that was allowed; None if there is none.

    Raises:
        UsageError: something is shared and `allow` is off.
    """
    found = [(row, trained.leak(row, source_of)) for row in scored]
    shared = {
        name: [row for row, leak in found if leak and leak[0].name == name] for name in _NAMES
    }
    fact = _overlap_told(shared, scored_name)
    if not fact:
        return None
    if not allow:
        raise UsageError(
            f"{fact}; scores on them say nothing about other videos. Choose a split that is "
            "disjoint by video, or pass --allow-overlap"
        )
    return f"{fact}; allowed by --allow-overlap"


def open_sheet(
    name: str,
    dataset: str | None = None,
    clip_len_s: float | None = None,
    lengths_s: Mapping[str, float] | None = None,
) -> Sheet:
    """The rows of an annotation file, of a store's split if it lies in a store.

    Args:
        name: path, or URL of a file in a store.
        dataset: whose format it has; None: that of its store, or as it looks.
        clip_len_s: None: that of the store or dataset.
        lengths_s: measured length of videos in seconds; nothing: those of its store.

    Raises:
        UsageError: no such file or dataset, or no file of its format.
    """
    place = place_of(name)
    folder = anchored(place).parent
    if dataset is None and folder.name == "annotations" and _is_store(folder.parent):
        found = open_store(text_of(folder.parent))
        clips = clip_len_s or found.clip_len_s
        lengths_s = lengths_s or lengths_in(found)
        return read_sheet(read_lines(place), name, dataset_of(found.dataset), clips, lengths_s)
    if not isinstance(place, Path):
        raise UsageError(
            f"'{name}' is no annotation file of a store; copy it to this machine to look at it"
        )
    chosen = DATASETS.get(dataset or guess_dataset(place))
    clips = clip_len_s or chosen.clip_len_at(place)
    return read_sheet(chosen.records(place), name, chosen, clips, lengths_s or {})


def open_store(name: str) -> Store:
    """The store at a path or URL; UsageError where there is none that can be opened."""
    try:
        return Store.open(place_of(name))
    except StoreError as error:
        raise UsageError(str(error)) from None


def _is_store(folder: Place) -> bool:
    return size_of(folder / "store.json") is not None


def refuse_trained_on(
    scored: Sequence[Annotation], files: Sequence[str], dataset: str | None, *, allow: bool
) -> str | None:
    """Refuse to score predictions of a model that was trained on some annotation files.

    Args:
        scored: the queries to score.
        files: what the model was trained on; paths, or URLs of files in stores.
        dataset: whose format `scored` has; that of `files` where they do not show theirs.
        allow: only describe the overlap.

    Returns:
        A sentence about the overlap that was allowed; None if there is none.

    Raises:
        UsageError: something is shared and `allow` is off; a file that cannot be read whole.
    """
    if not files:
        return None
    source_of = dataset_of(dataset or "").source_of
    rows = rows_trained_on(files, dataset)
    trained = Seen.of(((row.where, row.annotation) for row in rows), source_of)
    return refuse_overlap(
        scored, trained, scored_name="the annotations", source_of=source_of, allow=allow
    )


def rows_trained_on(files: Sequence[str], dataset: str | None) -> list[SheetRow]:
    """All rows of annotation files that somebody says a model was trained on.

    Args:
        files: paths, or URLs of files in stores.
        dataset: whose format they have where they do not show it.

    Raises:
        UsageError: a file that cannot be read whole.
    """
    return [row for name in files for row in _whole(name, dataset)]


def _whole(name: str, dataset: str | None) -> Sequence[SheetRow]:
    try:
        sheet = open_sheet(name)
    except UsageError:
        sheet = open_sheet(name, dataset)
    if sheet.wrong:
        first = sheet.wrong[0]
        raise UsageError(f"--trained-on: {first.where}: {first.detail}")
    return sheet.rows


_NAMES = tuple(kind.name for kind in LEAKS)


def _overlap_told(shared: Mapping[str, Sequence[Annotation]], scored_name: str) -> str:
    """Half a sentence about rows by the kind of their leak; "" if there are none."""
    *same, cut = (shared[name] for name in _NAMES)
    rows = [row for rows in same for row in rows]
    told = []
    if rows:
        videos = sorted({row.video_id for row in rows})
        told.append(
            f"{len(videos):,} videos of {scored_name} are in the training split too (first: "
            f"{videos[0]}; {len(rows):,} queries, {len(same[0]):,} of them with the same words "
            "and moments)"
        )
    if cut:
        videos = sorted({row.video_id for row in cut})
        told.append(
            f"{len(videos):,} videos of {scored_name} are other cuts of recordings of the "
            f"training split (first: {videos[0]}; {len(cut):,} queries)"
        )
    return ", and ".join(told)
