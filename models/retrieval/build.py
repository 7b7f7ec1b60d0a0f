"""Models and plug-ins by name, and how they are put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from data.errors import UsageError, nearest
from data.registry import Registry
from models.retrieval.criterion import Criterion
from models.retrieval.decode import Decoding
from models.retrieval.model import RetrievalModel
from models.retrieval.official import OfficialLayout, fill, translated
from models.retrieval.public_file import read_checkpoint
from models.retrieval.stages import Parts

__all__ = [
    "MODELS",
    "PLUGINS",
    "PRESETS",
    "BasesWithout",
    "Blueprint",
    "Dims",
    "ModelFamily",
    "Options",
    "Plugin",
    "Preset",
    "create_model",
    "list_models",
    "load_official",
    "read_options",
]

Preset = Literal["fixed", "release", "paper"]
PRESETS: tuple[Preset, ...] = ("fixed", "release", "paper")


class Options(BaseModel):
    """Options of a model or plug-in: unknown ones are errors, values are checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


OptionsT = TypeVar("OptionsT", bound=Options)


@dataclass(frozen=True)
class Dims:
    """Widths of what comes in.

    Args:
        video: features of a clip, with the two TEF columns.
        text: features of a word.
        sides: features of each side stream.
        texts: features of a word in each further embedding of the query.
    """

    video: int
    text: int
    sides: Mapping[str, int] = field(default_factory=dict)
    texts: Mapping[str, int] = field(default_factory=dict)

    @property
    def carried(self) -> tuple[str, ...]:
        """What comes in beside video and text, as parts ask for it."""
        return (*(f"side.{name}" for name in self.sides), *(f"text.{name}" for name in self.texts))


@dataclass(frozen=True)
class Blueprint:
    """A model before it is composed; plug-ins change `parts` and the criterion's terms there.

    Args:
        parts: along the path; `parts.terms` are the loss terms.
        criterion: makes the criterion of the final terms.
        decoding: how spans become windows.
        width: features between the parts.
    """

    parts: Parts
    criterion: Callable[[Parts], Criterion]
    decoding: Decoding
    width: int


@dataclass(frozen=True)
class ModelFamily(Generic[OptionsT]):
    """One base model: what a file of this package registers.

    Args:
        options: its options with the defaults of the `fixed` preset.
        presets: what `release` and `paper` change.
        build: makes the blueprint.
        official: its public checkpoint layout.
        inert: regular expressions of parameters that the public layout has and that cannot
            influence the output.
        inert_in: further ones of a preset.
        requires: what batches must carry beside video and text: `side.<name>`, `events`. Options
            may make that less, or add `text.<name>`, a further embedding of the query;
            `RetrievalModel.reads` is what a built model reads.
        gives: outputs beyond those of every model that a plug-in may ask for (`BasesWithout`).
    """

    options: type[OptionsT]
    presets: Mapping[Preset, Mapping[str, Any]]
    build: Callable[[Dims, OptionsT], Blueprint]
    official: OfficialLayout
    inert: tuple[str, ...] = ()
    inert_in: Mapping[Preset, tuple[str, ...]] = field(default_factory=dict)
    requires: frozenset[str] = frozenset()
    gives: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Plugin(Generic[OptionsT]):
    """A component that composes with several bases: what a file of `plugins` registers.

    Args:
        stage: where on the path it acts.
        requires: what the path must provide there; `side.<name>` and `events` are what batches
            must carry beside video and text.
        options: its options.
        apply: changes a blueprint.
        off: options under which the model is the one without the plug-in.
        conflicts: why it does not go with a model or with another plug-in, by that one's name.
        wakes: regular expressions of a base's inert parameters that have an effect with it.
        inert: regular expressions of its own parameters that cannot influence the output.
    """

    stage: str
    requires: frozenset[str]
    options: type[OptionsT]
    apply: Callable[[Blueprint, Dims, OptionsT], Blueprint]
    off: Mapping[str, Any] = field(default_factory=dict)
    conflicts: Mapping[str, str] = field(default_factory=dict)
    wakes: tuple[str, ...] = ()
    inert: tuple[str, ...] = ()


MODELS: Registry[ModelFamily[Any]] = Registry("model")
PLUGINS: Registry[Plugin[Any]] = Registry("plug-in")


class BasesWithout(Mapping[str, str]):
    """`Plugin.conflicts` with every model whose family does not give something, whenever it was
    registered.

    Args:
        output: what a family must name in its `gives`.
        reason: for the others.
    """

    def __init__(self, output: str, reason: str) -> None:
        self._output, self._reason = output, reason

    def __getitem__(self, name: str) -> str:
        if name in MODELS and self._output not in MODELS.get(name).gives:
            return self._reason
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name in MODELS if self._output not in MODELS.get(name).gives)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def list_models() -> list[str]:
    """Names that `create_model` takes."""
    return MODELS.names()


