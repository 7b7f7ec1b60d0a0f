"""A run from a checkpoint of public code: what `trainer predict` and `evaluate` need, nothing else.

The folder has `config.yaml`, `environment.json` (with `imported`: model, file, the features that it
reads, the options that the checkpoint says it was trained with, and those of `--set`),
`checkpoints/best.pt`, and `trained_on.json` if somebody said what it was trained on. It has no
history, and cannot be continued.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from data.annotations import dataset_of
from data.config import overridden, parse_config
from data.dataset import MomentDataset
from data.errors import UsageError, nearest
from data.identity import file_sha256
from data.store.place import anchored, place_of, text_of
from models.retrieval import MODELS, load_official
from models.retrieval.official import supported, translated
from models.retrieval.public_file import read_checkpoint
from training.checks import rows_trained_on
from training.config import TrainerConfig
from training.run import Run, environment
from training.trained_on import TrainedOn, remember

__all__ = ["check_features", "import_checkpoint"]

NO_STORE = "store"
"""What `data.store` says until somebody says where the store is."""

_NOT_OPTIONS = {"name", "preset", "plugins", "video_dim", "text_dim", "side_dims", "text_dims"}
"""What a recipe holds beside the options of the model."""


def import_checkpoint(
    name: str,
    checkpoint: Path,
    out: Path,
    *,
    store: str | None = None,
    streams: Sequence[str] = (),
    trained_on: Sequence[str] = (),
    dataset: str | None = None,
    overrides: Sequence[str] = (),
) -> list[str]:
    """Write the run of a public checkpoint; nothing is written if anything is wrong.

    Args:
        name: one of `list_models()`.
        checkpoint: file of the public code.
        out: folder of the run; it must not exist or be empty.
        store: path or URL; None leaves it to `--set data.store=`.
        streams: per-clip features in order; none takes what the checkpoint's options name.
        trained_on: annotation files that it was trained on.
        dataset: whose format they have.
        overrides: options of the model as `KEY=VALUE`; they win over the checkpoint's.

    Returns:
        What the user must know, in sentences.

    Raises:
        UsageError: an unknown model, a file that cannot be read safely or does not fit, options
            that this project has no part for, an override of no option, or a folder that is taken.
    """
    Run.refuse_taken(out)
    layout = MODELS.get(name).official
    wanted = _wanted(name, overrides)  # before a large file is read
    weights, public = read_checkpoint(checkpoint)
    found, lacking = translated(layout, public, weights)
    form = layout.for_store
    fixed = form.options(found)
    _refuse_fixed(wanted, fixed)
    model = load_official(name, {"model": weights, "opt": public}, **fixed | wanted)
    asked = _Asked.of(public, streams)
    trained = _trained_on(trained_on, dataset)
    options = {key: x for key, x in model.recipe.items() if key not in _NOT_OPTIONS}
    config = parse_config(
        TrainerConfig,
        {
            "data": {
                "store": text_of(anchored(place_of(store))) if store else NO_STORE,
                **form.data,
                **asked.data(),
            },
            "model": {"name": name, "preset": model.recipe["preset"], "options": options},
        },
        source=f"the options of '{checkpoint}'",
    )
    reads = {
        "clip": model.recipe["video_dim"],
        "word": model.recipe["text_dim"],
        "word_encoder": form.word_encoder,
    }
    imported = {
        "model": name,
        "checkpoint": {"file": checkpoint.name, "sha256": file_sha256(checkpoint)},
        "reads": reads,
        "set": {key: _plain(value) for key, value in wanted.items()},
        "options": {key: _plain(value) for key, value in sorted(public.items())},
    }
    about = {**environment(torch.device("cpu"), 1, {}), "imported": imported}
    run = Run.create(out, config, about)
    run.save("best", lambda: {"model": model.state_dict()})
    if trained:
        remember(out, trained)
    told = (
        f"{len(weights)} tensors of '{checkpoint}' are a run in {out}: model '{name}', "
        f"{reads['clip']:,} features a clip (two of them its place) and {reads['word']:,} a word"
    )
    unsaid = [key for key in lacking if key not in layout.unseen]
    defaults = _defaults(unsaid, some_set=bool(wanted))
    return [told, *defaults, *form.notes, *asked.sentences(), *_left_open(store, trained)]


def _defaults(unsaid: Sequence[str], *, some_set: bool) -> list[str]:
    """What was taken for public options that the file does not say."""
    if not unsaid:
        return []
    kept = " where --set says nothing" if some_set else ""
    return [f"its options do not say {', '.join(unsaid)}: defaults were taken{kept}"]


def _wanted(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Options of the model from the command line; their values are checked where it is built.

    Raises:
        UsageError: not of the form KEY=VALUE, or no option of the model.
    """
    wanted = overridden({}, overrides)
    known = MODELS.get(name).options.model_fields
    for key in wanted:
        if key not in known:
            raise UsageError(
                f"--set {key}: model '{name}' has no such option; {nearest(key, known)}"
            )
    return wanted


