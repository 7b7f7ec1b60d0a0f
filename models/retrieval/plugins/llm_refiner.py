"""LLMEPET's refiner: frozen layers of a language model over the memory.

Jiang et al., "Prior Knowledge Integration via LLM Encoding and Pseudo Event Regulation for Video
Moment Retrieval", ACM MM 2024, https://arxiv.org/abs/2407.15051, Eq. 8; the block is that of
LM4VisualEncoding. A trained matrix lifts the memory to the width of a LLaMA, some of its layers
run over it frozen, and a second matrix brings it back:

    Y = RMS(LLaMA(X A₁ᵀ)) A₂ᵀ

Of a base with a global token, that token and the clips are refined as one sequence; of a base whose
decoder attends to more than clips, `scope` says what of it. The paper does not say (Table 6), and
the public code has one base, whose memory is a token and clips.

scope: `kv` refines all that the decoder attends to: clips and words of Moment-DETR, EaTR, BM-DETR
    and UniVTG, clips of video and narrative of LMR, in one sequence. `clip` refines the clips (and
    the global token) and leaves the rest as the fuser made it.

What differs from the public code (https://github.com/fletcherjiang/LLMEPET, commit e33af23), as
options:

attend: `time` lets the rows of a sample read each other. `batch`: what the public code does: its
    (row, sample, feature) tensor reaches a block that takes the first axis for samples, so that
    row t of a sample reads row t of the other samples, padding too, and never another row.
layers: zero-based numbers in the whole network. The paper's "14th to 17th" are 13 to 16; the main
    scripts give 14, 15, 16.
final_norm: gain of the norm after the last layer: `ones`, as the public code leaves it in
    training; `loaded` the LLaMA's, or what a public checkpoint holds; `none` no norm.
weights: `file` is a file of `trainer llm-layers`, which no checkpoint of ours holds: its hash is in
    the recipe. `embedded` is for public checkpoints, which hold the LLaMA: so does the state dict.
    The controls: `random` has layers of the same shape that nobody trained, `identity` the two
    matrices without layers, `mlp` a trained network of two layers of the same matrices, `none` no
    refiner at all.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from data.errors import UsageError
from models.llama_files import LlamaSpec, layers_file_sha256, read_layers, tensor_shapes
from models.retrieval.build import PLUGINS, Blueprint, Dims, Options, Plugin
from models.retrieval.flow import Memory
from models.retrieval.parts.llama_layers import FrozenLlama, random_layers
from models.retrieval.stages import Refiner

__all__ = ["LLMRefiner", "RefinerOptions", "apply"]

_log = logging.getLogger(__name__)

Scope = Literal["clip", "kv"]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class RefinerOptions(Options):
    """Options of the refiner.

    Args:
        weights: see the module.
        layers_file: file of `trainer llm-layers`, for `weights: file`.
        layers_sha256: hash that the file must have; taken from it when the model is first built.
        layers: zero-based numbers of the layers, ascending.
        attend: see the module.
        scope: see the module; where the decoder attends to clips alone, both are the same.
        rope: rotary positions, as the LLaMA was trained; the paper and its code have none.
        causal: rows read only rows before them, as the LLaMA was trained; the paper's do not.
        final_norm: see the module.
        refiner_residual: whether the memory before is added to the refined one.
        numbers: type of the frozen weights and their products.
        checkpointing: compute the layers a second time in the backward pass instead of keeping
            what they made.
        llm_width: features of the LLaMA, for weights that are not from a file.
        llm_heads: its attention heads.
        llm_kv_heads: heads of its keys and values; None for as many.
        llm_hidden: features inside its feed-forward; None for LLaMA's formula.
        llm_seed: of `random`.
    """

    weights: Literal["file", "embedded", "random", "identity", "mlp", "none"] = "file"
    layers_file: str | None = None
    layers_sha256: str | None = None
    layers: tuple[int, ...] = (13, 14, 15, 16)
    attend: Literal["time", "batch"] = "time"
    scope: Scope = "kv"
    rope: bool = False
    causal: bool = False
    final_norm: Literal["ones", "loaded", "none"] = "ones"
    refiner_residual: bool = False
    numbers: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    checkpointing: bool = True
    llm_width: int = Field(4096, gt=0)
    llm_heads: int = Field(32, gt=0)
    llm_kv_heads: int | None = Field(None, gt=0)
    llm_hidden: int | None = Field(None, gt=0)
    llm_seed: int = Field(0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _remember_the_file(cls, given: Any) -> Any:
        """The recipe says which weights these were, whatever the file is called later."""
        if not isinstance(given, Mapping) or given.get("layers_sha256") is not None:
            return given
        file, weights = given.get("layers_file"), given.get("weights", "file")
        if not isinstance(file, str) or weights != "file":
            return given
        return {**given, "layers_sha256": layers_file_sha256(file)}

    @field_validator("layers")
    @classmethod
    def _ascending(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0:
            raise ValueError("layers are zero-based numbers, ascending, each once, at least one")
        return layers

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.attend == "batch" and (self.rope or self.causal):
            raise ValueError("attend: batch has no order; leave rope and causal off")
        if self.weights == "embedded" and self.rope:
            raise ValueError("rope needs Hugging Face's order of features, and a public checkpoint "
                             "has Meta's; use weights: file")  # fmt: skip
        if self.weights == "embedded" and self.final_norm != "loaded":
            raise ValueError("a public checkpoint holds the gain of the last norm; with weights: "
                             "embedded set final_norm: loaded")  # fmt: skip
        if self.final_norm == "loaded" and self.weights not in ("file", "embedded"):
            raise ValueError(f"final_norm: loaded has nothing to load with weights: {self.weights}")
        kv = self.llm_kv_heads or self.llm_heads
        if self.llm_width % (2 * self.llm_heads) or self.llm_heads % kv:
            raise ValueError("llm_width must be a multiple of 2 · llm_heads, and llm_heads of "
                             "llm_kv_heads")  # fmt: skip
        return self


class LLMRefiner(Refiner):
    """Lifts the memory, runs it through frozen layers, brings it back.

    Args:
        width: features of the memory.
        inner: features of the layers.
        layers: the frozen layers; a module without them for the controls.
        attend: see the module.
        scope: see the module.
        residual: whether the memory before is added.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        layers: FrozenLlama | None,
        *,
        middle: nn.Module | None = None,
        attend: Literal["time", "batch"] = "time",
        scope: Scope = "kv",
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.lift = nn.Linear(width, inner, bias=False)
        self.lower = nn.Linear(inner, width, bias=False)
        self.layers = layers
        self.middle = middle
        self.attend, self.residual = attend, residual
        self.scope: Scope = scope
        self.mixes_samples = attend == "batch"

    def forward(self, memory: Memory) -> Memory:
        """The memory with the rows of its scope refined."""
        rows = rows_of(memory, self.scope)
        refined = self.refine(rows, _counted(memory))
        return memory_of(memory, rows.x + refined if self.residual else refined)

    def refine(self, rows: Rows, counted: Tensor | None = None) -> Tensor:
        """(B, N, d) from the rows; `counted` (B,) bool, samples that others may read."""
        x = self.lift(rows.x)
        if self.layers is not None:
            x = self._through(self.layers, x, rows.mask, counted)
        elif self.middle is not None:
            x = self.middle(x)
        return self.lower(x)  # type: ignore[no-any-return]

    def _through(
        self, layers: FrozenLlama, x: Tensor, mask: Tensor, counted: Tensor | None
    ) -> Tensor:
        if self.attend == "time":
            return layers(x, mask)  # type: ignore[no-any-return]
        there = torch.ones_like(mask) if counted is None else counted[:, None].expand_as(mask)
        swapped: Tensor = layers(x.transpose(0, 1), there.transpose(0, 1))
        return swapped.transpose(0, 1)