def create_model(
    name: str,
    *,
    video_dim: int,
    text_dim: int,
    preset: Preset = "fixed",
    plugins: Mapping[str, Mapping[str, Any]] | None = None,
    side_dims: Mapping[str, int] | None = None,
    text_dims: Mapping[str, int] | None = None,
    **options: Any,
) -> RetrievalModel:
    """Build a retrieval model.

    The base is initialised before its plug-ins, so that under one seed it has the same weights
    with and without them.

    Args:
        name: one of `list_models()`.
        video_dim: features of a clip, with the two TEF columns.
        text_dim: features of a word.
        preset: `fixed` is the paper with the defects of its code mended, `release` what the
            public code does, `paper` what the paper says.
        plugins: options of each plug-in by its name, in the order in which they act.
        side_dims: features of each side stream that the batches carry.
        text_dims: features of a word in each further embedding of the query that they carry.
        options: options of the model; they win over the preset's.

    Raises:
        UsageError: an unknown name, preset, plug-in or option, a value that is not allowed, or
            parts that do not fit.
    """
    family = MODELS.get(name)
    if preset not in PRESETS:
        raise UsageError(f"unknown preset '{preset}'; {nearest(preset, PRESETS)}")
    dims = Dims(video_dim, text_dim, dict(side_dims or {}), dict(text_dims or {}))
    merged = {**family.presets.get(preset, {}), **options}
    chosen = read_options(f"model '{name}'", family.options, merged)
    blueprint = family.build(dims, chosen)
    settings: dict[str, Options] = {}
    for key, values in (plugins or {}).items():
        plugin = PLUGINS.get(key)
        _refuse_conflicts(key, (name, *settings))
        settings[key] = read_options(f"plug-in '{key}'", plugin.options, values)
        blueprint = plugin.apply(blueprint, dims, settings[key])
    recipe = {
        "name": name,
        "video_dim": video_dim,
        "text_dim": text_dim,
        "preset": preset,
        "plugins": {key: each.model_dump() for key, each in settings.items()},
        "side_dims": dict(dims.sides),
        "text_dims": dict(dims.texts),
        **chosen.model_dump(),
    }
    return RetrievalModel(
        blueprint.parts,
        blueprint.criterion(blueprint.parts),
        decoding=blueprint.decoding,
        recipe=recipe,
        carried=dims.carried,
    )


def _refuse_conflicts(key: str, present: Iterable[str]) -> None:
    """Raise if a plug-in does not go with a model or plug-in, whichever of the two says so."""
    mine = PLUGINS.get(key).conflicts
    for other in present:
        theirs = PLUGINS.get(other).conflicts if other in PLUGINS else {}
        reason = mine.get(other) or theirs.get(key)
        if reason:
            raise UsageError(f"plug-in '{key}' does not go with '{other}': {reason}")


def load_official(
    name: str, checkpoint: Path | str | Mapping[str, Any], **options: Any
) -> RetrievalModel:
    """A model with the weights of a public checkpoint, built with the `release` preset.

    Args:
        name: one of `list_models()`.
        checkpoint: a file of the public code, or a mapping with `model` (state dict in the public
            layout) and `opt` (options under their public names). A size that is not said keeps our
            default, which the shapes of the tensors check; heads, which no shape shows, must be.
        options: options of the model under our names; they win over the checkpoint's.

    Returns:
        The model in eval mode.

    Raises:
        UsageError: the file cannot be read safely, an option is not supported or must be said
            and is not, or tensors are missing, unexpected or of another shape; all are named.
    """
    layout = MODELS.get(name).official
    weights, public = read_checkpoint(checkpoint)
    found, lacking = translated(layout, public, weights)
    chosen = {"preset": "release"} | found | options
    for theirs, ours in layout.unseen.items():
        if ours not in chosen:
            raise UsageError(
                f"the options of the checkpoint ('opt') do not say '{theirs}', which no tensor "
                f"shows; of those that are read they lack {', '.join(lacking)}. Give all that its "
                f"public code saved, or say {ours}=… (`trainer import-checkpoint --set {ours}=…`)"
            )
    model = create_model(name, **chosen)
    fill(model, layout, weights, lacking)
    return model.eval()


def read_options(owner: str, options: type[OptionsT], values: Mapping[str, Any]) -> OptionsT:
    """Check options.

    Args:
        owner: whose options they are, for the error message.
        options: their model.
        values: what was given.

    Raises:
        UsageError: an option that does not exist, with the nearest that does, or a value that is
            not allowed.
    """
    for key in values:
        if key not in options.model_fields:
            raise UsageError(f"{owner} has no option '{key}'; {nearest(key, options.model_fields)}")
    try:
        return options(**values)
    except ValidationError as error:
        reasons = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'options'}: {each['msg']}, got {each['input']!r}"
            for each in error.errors()
        )
        raise UsageError(f"{owner} cannot be built: {reasons}") from error