def _refuse_fixed(wanted: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """UsageError for an override of what a run that reads a store must be."""
    for key in sorted(wanted.keys() & fixed.keys()):
        if wanted[key] != fixed[key]:
            raise UsageError(
                f"--set {key}={wanted[key]}: a run reads a store, and for that this model is built "
                f"with {key}={fixed[key]}; leave it out, or build the model in Python with "
                "`load_official` (docs/models.md)"
            )


def check_features(run: Run, samples: MomentDataset) -> None:
    """Before an imported run reads a store: whether its features are those of the checkpoint.

    Raises:
        UsageError: features of another width, or words of another encoder; says what to do.
    """
    reads = run.about.get("imported", {}).get("reads")
    if reads is None:
        return
    there = {"clip": samples.video_dim, "word": samples.text_dim}
    streams = ", ".join(samples.streams)
    for what, remedy in (
        (
            "clip",
            f"those of data.streams ({streams}) and two of its place; import it again with "
            "--stream NAME for each of its streams, or give a store of its features",
        ),
        ("word", "those of the stage 'queries'; make a store of its text features"),
    ):
        if there[what] != reads[what]:
            raise UsageError(
                f"'{run.path}' reads {reads[what]:,} features a {what}, and this store has "
                f"{there[what]:,}, {remedy}"
            )
    encoder = samples.word_encoder
    if None not in (reads["word_encoder"], encoder) and encoder != reads["word_encoder"]:
        raise UsageError(
            f"'{run.path}' reads word vectors of the text encoder '{reads['word_encoder']}', and "
            f"the queries of this store were encoded by '{encoder}'; make them again with "
            f"stages.queries: {{encoder: {reads['word_encoder']}}} (docs/narratives.md)"
        )


@dataclass(frozen=True)
class _Asked:
    """What the options of a checkpoint say about the features that it wants.

    Args:
        streams: per-clip features in order; none if they say nothing.
        said: whether the user named them.
        max_clips, max_tokens: videos and queries are cut to; None if the options do not say.
        clip_len_s: of its features.
    """

    streams: tuple[str, ...]
    said: bool
    max_clips: int | None
    max_tokens: int | None
    clip_len_s: float | None

    @classmethod
    def of(cls, public: Mapping[str, Any], streams: Sequence[str]) -> _Asked:
        """Read the options of the lineage; others have other names and say nothing here.

        Raises:
            UsageError: features that were not prepared as ours are.
        """
        supported(
            public,
            {
                "no_norm_vfeat": (False,),
                "no_norm_tfeat": (False,),
                "ctx_mode": ("video_tef",),
            },
        )
        folders = public.get("v_feat_dirs") or ()
        folders = [folders] if isinstance(folders, str) else folders
        found = streams or [_stage_of(str(folder)) for folder in folders]
        return cls(
            tuple(found),
            bool(streams),
            _number(public.get("max_v_l")),
            _number(public.get("max_q_l")),
            _seconds(public.get("clip_length")),
        )

    def data(self) -> dict[str, Any]:
        """Values for the group `data` of a configuration; what is not said keeps its default."""
        values = {
            "streams": list(self.streams),
            "max_clips": self.max_clips,
            "max_tokens": self.max_tokens,
        }
        return {key: value for key, value in values.items() if value}

    def sentences(self) -> list[str]:
        """What the user should compare with their store."""
        told = []
        if not self.said:
            named = ", ".join(self.streams) or "nothing; taking slowfast, clip"
            told.append(f"streams as its options name them: {named}; --stream says otherwise")
        if self.clip_len_s is not None:
            told.append(f"it was trained on clips of {self.clip_len_s:g} s")
        return told


def _stage_of(folder: str) -> str:
    """`../features/slowfast_features/` is what a store calls `slowfast`."""
    return Path(folder).name.split("_feat")[0]


def _number(value: Any) -> int | None:
    """Lengths below 1 mean "all" in the public code."""
    return value if isinstance(value, int) and value > 0 else None


def _seconds(value: Any) -> float | None:
    """A length in seconds; None for what is none."""
    known = isinstance(value, int | float) and isfinite(value) and value > 0
    return float(value) if known else None


def _plain(value: Any) -> Any:
    """An option as JSON has it; what JSON does not know, as text."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    known = isinstance(value, bool | int | str) or (isinstance(value, float) and isfinite(value))
    return value if value is None or known else str(value)


def _trained_on(files: Sequence[str], dataset: str | None) -> TrainedOn | None:
    if not files:
        return None
    rows = [row.annotation for row in rows_trained_on(files, dataset)]
    if not rows:
        raise UsageError(f"--trained-on: {', '.join(files)} has no queries; give the right file")
    name = ", ".join(files)
    return TrainedOn.of(rows, name, dataset or "", dataset_of(dataset or "").source_of)


def _left_open(store: str | None, trained: TrainedOn | None) -> list[str]:
    told = []
    if store is None:
        told.append("evaluate and predict need the store: --set data.store=STORE")
    if trained is None:
        told.append(
            "nobody said what it was trained on, so shared videos may go unnoticed; "
            "--trained-on FILE says it"
        )
    return told