def _counted(memory: Memory) -> Tensor | None:
    """Samples that the public code puts through an extra pass; it leaves the others out."""
    return None if memory.source is None else memory.source.extras.get("negative_mask")


@dataclass(frozen=True)
class Rows:
    """Rows of a memory as one sequence: the global token if there is one, clips, words if any.

    Args:
        x: (B, N, d).
        mask: (B, N) bool.
    """

    x: Tensor
    mask: Tensor


def rows_of(memory: Memory, scope: Scope = "kv") -> Rows:
    """Rows of a memory that the decoder and the heads read: all, or without those after the
    clips."""
    x, mask = memory.kv, memory.kv_mask
    if scope == "clip":
        clips = memory.clip.shape[1]
        x, mask = x[:, :clips], mask[:, :clips]
    if memory.global_token is None:
        return Rows(x, mask)
    return Rows(
        torch.cat([memory.global_token.unsqueeze(1), x], dim=1),
        nn.functional.pad(mask, (1, 0), value=True),
    )


def memory_of(memory: Memory, x: Tensor) -> Memory:
    """The memory with other rows; the inverse of `rows_of`. The first rows are the clips, except
    on a grid of fewer places than clips (EMB), of which no part reads `clip`."""
    token = None
    if memory.global_token is not None:
        token, x = x[:, 0], x[:, 1:]
    count = memory.clip.shape[1]
    clip = x if x.shape[1] == count else x[:, :count] if x.shape[1] > count else memory.clip
    left = memory.kv[:, x.shape[1] :]
    kv = torch.cat([x, left.to(x.dtype)], dim=1) if left.shape[1] else x
    return replace(memory, clip=clip, kv=kv, global_token=token)


