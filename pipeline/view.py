"""A config turned into what a run needs: program, inputs, place of the store. Writes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.annotations import DATASETS, dataset_of, load_annotations
from data.annotations.mend import MendReport, mended
from data.annotations.types import Annotation
from data.errors import StoreError, UsageError
from data.identity import check_id
from data.store import ItemKey, Recipe, Store
from data.store.files import size_of
from data.store.place import Place
from data.store.recipes import is_import
from data.video.types import Video
from pipeline.config import PipelineConfig
from pipeline.corpus import Corpus, query_items
from pipeline.program import PROBE, Program
from pipeline.stage import STAGES, Given, Item

__all__ = ["View", "look", "read_annotations", "share_of"]


@dataclass(frozen=True)
class View:
    """A config turned into what the loop needs."""

    program: Program
    corpus: Corpus
    annotations: Mapping[str, list[Annotation]]
    store: Place
    left_out: tuple[str, ...] = ()
    """Stages over queries of a config without annotations, if nobody asked for them by name."""
    whole: bool = True
    """False where `--limit` or `--share` leaves inputs out: no complete recipe comes of them."""
    everything: Corpus | None = None
    """All inputs, of which `--share` takes some; None without a share."""
    mending: Mapping[str, MendReport] = field(default_factory=dict)
    """What training will do to the moments of each split; `annotations` are as in the files."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user does not get, and how to get it; what training will change."""
        left_out = (
            f"{name}: left out, the config has no queries; add `annotations: {{train: FILE}}`"
            for name in self.left_out
        )
        mended = (
            f"annotations of '{split}', mended for training and strict scores: {sentence}"
            for split, report in self.mending.items()
            for sentence in report.sentences()
        )
        return (*left_out, *mended)


def look(
    config: PipelineConfig, asked: Sequence[str], limit: int | None, share: str | None = None
) -> View:
    """Read everything that a config names; writes nothing.

    Args:
        config: the config.
        asked: names of stages; () means those of the config.
        limit: only the first N videos and N queries.
        share: `i/n`: only the i-th of n shares of the inputs (`share_of`).

    Raises:
        UsageError: unknown stage, missing folder or key, bad annotation file, ...
    """
    if config.store is None:
        raise UsageError("no store is given; add `store: FOLDER` to the config, or --set store=...")
    annotations = read_annotations(config)
    mending = _mending(annotations, config)
    options = config.stage_options
    left_out = () if asked or annotations else _over_queries(options)
    wanted = {name: each for name, each in options.items() if name not in left_out}
    store = _store(config.store)
    program = Program.build(config.context, wanted, asked, _imported(store))
    if not program.stages:
        raise UsageError("no stage is asked for; name one with --stage, or add `stages:`")
    over = {stage.over for stage in program.stages}
    if "queries" in over and not annotations:
        names = ", ".join(each.name for each in program.stages if each.over == "queries")
        raise UsageError(
            f"stage {names} works on queries and the config has none; "
            "add `annotations: {train: FILE}`, or leave the stage out"
        )
    given = [each.name for each in program.stages if isinstance(each, Given)]
    by_rows = bool(given) and PROBE not in program.recipes
    videos = _list_videos(config) if "videos" in over and not by_rows else ()
    corpus = Corpus(
        tuple(videos),
        query_items(annotations) if "queries" in over else (),
        _items_of(store, given) if store is not None and by_rows else (),
    )
    all_ = corpus.first(limit)
    some = all_ if share is None else share_of(all_, share)
    everything = all_ if share is not None and all_ == corpus else None
    whole = some == corpus
    return View(program, some, annotations, config.store, left_out, whole, everything, mending)


