"""What a pipeline.yaml may say.

    extends: tiny                 # a shipped config, the path of another file, or a list of such
    videos: {root: videos}        # a folder, or a JSONL list
    store: store                  # or s3://bucket/store
    annotations: {train: train.jsonl}
    stages:
      clip: {batch_size: 64}      # the options of each stage: its own model

Paths are relative to the file that names them, paths of `--set` to the current folder. A section
`stages` names what runs when no `--stage` is given.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from inspect import isclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, create_model, field_validator

from data.config import Group, load_config, parse_config
from data.errors import UsageError
from data.store.place import PlaceOption, is_url
from data.video.limits import DEFAULT_LIMITS, VideoLimits
from models.captioners.prompts import is_prompt_file
from models.zoo import in_hub, is_named
from pipeline.engine.limits import ATTEMPTS
from pipeline.stage import STAGES, StageContext
from pipeline.stages.common import NAME_OR_FILE

__all__ = [
    "SHIPPED",
    "Attempts",
    "Decode",
    "DecodeLimits",
    "Engine",
    "PipelineConfig",
    "Videos",
    "load_pipeline_config",
    "shipped_configs",
]

SHIPPED = Path(__file__).resolve().parent.parent / "configs" / "pipeline"
"""Where the configs that `extends` knows by name are."""

_OWN_DECODERS = "STORYLINE_DECODERS"
"""Environment variable: decoders `module:Class` that a config may name, separated by commas."""

_STARTER = "extends: tiny\nvideos: {root: FOLDER OF VIDEOS}\nstore: FOLDER FOR THE RESULTS"


class Videos(Group):
    """Which videos."""

    root: Path | None = Field(None, description="A folder of media files, or a JSONL list.")


class DecodeLimits(Group):
    """What a video may declare; beyond it is quarantine (`too-large`) before anything is decoded.

    Fields as in `data.video.limits.VideoLimits`, which says what they mean.
    """

    max_side: int = Field(DEFAULT_LIMITS.max_side, ge=1, description="Pixels of the longer side.")
    max_pixels: int = Field(DEFAULT_LIMITS.max_pixels, ge=1, description="Pixels of a picture.")
    max_duration_h: float = Field(DEFAULT_LIMITS.max_duration_h, gt=0, description="Hours.")
    max_frames: int = Field(DEFAULT_LIMITS.max_frames, ge=1, description="Frames of a file.")
    max_fps: float = Field(DEFAULT_LIMITS.max_fps, gt=0, description="Frames per second.")
    max_streams: int = Field(DEFAULT_LIMITS.max_streams, ge=1, description="Streams of a file.")
    max_channels: int = Field(DEFAULT_LIMITS.max_channels, ge=1, description="Of its sound.")
    max_rate_hz: int = Field(
        DEFAULT_LIMITS.max_rate_hz, ge=1, description="Samples per second of its sound."
    )
    memory_mb: int = Field(
        DEFAULT_LIMITS.memory_mb, ge=0, description="MiB of a decoding process; 0: no limit."
    )


class Decode(Group):
    """How videos are decoded."""

    backend: str = Field("pyav", description="Name of the decoder.")
    fallbacks: tuple[str, ...] = Field(("decord",), description="Decoders to try when it fails.")
    damaged: Literal["keep", "quarantine"] = Field(
        "keep", description="Videos with undecodable packets: keep what decodes, or refuse them."
    )
    mode: Literal["exact", "fast"] = Field(
        "exact", description="Pixels as ffmpeg makes them, or cheaper ones (docs/decoding.md)."
    )
    timeout_s: float = Field(300.0, gt=0, description="Longest time without a decoded frame.")
    limits: DecodeLimits = DecodeLimits()

    @field_validator("backend", "fallbacks")
    @classmethod
    def _registered_or_allowed(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        """A file that someone else wrote must not choose which code is imported."""
        allowed = os.environ.get(_OWN_DECODERS, "").split(",")
        for name in (value,) if isinstance(value, str) else value:
            if ":" in name and name not in allowed:
                raise ValueError(
                    f"'{name}' is code of your own, which a configuration file alone cannot "
                    f"start; if you trust it: export {_OWN_DECODERS}={name}"
                )
        return value


def _tries(cause: str, meaning: str) -> Any:
    return Field(ATTEMPTS[cause], ge=1, description=f"Tries of an input {meaning}.")


class Attempts(Group):
    """How often what may happen to one input before it goes to quarantine."""

    crash: int = _tries("crash", "whose worker's process crashes")
    killed: int = _tries("killed", "whose worker is killed from outside, or ends without a trace")
    out_of_memory: int = _tries("out-of-memory", "with which the machine runs out of memory")
    node_lost: int = _tries("node-lost", "whose machine is lost")
    timeout: int = _tries("timeout", "that runs out of time")
    exception: int = _tries("exception", "for which the stage raises")
    decoder: int = _tries("decoder", "whose decoder dies or hangs")

    @property
    def by_cause(self) -> dict[str, int]:
        """The causes as failures name them."""
        return {name.replace("_", "-"): count for name, count in self.model_dump().items()}


class Engine(Group):
    """Who does the work, and how patiently."""

    executor: Literal["ray", "inline"] = Field("ray", description="inline: in this process.")
    workers: Literal["auto"] | PositiveInt = Field(
        "auto", description="Workers per stage; auto: as many as fit."
    )
    address: str | None = Field(None, description="Ray cluster; null starts a local Ray.")
    cpus: Literal["auto"] | PositiveInt = Field("auto", description="Logical CPUs of a local Ray.")
    timeout_s: float = Field(
        1800.0,
        gt=0,
        description="Longest time for what a worker is given at once, per ten minutes of video.",
    )
    setup_timeout_s: float = Field(1800.0, gt=0, description="Longest time to start a worker.")
    grace_s: float = Field(
        30.0, ge=0, description="Time to finish and write after SIGTERM or Ctrl-C."
    )
    attempts: Attempts = Attempts()
    commit_every_s: float = Field(60.0, ge=0, description="Age at which rows are written.")
    shard_mb: float = Field(128.0, gt=0, description="Size at which rows are written, in MiB.")


class PipelineConfig(Group):
    """The whole pipeline.yaml. `stages` holds one group of options per configured stage."""

    dataset: str = Field("videos", description="Name of the dataset; goes into the store.")
    videos: Videos = Videos()
    store: PlaceOption | None = Field(
        None, description="Folder of the store, or its URL (s3://bucket/store, gs://…)."
    )
    annotations: dict[str, Path] = Field(
        default_factory=dict, description="Annotation file of each split."
    )
    annotations_format: str | None = Field(
        None, description="Format of the annotation files; null: that of `dataset`."
    )
    clip_len_s: float = Field(2.0, gt=0, description="Clip length of the grid in seconds.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Device of networks; auto: cuda where this machine has it."
    )
    decode: Decode = Decode()
    stages: Any = Field(default_factory=dict, description="Options of each stage.")
    engine: Engine = Engine()

    @property
    def stage_options(self) -> dict[str, BaseModel]:
        """Options of the configured stages, by name."""
        return dict(_given(self.stages)) if isinstance(self.stages, BaseModel) else {}

    @property
    def context(self) -> StageContext:
        """What every stage is constructed with."""
        return StageContext(
            clip_len_s=self.clip_len_s,
            decoder=self.decode.backend,
            fallbacks=self.decode.fallbacks,
            damaged=self.decode.damaged,
            decode_mode=self.decode.mode,
            device=_device(self.device),
            decode_timeout_s=self.decode.timeout_s,
            limits=VideoLimits(**self.decode.limits.model_dump()),
        )


def load_pipeline_config(path: Path, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Read a config file, or a shipped config by its name, with what it extends.

    Args:
        path: the file, or the name of a shipped config ("tiny").
        overrides: `a.b=value`.

    Raises:
        UsageError: no such file, unknown key (names the nearest), wrong value.
    """
    import pipeline.stages  # noqa: F401 - registers the stages whose options are read

    # Overrides go last, but their paths mean the current folder: they are read on their own first.
    given = parse_config(_Anything, {}, overrides, source="--set").model_dump()
    one = any(f".{key}." in each.partition("=")[0] for each in overrides for key in _WHOLE)
    values = _merge(_read(_find(path), ()), _anchored(given, Path.cwd()), () if one else _WHOLE)
    if "stages" in values:
        values["stages"] = _without_nulls(values["stages"])
    source = str(path) + "".join(f" --set {each}" for each in overrides)
    return parse_config(_model(), values, source=source)


