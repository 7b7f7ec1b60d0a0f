"""`pipeline import` and `pipeline export`: features of other people's files (docs/interop.md).

Exit codes: 0 everything is there; 3 finished, some inputs are in quarantine (`import`) or missing
(`export`); 75 interrupted, run again to continue; 2 wrong usage.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import Progress as Bar

from data.annotations.types import Annotation
from data.commands import EXIT_INTERRUPTED, EXIT_QUARANTINE
from data.config import parse_config
from data.errors import UsageError, nearest, some
from data.store import Store
from data.store.place import Place, place_of
from data.terminal import new_table, say
from pipeline.config import PipelineConfig, load_pipeline_config
from pipeline.engine.stop import StopFlag
from pipeline.options import (
    DEFAULT_CONFIG,
    ConfigOption,
    JsonOption,
    SetOption,
    StoreOption,
    answered,
    is_there,
    named_store,
    new_console,
    open_store,
    store_of,
)
from pipeline.view import read_annotations

if TYPE_CHECKING:
    from data.interop import ExportReport, ImportReport, Source

__all__ = ["interop_commands"]

interop_commands = typer.Typer()

_TEXT = "queries"
_SHOWN = 12
"""Sentences about refused and mended inputs that are shown; --json has all."""


@interop_commands.command("import")
@answered
def import_(
    source: Annotated[Path, typer.Option("--from", help="Folder of features, or an HDF5 file.")],
    stage: Annotated[
        str | None,
        typer.Option(
            "--stage",
            "--stream",
            "-s",
            help="Name of the stream: clip, slowfast, i3d, or a new one.",
        ),
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", help="auto, npz, npy, h5, or text (features of queries).")
    ] = "auto",
    key: Annotated[
        str | None, typer.Option(help="Name of the array in each file or group.")
    ] = None,
    suffix: Annotated[
        list[str] | None,
        typer.Option(
            help="End of file names; two stand side by side: --suffix _rgb --suffix _opt."
        ),
    ] = None,
    strip_prefix: Annotated[str, typer.Option(help="Taken off the ids, e.g. v_.")] = "",
    annotations: Annotated[
        list[str] | None,
        typer.Option(help="SPLIT=FILE; kept in the store, and durations are theirs; repeatable."),
    ] = None,
    annotations_format: Annotated[
        str | None, typer.Option(help="Format of the annotations, instead of the dataset's.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Dataset of a new store.")] = None,
    clip_len: Annotated[
        float | None, typer.Option(help="Seconds of a clip of a new store.")
    ] = None,
    rows_per_clip: Annotated[
        int, typer.Option(min=1, help="Rows of the files in one clip; their mean is taken.")
    ] = 1,
    lengths: Annotated[
        Literal["repair", "resample"],
        typer.Option(
            help="Other numbers of rows than clips: cut or repeat at the end, or resample."
        ),
    ] = "repair",
    most: Annotated[int, typer.Option(min=0, help="Rows that may be cut or repeated.")] = 2,
    dtype: Annotated[
        Literal["keep", "float16", "float32"], typer.Option(help="Type of the rows.")
    ] = "keep",
    origin: Annotated[str, typer.Option(help="Where the files come from, for the recipe.")] = "",
    replace: Annotated[
        bool, typer.Option("--replace", help="Also where readers lose rows: of a run, or files.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; show what would be done.")
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring existing feature files into the store; run it again to continue."""
    from data.interop import SourceOptions, open_source

    names = SourceOptions(key, strip_prefix, tuple(suffix or ()))
    found = open_source(source, format_, names)
    target = _Target.of(config, store, dataset, clip_len, annotations or [], annotations_format)
    opened = target.checked()
    with StopFlag() as stop, _bar(as_json, source.name) as watch:
        from data.interop import ImportOptions
        from data.interop.writing import Journey

        journey = Journey(
            dry_run, replace, stop=lambda: bool(stop), watch=watch, begin=target.begin
        )
        if found.texts:
            _check_text_options(stage)
            call = _texts_call(found, origin, journey)
        else:
            options = ImportOptions(
                _named(stage, found), rows_per_clip, lengths, most, dtype, origin, names
            )
            call = _streams_call(found, options, journey)
        report = call(opened, target.rows())
    _show_import(report, target, as_json, dry_run)
    if report.interrupted:
        say("pipeline: interrupted; the same command continues", err=True)
        raise typer.Exit(EXIT_INTERRUPTED)
    raise typer.Exit(EXIT_QUARANTINE if report.refused else 0)