def share_of(corpus: Corpus, share: str) -> Corpus:
    """The part of the inputs that falls to one of several jobs.

    An input belongs to share `sha256(id) % n + 1`, whatever else there is, so that shares stay
    what they are when videos are added.

    Args:
        corpus: all inputs.
        share: `i/n`, with i from 1 to n, as in `sbatch --array=1-8` with
            `--share $SLURM_ARRAY_TASK_ID/8`.

    Raises:
        UsageError: no such share.
    """
    number, _, count = share.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UsageError(
            f"--share {share} is no share; allowed are 1/N to N/N, e.g. --share 2/8 "
            "(SLURM: --array=1-8 and --share $SLURM_ARRAY_TASK_ID/8)"
        )

    def mine(id_: str) -> bool:
        return int(hashlib.sha256(id_.encode()).hexdigest(), 16) % int(count) + 1 == int(number)

    return Corpus(
        tuple(video for video in corpus.videos if mine(video.id)),
        tuple(item for item in corpus.queries if mine(item.key.id)),
        tuple(item for item in corpus.imported if mine(item.key.id)),
    )


def _store(place: Place) -> Store | None:
    """The store as far as there is one; who writes into it says what is wrong with it."""
    if size_of(place / "store.json") is None:
        return None
    try:
        return Store.open(place)
    except StoreError as error:
        raise UsageError(str(error)) from error


def _imported(store: Store | None) -> dict[str, Recipe]:
    """Recipes of imported features that readers are sent to, by stage."""
    if store is None:
        return {}
    current = {
        stage: store.recipe(stage, recipe_id)
        for stage, recipe_id in store.current.items()
        if recipe_id in store.recipes(stage)
    }
    return {stage: recipe for stage, recipe in current.items() if is_import(recipe)}


def _items_of(store: Store, stages: Sequence[str]) -> tuple[Item, ...]:
    """The videos of imported rows: no file is needed where nothing looks into one."""
    keys: dict[str, ItemKey] = {}
    for stage in stages:
        reader = store.reader(stage, strict=False)
        keys |= {id: reader.key(id) for id in reader.ids()}
    return tuple(Item(key) for _, key in sorted(keys.items()))


def _list_videos(config: PipelineConfig) -> tuple[Video, ...]:
    from data.video import DECODERS, list_videos

    for name in (config.decode.backend, *config.decode.fallbacks):
        # A decoder of one's own, `module:Class`, is imported where it decodes.
        if ":" not in name:
            DECODERS.get(name)
    if config.videos.root is None:
        raise UsageError(
            "no videos are given; add `videos: {root: FOLDER}` to the config, "
            "or --set videos.root=FOLDER"
        )
    return list_videos(config.videos.root).videos


def read_annotations(config: PipelineConfig) -> dict[str, list[Annotation]]:
    """The annotations that a config names, by split; UsageError for what cannot be used."""
    name = config.annotations_format or dataset_of(config.dataset).name
    splits = {split: load_annotations(name, path) for split, path in config.annotations.items()}
    for split, rows in splits.items():
        check_id(split, what="split of `annotations`")
        if any(row.saliency is not None and row.clip_spans_s is None for row in rows):
            _check_saliency_grid(name, config.annotations[split], config.clip_len_s)
    return splits


def _mending(
    splits: Mapping[str, list[Annotation]], config: PipelineConfig
) -> dict[str, MendReport]:
    """What training will do to the moments of each split; UsageError if nothing is left of one."""
    reports: dict[str, MendReport] = {}
    for split, rows in splits.items():
        usable, reports[split] = mended(rows)
        if not usable:
            told = "; ".join(reports[split].sentences())
            raise UsageError(
                f"the annotations {config.annotations[split]} hold no query that can be used: "
                f"{told}; see `trainer lint`"
            )
    return reports


def _check_saliency_grid(dataset: str, file: Path, clip_len_s: float) -> None:
    """Saliency belongs to clips by number, so it means nothing on clips of another length."""
    scored_s = DATASETS.get(dataset).clip_len_at(file)
    if scored_s != clip_len_s:
        raise UsageError(
            f"the saliency scores in {file} belong to clips of {scored_s:g} s (format "
            f"'{dataset}'), but clip_len_s is {clip_len_s:g}; set clip_len_s: {scored_s:g}, or "
            "leave the saliency fields out of the file"
        )


def _over_queries(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if STAGES.get(name).over == "queries")