def apply(blueprint: Blueprint, dims: Dims, options: RefinerOptions) -> Blueprint:
    """The model with the refiner as its first; the same model with `weights: none`.

    Raises:
        UsageError: no file of layers, or one that is not what the recipe says.
    """
    if options.weights == "none":
        return blueprint
    spec, layers = _frozen(options)
    refiner = LLMRefiner(
        blueprint.width,
        spec.width,
        layers,
        middle=nn.GELU() if options.weights == "mlp" else None,
        attend=options.attend,
        scope=options.scope,
        residual=options.refiner_residual,
    )
    parts = blueprint.parts
    return replace(blueprint, parts=replace(parts, refiners=(refiner, *parts.refiners)))


def _frozen(o: RefinerOptions) -> tuple[LlamaSpec, FrozenLlama | None]:
    """Sizes and layers; no layers for the controls that have none."""
    dtype = _DTYPES[o.numbers]
    norm: Tensor | None = None
    if o.weights == "file":
        spec, tensors, norm = _from_file(o, dtype)
    else:
        spec, tensors = _spec(o), []
        if o.weights == "random":
            _log.warning("llm_refiner: its layers are random numbers, not a language model")
            tensors = random_layers(spec, o.layers, seed=o.llm_seed, dtype=dtype)
        if o.weights == "embedded":
            tensors = [_blank(spec, dtype) for _ in o.layers]
            norm = torch.ones(spec.width, dtype=dtype)
    if not tensors:
        return spec, None
    return spec, FrozenLlama(
        spec,
        tensors,
        norm if o.final_norm == "loaded" else None,
        final_norm=o.final_norm != "none",
        rope=o.rope,
        causal=o.causal,
        checkpointing=o.checkpointing,
        stored=o.weights == "embedded",
    )


def _from_file(
    o: RefinerOptions, dtype: torch.dtype
) -> tuple[LlamaSpec, list[dict[str, Tensor]], Tensor]:
    if o.layers_file is None:
        raise UsageError(
            "plug-in 'llm_refiner' has no weights: set layers_file to a file that `trainer "
            "llm-layers` wrote from a LLaMA, or weights to a control: random, identity, mlp"
        )
    found = layers_file_sha256(o.layers_file)
    if found != o.layers_sha256:
        raise UsageError(
            f"the refiner was built with layers {o.layers_sha256}, and '{o.layers_file}' holds "
            f"{found}; set layers_file to the file it was trained with (leave layers_sha256 out "
            "only for a new model)"
        )
    held = read_layers(o.layers_file, o.layers)
    if o.rope and held.spec.rope_kind != "default":
        raise UsageError(
            f"the LLaMA in '{o.layers_file}' scales its rotary positions "
            f"({held.spec.rope_kind}), which the refiner does not do; set rope to false"
        )
    tensors = [{k: x.to(dtype) for k, x in each.items()} for each in held.layers.values()]
    return held.spec, tensors, held.norm.to(dtype)


def _spec(o: RefinerOptions) -> LlamaSpec:
    """Sizes by the options; LLaMA's feed-forward has 8/3 of the width, up to a multiple of 256 (of
    32 for widths below 1024, which are only tried out)."""
    step = 256 if o.llm_width >= 1024 else 32
    hidden = o.llm_hidden or step * -(-(8 * o.llm_width // 3) // step)
    return LlamaSpec(o.llm_width, o.llm_heads, o.llm_kv_heads or o.llm_heads, hidden)


def _blank(spec: LlamaSpec, dtype: torch.dtype) -> dict[str, Tensor]:
    """Zeros, under which a layer is the identity, until a checkpoint fills them."""
    return {name: torch.zeros(shape, dtype=dtype) for name, shape in tensor_shapes(spec).items()}


PLUGINS.register("llm_refiner")(
    Plugin(
        stage="refiner",
        requires=frozenset({"clip", "kv"}),
        options=RefinerOptions,
        apply=apply,
        off={"weights": "none"},
        conflicts={
            "llmepet": "it is built with this one; set its own options (weights, layers, …)"
        },
    )
)