def shipped_configs() -> dict[str, Path]:
    """The configs that come with Storyline, by name."""
    return {file.stem: file for file in sorted(SHIPPED.glob("*.yaml"))}


class _Anything(BaseModel):
    """Any mapping: what a file says before it is merged and checked."""

    model_config = ConfigDict(extra="allow")


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    named = shipped_configs().get(str(path))
    if named is not None:
        return named
    raise UsageError(
        f"there is no config file '{path}'; write one, e.g. these three lines:\n{_STARTER}\n"
        f"or name one with --config (shipped: {', '.join(shipped_configs())})"
    )


def _read(path: Path, before: tuple[Path, ...]) -> dict[str, Any]:
    if path in before:
        circle = " -> ".join(str(each) for each in (*before, path))
        raise UsageError(f"config files extend each other in a circle: {circle}")
    values = load_config(_Anything, path).model_dump()
    base = values.pop("extends", None)
    values = _anchored(values, path.parent.resolve())
    merged: dict[str, Any] = {}
    for each in _bases(base, path):
        merged = _merge(merged, _read(_base(each, path), (*before, path)))
    return _merge(merged, values)


def _bases(base: Any, path: Path) -> list[str]:
    """One name or several: what a later one says replaces what an earlier one says."""
    names = base if isinstance(base, list) else [base] if base is not None else []
    if not all(isinstance(name, str) for name in names):
        raise UsageError(f"{path}: `extends` is one name or a list of names, not {base!r}")
    return names