@interop_commands.command("export")
@answered
def export_(
    out: Annotated[
        Path,
        typer.Option(help="The folder; made if it is not there. FILE.jsonl or .csv of captions."),
    ],
    format_: Annotated[
        str,
        typer.Option("--format", help="moment-detr (npz), npy; captions, paragraphs: as text."),
    ] = "moment-detr",
    stream: Annotated[
        list[str] | None,
        typer.Option("--stream", "--stage", "-s", help="A stream, or `queries`; repeatable."),
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Only its videos and queries; repeatable.")
    ] = None,
    dtype: Annotated[
        Literal["keep", "float16", "float32"], typer.Option(help="Type of the arrays.")
    ] = "keep",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that are there.")
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the store as files that public training code reads."""
    write = _captions_call(format_, stream, dtype) or _features_call(format_, stream, dtype)
    opened = named_store(config, set_, store)
    with StopFlag() as stop:
        report = write(opened, out, splits=split or (), overwrite=overwrite, stop=stop.__bool__)
    _show_export(report, as_json)
    if report.interrupted:
        say("pipeline: interrupted; the same command continues", err=True)
        raise typer.Exit(EXIT_INTERRUPTED)
    raise typer.Exit(EXIT_QUARANTINE if report.missing else 0)


def _features_call(
    form: str, streams: list[str] | None, dtype: Literal["keep", "float16", "float32"]
) -> Callable[..., ExportReport]:
    from data.interop import CAPTION_FORMATS, LAYOUTS, export

    known = [*LAYOUTS, *CAPTION_FORMATS]
    if form not in known:
        raise UsageError(f"unknown format of an export '{form}'; {nearest(form, known)}")
    return partial(export, layout=LAYOUTS.get(form), streams=streams or (), dtype=dtype)


def _captions_call(
    form: str, streams: list[str] | None, dtype: str
) -> Callable[..., ExportReport] | None:
    """For formats of captions; None for others."""
    from data.interop import CAPTION_FORMATS, export_captions

    if form not in CAPTION_FORMATS:
        return None
    if streams or dtype != "keep":
        raise UsageError(f"--format {form} is text: leave --stream and --dtype out")
    return partial(export_captions, form=form)


@dataclass(frozen=True)
class _Target:
    """The store that is imported into, and the annotations that were given.

    Args:
        config: what it would be made with.
        place: where it is.
        given: annotations by split.
    """

    config: PipelineConfig
    place: Place
    given: Mapping[str, list[Annotation]]

    @staticmethod
    def of(
        config: Path,
        store: str | None,
        dataset: str | None,
        clip_len_s: float | None,
        annotations: list[str],
        annotations_format: str | None,
    ) -> _Target:
        """From the options; what they do not say is said by the store, else by the config."""
        if store is None:
            loaded = load_pipeline_config(config)
            values = loaded.model_dump(include={"dataset", "clip_len_s", "annotations_format"})
            values["annotations"] = loaded.annotations
            place = store_of(loaded)
        else:
            values, place = {"annotations": {}}, place_of(store)
        if is_there(place):
            opened = open_store(place)
            values |= {"dataset": opened.dataset, "clip_len_s": opened.clip_len_s}
        asked = {
            "dataset": dataset,
            "clip_len_s": clip_len_s,
            "annotations_format": annotations_format,
        }
        values |= {name: value for name, value in asked.items() if value is not None}
        values["annotations"] |= dict(_split_file(each) for each in annotations)
        if "clip_len_s" not in values:
            values["clip_len_s"] = _usual_clip_len(values.get("dataset"))
        made = parse_config(PipelineConfig, values, source="the options")
        return _Target(made, place, read_annotations(made))

    def checked(self) -> Store:
        """The store; one that is not there yet is not made before `begin`."""
        if is_there(self.place):
            return self._opened()
        return Store(self.place, self.config.dataset, self.config.clip_len_s)

    def begin(self) -> None:
        """Make the store if there is none, and keep the annotations that were given."""
        store = self._opened()
        for split, rows in self.given.items():
            store.save_annotations(split, rows)

    def _opened(self) -> Store:
        dataset, clip_len_s = self.config.dataset, self.config.clip_len_s
        return Store.open_or_create(self.place, dataset=dataset, clip_len_s=clip_len_s)

    def rows(self) -> list[Annotation]:
        """All annotations: those given, and other splits of the store."""
        splits = dict(self.given)
        if is_there(self.place):
            store = open_store(self.place)
            splits = {split: store.annotations(split) for split in store.splits()} | splits
        return [row for rows in splits.values() for row in rows]


def _usual_clip_len(dataset: str | None) -> float:
    from data.annotations import dataset_of

    usual = dataset_of(dataset).clip_len_s if dataset is not None else None
    if usual is None:
        raise UsageError(
            "the clip length of the new store is not known; give --clip-len SECONDS (what one row "
            "of the features stands for), and its --dataset"
        )
    return usual


def _split_file(text: str) -> tuple[str, Path]:
    split, equals, file = text.partition("=")
    if not (split and equals and file):
        raise UsageError(f"--annotations '{text}' is not SPLIT=FILE, e.g. train=train.jsonl")
    return split, Path(file)


def _named(stage: str | None, source: Source) -> str:
    if stage is None:
        raise UsageError(
            f"{source.told}: give the stream a name with --stage, e.g. clip, slowfast, i3d, c3d"
        )
    return stage


def _check_text_options(stage: str | None) -> None:
    if stage not in (None, _TEXT):
        raise UsageError(
            f"these are features of queries, which become the stage '{_TEXT}', not '{stage}'; "
            "leave --stage out, or say with --format what the files are"
        )


def _texts_call(source: Source, origin: str, journey: Any) -> Callable[..., ImportReport]:
    from data.interop import import_texts

    return lambda store, rows: import_texts(store, source, rows, origin=origin, journey=journey)


def _streams_call(source: Source, options: Any, journey: Any) -> Callable[..., ImportReport]:
    from data.interop import import_streams

    return lambda store, rows: import_streams(store, source, options, rows, journey)


@contextmanager
def _bar(silent: bool, name: str) -> Iterator[Callable[[int, int], None]]:
    """How far it is, on a terminal."""
    if silent or not sys.stdout.isatty():
        yield lambda done, count: None
        return
    with Bar(console=new_console(), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, count: bar.update(task, completed=done, total=count)


# --- what is shown


def _show_import(report: ImportReport, target: _Target, as_json: bool, dry_run: bool) -> None:
    if as_json:
        head = {"store": str(target.place), "dry_run": dry_run}
        say(json.dumps(head | report.to_json(), indent=2))
        return
    console = new_console()
    say(f"{report.source}, as stage '{report.stage}' (recipe {report.recipe})")
    table = new_table("Imported" if not dry_run else "Would be imported", "input", "what", "count>")
    for (outcome, what), count in report.counts().items():
        table.add_row(outcome, what, f"{count:,}")
    if report.left_out:
        table.add_row("left out", "no input of these options", f"{len(report.left_out):,}")
    console.print(table)
    told = _sentences(report)
    for sentence, ids in told[:_SHOWN]:
        say(f"{some(ids, 2)}: {sentence}")
    if len(told) > _SHOWN:
        say(f"… and {len(told) - _SHOWN:,} more sentences like these (--json has all)")
    for name, why in list(report.left_out.items())[:3]:
        say(f"left out: {name}: {why}")
    for note in report.notes:
        say(f"note: {note}")
    if report.refused and not dry_run:
        say(
            "what was refused: "
            f"pipeline failures --stage {report.stage} --store {shlex.quote(str(target.place))}"
        )
    if not dry_run and not report.current:
        say("readers are still sent to another recipe; run the same command again, to its end")


def _sentences(report: ImportReport) -> list[tuple[str, list[str]]]:
    """What happened and to which inputs: refusals first, then repairs; the same is said once."""
    found: dict[tuple[bool, str], list[str]] = {}
    for line in report.lines:
        if line.reason or line.by:
            sentence = f"{line.reason}: {line.told}" if line.reason else line.told
            found.setdefault((not line.reason, sentence), []).append(line.id)
    return [(sentence, found[mended, sentence]) for mended, sentence in sorted(found)]


def _show_export(report: ExportReport, as_json: bool) -> None:
    if as_json:
        say(json.dumps(report.to_json(), indent=2))
        return
    table = new_table(
        f"Exported to {report.out} ({report.layout})", "what", "files or rows>", "recipe"
    )
    for name, count in report.files.items():
        table.add_row(name, f"{count:,}", report.recipes.get(name, ""))
    new_console().print(table)
    for name, ids in report.missing.items():
        say(f"{name}: {len(ids):,} are in the annotations and have no row, for example {ids[0]}")
    for note in report.notes:
        say(f"note: {note}")
