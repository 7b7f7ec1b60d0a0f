"""The configuration of the trainer: what a YAML file under `configs/trainer` may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from data.config import Group
from data.errors import UsageError, nearest
from data.store.place import PlaceOption
from models.retrieval import MODELS, PLUGINS
from training.schedule import make_schedule

__all__ = [
    "LOADED_BY",
    "DataGroup",
    "EvalGroup",
    "LoopGroup",
    "ModelGroup",
    "OptimGroup",
    "TrainerConfig",
    "shipped_or_file",
]

SHIPPED = Path(__file__).resolve().parent.parent / "configs" / "trainer"
"""Where the configs that `--config` knows by name are, e.g. `qd_detr/demo`."""


LOADED_BY = {"side.narrative": "narratives", "events": "events"}
"""Which option of `data` loads what a model or plug-in requires of its batches."""


class DataGroup(Group):
    """Which features of which store."""

    store: PlaceOption = Field(description="Folder or URL that `pipeline run` wrote to.")
    train: str = Field("train", description="Split to train on.")
    hold_out: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the training videos that is not trained on: the split 'held_out'.",
    )
    where: dict[str, Any] = Field(
        default_factory=dict,
        description="Only queries with these values (or one of a list) of other fields of a row.",
    )
    streams: tuple[str, ...] = Field(
        ("slowfast", "clip"), min_length=1, description="Per-clip features, in this order."
    )
    other_texts: tuple[str, ...] = Field(
        (),
        description="Further embeddings of the query, as stages.queries.others of the pipeline "
        "names them; the model must read them.",
    )
    narratives: bool = Field(
        False, description="Load narratives; the model or a plug-in must read them."
    )
    events: bool = Field(
        False, description="Load pseudo-events; the model or a plug-in must read them."
    )
    event_depth: int | None = Field(
        None, ge=0, description="Only so many levels of cuts: 1 is coarse; null takes all."
    )
    require: Literal["all", "any"] = Field(
        "all", description="Whether every query must have features, or those without are left out."
    )
    max_clips: int | None = Field(None, ge=1, description="Videos are cut to so many clips.")
    max_tokens: int | None = Field(32, ge=1, description="Queries are cut to so many tokens.")
    normalise: bool = Field(
        True,
        description="Divide features of clips, words and narratives by their length, or as stored.",
    )
    max_windows: int = Field(
        5, ge=1, le=5, description="Moments per query that are targets; more are drawn from."
    )
    cache: Literal["auto", "device", "none"] = Field(
        "auto", description="Features in device memory: if they fit, always, or never."
    )
    workers: int = Field(2, ge=0, description="Reading threads where features are not held.")


class ModelGroup(Group):
    """Which model of the family."""

    name: str = Field(description="Name of a base model.")
    preset: Literal["fixed", "paper", "release"] = Field(
        "fixed", description="Paper with defects mended, as published, or as its public code."
    )
    plugins: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Options of each plug-in by its name."
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the base model, e.g. its width."
    )


class OptimGroup(Group):
    """AdamW and how its rate moves."""

    lr: float = Field(1e-4, gt=0, description="Learning rate.")
    weight_decay: float = Field(1e-4, ge=0, description="Decoupled weight decay.")
    clip_grad: float = Field(0.1, ge=0, description="Largest gradient norm; 0 does not clip.")
    warmup_steps: int = Field(0, ge=0, description="Steps over which the rate rises from 0.")
    schedule: dict[str, Any] = Field(
        default_factory=lambda: {"name": "constant"},
        description="`name` and options of the learning-rate schedule.",
    )

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            make_schedule(value)
        except UsageError as error:
            raise ValueError(str(error)) from None
        return value


class LoopGroup(Group):
    """How long and on what."""

    epochs: int = Field(200, ge=1, description="Passes over the training queries.")
    batch_size: int = Field(32, ge=1, description="Queries per step and process.")
    seed: int = Field(2018, ge=0, description="Of initial weights, order, dropout and draws.")
    device: str = Field("auto", description="`auto` (a GPU if there is one), `cpu`, `cuda`.")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Autocast type of the forward pass."
    )
    compile: bool = Field(False, description="Whether `torch.compile` works on the training step.")
    save_every: int = Field(1, ge=1, description="Epochs between two writes of `last.pt`.")


class EvalGroup(Group):
    """When and how predictions are scored."""

    split: str = Field("val", description="Split that chooses the best epoch.")
    where: dict[str, Any] | None = Field(
        None, description="As data.where, for the split that is scored; null: data.where."
    )
    metrics: str | None = Field(
        None, description="Which evaluator; null: the usual one of the store's dataset."
    )
    mode: Literal["official", "strict"] = Field(
        "official", description="As the published evaluator, or with its quirks mended."
    )
    select: str | None = Field(
        None,
        description="Brief metric that chooses the best epoch; null: what public code chooses by.",
    )
    every: int = Field(1, ge=1, description="Epochs between two evaluations; the last always.")
    batch_size: int = Field(100, ge=1, description="Queries per forward pass.")
    round_to_clip: bool | None = Field(
        None, description="Round predicted edges to whole clips; null: as the dataset's scoring."
    )
    clip_to: Literal["video", "dataset"] = Field(
        "video",
        description="Cut predicted edges to the video, or to the dataset's range as public code.",
    )
    nms_iou: float | None = Field(
        None, gt=0, le=1, description="Drop windows that overlap a better one more than this."
    )


class TrainerConfig(Group):
    """The whole file."""

    data: DataGroup
    model: ModelGroup
    optim: OptimGroup = Field(default_factory=OptimGroup)
    loop: LoopGroup = Field(default_factory=LoopGroup)
    eval: EvalGroup = Field(default_factory=EvalGroup)

    @model_validator(mode="after")
    def _depth_is_of_events(self) -> TrainerConfig:
        if self.data.event_depth is not None and not self.data.events:
            raise ValueError(
                f"data.event_depth={self.data.event_depth}, but no events are loaded; set "
                "data.events=true (and a plug-in or model that reads them), or leave "
                "data.event_depth out"
            )
        return self

    @model_validator(mode="after")
    def _what_is_loaded_can_be_read(self) -> TrainerConfig:
        # whether these options of the model do read it, only the built model knows; and an unknown
        # model or plug-in is explained where it is built
        model = self.model
        if model.name not in MODELS:
            return self
        plugins = [PLUGINS.get(name) for name in model.plugins if name in PLUGINS]
        read = MODELS.get(model.name).requires.union(*(each.requires for each in plugins))
        for need, option in LOADED_BY.items():
            if getattr(self.data, option) and need not in read:
                raise ValueError(
                    f"data.{option}=true, but nothing would read them (model.name: {model.name}, "
                    f"model.plugins: {', '.join(model.plugins) or 'none'}); {_readers(need)}, or "
                    f"set data.{option}=false"
                )
        return self


def _readers(need: str) -> str:
    plugins = [name for name in PLUGINS if need in PLUGINS.get(name).requires]
    models = [name for name in MODELS if need in MODELS.get(name).requires]
    also = f", or take a model that does ({', '.join(models)})" if models else ""
    return f"add a plug-in that does ({', '.join(plugins) or 'none'}){also}"


def shipped_or_file(path: Path) -> Path:
    """A file as it is; else the shipped config of that name, e.g. `qd_detr/demo`.

    Raises:
        UsageError: neither; names the nearest shipped config.
    """
    named = SHIPPED / f"{path}.yaml"
    if path.is_file() or (not named.is_file() and path.suffix):
        return path
    if not named.is_file():
        shipped = (file.relative_to(SHIPPED).with_suffix("") for file in SHIPPED.rglob("*.yaml"))
        names = [each.as_posix() for each in shipped]
        raise UsageError(f"there is no config file '{path}'; {nearest(str(path), names)}")
    return named