def _base(base: str, path: Path) -> Path:
    beside = path.parent / base
    named = shipped_configs().get(base)
    if named is None and not beside.is_file():
        raise UsageError(
            f"{path} extends '{base}', which is no file beside it and no shipped config "
            f"({', '.join(shipped_configs())})"
        )
    return named or beside


_WHOLE = ("streams",)
"""Mappings that replace: a stream that another file named would count without being named here."""


def _merge(
    base: Mapping[str, Any], over: Mapping[str, Any], whole: Sequence[str] = _WHOLE
) -> dict[str, Any]:
    """`over` on top of `base`, mapping by mapping; other values, and keys of `whole`, replace."""
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        if key not in whole and isinstance(inner, Mapping) and isinstance(value, Mapping):
            merged[key] = _merge(inner, value, whole)
        else:
            merged[key] = value
    return merged


def _anchored(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`values` with the paths in them made absolute."""
    values = dict(values)
    if isinstance(values.get("store"), str) and not is_url(values["store"]):
        values["store"] = str(folder / values["store"])
    if isinstance(videos := values.get("videos"), Mapping) and isinstance(videos.get("root"), str):
        values["videos"] = {**videos, "root": str(folder / videos["root"])}
    if isinstance(splits := values.get("annotations"), Mapping):
        values["annotations"] = {
            split: str(folder / file) if isinstance(file, str) else file
            for split, file in splits.items()
        }
    if isinstance(stages := values.get("stages"), Mapping):
        values["stages"] = {
            name: _anchor_options(str(name), section, folder) for name, section in stages.items()
        }
    return values


def _anchor_options(name: str, section: Any, folder: Path) -> Any:
    """Options that the stage declares as paths are relative to the file, too."""
    if name not in STAGES or not isinstance(section, Mapping):
        return section
    made = _anchor_fields(STAGES.get(name).Options, section, folder)
    if isinstance(inner := made.get("options"), Mapping):
        made["options"] = {
            key: _anchor_path(value, folder)
            if isinstance(value, str) and value and key in STAGES.get(name).inner_paths
            else value
            for key, value in inner.items()
        }
    return made


def _anchor_fields(
    options: type[BaseModel], section: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """A section, and the groups of options that it holds by names of the user's."""
    fields = options.model_fields
    paths = {key for key, field in fields.items() if "Path" in str(field.annotation)}
    named = {key for key, field in fields.items() if field.json_schema_extra == NAME_OR_FILE}
    groups = {key: group for key, field in fields.items() if (group := _group_in(field.annotation))}
    made = {
        key: _anchor_path(value, folder)
        if isinstance(value, str) and (key in paths or (key in named and is_prompt_file(value)))
        else value
        for key, value in section.items()
    }
    for key, group in groups.items():
        if isinstance(held := made.get(key), Mapping):
            made[key] = {
                name: _anchor_fields(group, each, folder) if isinstance(each, Mapping) else each
                for name, each in held.items()
            }
    return made


def _group_in(annotation: Any) -> type[BaseModel] | None:
    """The group of options that a mapping holds; None for any other annotation."""
    inner = get_args(annotation)[-1:] if get_origin(annotation) is dict else ()
    return next((each for each in inner if isclass(each) and issubclass(each, BaseModel)), None)


def _anchor_path(value: str, folder: Path) -> str:
    """A name of weights (`zoo:…`, `hf:…`, `ORG/NAME` that is in the cache) is no path."""
    if is_named(value) or (not (folder / value).exists() and in_hub(value)):
        return value
    return str(folder / value)


def _without_nulls(stages: Any) -> Any:
    """`clip:` with nothing behind it asks for the stage with its default options."""
    if not isinstance(stages, Mapping):
        return stages
    return {name: {} if section is None else section for name, section in stages.items()}


def _model() -> type[PipelineConfig]:
    """PipelineConfig with one optional group per registered stage.

    One model for the whole file, so that every error names the full key (`stages.clip.width`).
    """
    groups: dict[str, Any] = {name: (STAGES.get(name).Options | None, None) for name in STAGES}
    stages = create_model("Stages", __base__=Group, **groups)
    fields: dict[str, Any] = {"stages": (stages, stages())}
    return create_model("PipelineConfig", __base__=PipelineConfig, **fields)


def _given(stages: BaseModel) -> Iterator[tuple[str, BaseModel]]:
    for name in type(stages).model_fields:
        options = getattr(stages, name)
        if options is not None:
            yield name, options


def _device(wanted: str) -> str:
    """`auto` is cuda where the driver of this machine is and torch can use it."""
    if wanted != "auto":
        return wanted
    if not Path("/dev/nvidiactl").exists():
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
