"""What several stages share: worker options, the grid of an item, the identity of weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from data.config import Group
from data.errors import UsageError
from data.grid import Grid
from data.video.types import Video, VideoFacts
from models.file_hashes import files_sha256
from models.zoo import ZOO, ZOO_PREFIX, is_named, resolve
from pipeline.stage import Item, Resources, StageContext

__all__ = [
    "NAME_OR_FILE",
    "Configured",
    "NetworkOptions",
    "WorkerOptions",
    "built",
    "check_gpu",
    "explaining_preset",
    "facts_of",
    "grid_of",
    "pixels_params",
    "video_of",
    "weights_params",
]

T = TypeVar("T")

NAME_OR_FILE: dict[str, Any] = {"anchor": "file"}
"""`json_schema_extra` of an option that is a prompt's id, or a file beside the config."""


class WorkerOptions(Group):
    """What one worker of a stage gets. Nothing here changes the rows."""

    cpus: float = Field(1.0, gt=0, description="CPUs that one worker occupies.")
    gpus: Literal["auto"] | Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="GPUs that one worker occupies; may be a fraction. auto: from what is measured "
        "(docs/rates.md); nothing where networks run on the CPU.",
    )
    memory_mb: int = Field(0, ge=0, description="Memory that one worker needs; 0 does not say.")

    def resources_on(self, device: str) -> Resources:
        """The same, for the engine."""
        if self.gpus == "auto":
            return Resources(self.cpus, 0.0, self.memory_mb, auto_gpus=device.startswith("cuda"))
        return Resources(self.cpus, self.gpus, self.memory_mb)


class NetworkOptions(WorkerOptions):
    """Which network a stage uses, and its weights."""

    gpus: Literal["auto"] | Annotated[float, Field(ge=0)] = Field(
        "auto",
        description="GPUs that one worker occupies; may be a fraction. auto: from what is measured "
        "(docs/rates.md); nothing where networks run on the CPU.",
    )
    preset: Literal["tiny", "full"] = Field(
        "tiny", description="`full` is the published architecture, `tiny` a narrow one."
    )
    checkpoint: Path | None = Field(
        None,
        description="Weights or table of the network: a path, zoo:NAME (`pipeline weights list`) "
        "or hf:ORG/NAME; null: random weights from `seed`.",
    )
    seed: int = Field(0, ge=0, description="Seed of random weights.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of the network; they win over preset."
    )

    @model_validator(mode="after")
    def _official_weights_want_the_full_network(self) -> Self:
        if self.preset == "tiny" and self.checkpoint is not None and is_named(str(self.checkpoint)):
            raise ValueError(f"checkpoint '{self.checkpoint}' {_NEEDS_FULL}")
        return self

    @property
    def params(self) -> dict[str, Any]:
        """What determines the network: plain JSON for the recipe."""
        weights = weights_params(self.checkpoint, self.seed)
        return {"preset": self.preset, "options": self.options, "weights": weights}

    @property
    def network_json(self) -> str:
        """The options that say which network, without those of workers and batches."""
        return self.model_dump_json(include=set(NetworkOptions.model_fields) - _OF_WORKERS)


class Configured:
    """A stage whose workers get what its options say."""

    options: WorkerOptions
    context: StageContext

    @property
    def resources(self) -> Resources:
        """As configured."""
        return self.options.resources_on(self.context.device)

    def check_machine(self) -> None:
        """A GPU, if networks are to run on one (`Stage.check_machine`)."""
        if isinstance(self.options, NetworkOptions):
            check_gpu(self.context.device)


def check_gpu(device: str) -> None:
    """UsageError if networks are to run on a GPU and this machine has none."""
    if not device.startswith("cuda"):
        return
    import torch

    if not torch.cuda.is_available():
        raise UsageError(
            "device: cuda is asked for and torch finds no GPU on this machine; say device: "
            "cpu or auto, or name a cluster that has GPUs (engine.address)"
        )


_OF_WORKERS = frozenset(WorkerOptions.model_fields)

_NEEDS_FULL = (
    "is for the published network, and `preset` is 'tiny', the default, a narrow one that official "
    "files do not fit; add `preset: full`"
)


@contextmanager
def explaining_preset(options: NetworkOptions) -> Iterator[None]:
    """While a network is built: a file that does not fit `tiny` is most often one for `full`."""
    try:
        yield
    except UsageError as error:
        if (
            options.preset != "tiny"
            or options.checkpoint is None
            or not options.checkpoint.exists()
        ):
            raise
        raise UsageError(
            f"{error}. `preset` is 'tiny', a narrow network: if '{options.checkpoint.name}' is an "
            "official file, add `preset: full`"
        ) from error


def built(thing: T | None, stage: str) -> T:
    """What `setup` made; a stage that is used without it is a mistake of the engine."""
    if thing is None:
        raise ValueError(f"stage '{stage}' is used before its setup")
    return thing


def video_of(item: Item) -> Video:
    """The video of an item of a stage over videos."""
    if item.video is None:
        raise ValueError(f"item {item.key.id} has no video")
    return item.video


def facts_of(item: Item) -> VideoFacts:
    """What `probe` found about the video of an item."""
    if item.facts is None:
        raise ValueError(f"item {item.key.id} comes without the facts of `probe`")
    return item.facts


def grid_of(item: Item, context: StageContext) -> Grid:
    """The canonical clips of the video of an item."""
    return facts_of(item).grid(context.clip_len_s)


def pixels_params(context: StageContext) -> dict[str, str]:
    """What a recipe says about the way from decoded frames to pixels; nothing for the exact one."""
    return {} if context.decode_mode == "exact" else {"pixels": context.decode_mode}


def weights_params(checkpoint: Path | None, seed: int) -> dict[str, Any]:
    """What a recipe says about the weights of a network, known without building it.

    Returns:
        `kind: file` with a sha256 over the file (or over the files of the folder that matter,
        `models.file_hashes`), or
        `kind: random` with the seed, which together with the architecture fixes every weight.

    Raises:
        UsageError: there is no such checkpoint (`models.zoo.resolve` says where it was looked for),
            or a file that is not what its name in the zoo means.
    """
    if checkpoint is None:
        return {"kind": "random", "seed": seed}
    named = str(checkpoint)
    checkpoint = resolve(checkpoint)
    sha256 = files_sha256(checkpoint)
    if checkpoint.is_file():
        _check_published(named, checkpoint, sha256)
    return {"kind": "file", "sha256": sha256}


def _check_published(named: str, file: Path, sha256: str) -> None:
    """A file that is only called like an official one must not pass for it."""
    entry = ZOO.get(named.removeprefix(ZOO_PREFIX)) if named.startswith(ZOO_PREFIX) else None
    if entry is not None and entry.sha256 is not None and not sha256.startswith(entry.sha256):
        raise UsageError(
            f"'{file}' is not the file that '{named}' means: its sha256 is {sha256}, published is "
            f"{entry.sha256}; remove it and run: pipeline weights fetch {entry.name}"
        )
