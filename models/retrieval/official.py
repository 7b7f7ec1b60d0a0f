"""Checkpoints in the layout of the public code: tensors and options under its names, strictly, and
written back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mode
from typing import Any

import torch
from torch import Tensor

from data.errors import UsageError
from models.retrieval.model import RetrievalModel

__all__ = [
    "GLOBAL_DOT_NAMES",
    "LINEAGE_NAMES",
    "ForStore",
    "OfficialLayout",
    "Weights",
    "dab_names",
    "encoder_names",
    "fill",
    "mlp_shapes",
    "official_state_dict",
    "projected_width",
    "slot_names",
    "supported",
    "translated",
    "unpublished",
]

Weights = Mapping[str, Tensor]
Name = tuple[str, str | Callable[[re.Match[str]], str]]
"""(regular expression of our name, replacement as `re.sub` takes it)."""


@dataclass(frozen=True)
class ForStore:
    """What a public checkpoint needs to read a store, where its loader gave it something else.

    Args:
        options: further options of ours, from those that the checkpoint gave.
        data: values of the group `data` of a trainer's configuration.
        word_encoder: whose vectors the stage `queries` must hold; None for any of the right width.
        notes: what is then not as it was, in sentences.
    """

    options: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda found: {}
    data: Mapping[str, Any] = field(default_factory=dict)
    word_encoder: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class OfficialLayout:
    """How a model of ours and the public one name the same thing.

    Args:
        names: rules for names; the first that matches counts, and a parameter that none matches
            has no public name.
        options: our option names and values from the public options and tensors; it also gives
            `video_dim` and `text_dim`.
        unused: shapes of the tensors that the public layout has and its code never reads, by
            public name, from the recipe of a model of ours.
        tables: values of those among `unused` that a formula gives, for what is written back.
        dropped: regular expressions of public tensors that a model of this recipe does without,
            though the public code reads them.
        for_store: how a checkpoint reads a store.
        unseen: our names of public options that must be said, because no tensor shows them, by
            their public names.
    """

    names: tuple[Name, ...]
    options: Callable[[Mapping[str, Any], Weights], dict[str, Any]]
    unused: Callable[[Mapping[str, Any]], Mapping[str, tuple[int, ...]]]
    tables: Callable[[Mapping[str, Any]], Mapping[str, Tensor]] = lambda recipe: {}
    dropped: Callable[[Mapping[str, Any]], tuple[str, ...]] = lambda recipe: ()
    for_store: ForStore = ForStore()
    unseen: Mapping[str, str] = field(default_factory=lambda: {"nheads": "heads"})

    def public_name(self, name: str) -> str | None:
        """The public name of our parameter, None if it has none."""
        for pattern, replacement in self.names:
            if re.fullmatch(pattern, name):
                return re.sub(pattern, replacement, name)
        return None


def official_state_dict(model: RetrievalModel, layout: OfficialLayout) -> dict[str, Tensor]:
    """The weights of a model under their public names; tensors that the public code never reads
    are zero.

    Raises:
        UsageError: the model has parameters that the public layout has no place for.
    """
    ours = model.state_dict()
    names = {key: layout.public_name(key) for key in ours}
    homeless = sorted(key for key, public in names.items() if public is None)
    if homeless:
        raise UsageError(
            f"the public layout of '{model.recipe['name']}' has no place for "
            f"{', '.join(homeless)}; export a model without plug-ins"
        )
    unused = {key: torch.zeros(shape) for key, shape in layout.unused(model.recipe).items()}
    unused.update(layout.tables(model.recipe))
    return {str(names[key]): value for key, value in ours.items()} | unused


class _Asked(Mapping[str, Any]):
    """Public options that remember which were looked for and are not there."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = dict(given)
        self.lacking: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        if key not in self._given:
            self.lacking.add(key)
        return self._given[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)


def translated(
    layout: OfficialLayout, public: Mapping[str, Any], weights: Weights
) -> tuple[dict[str, Any], list[str]]:
    """Our options of a checkpoint, and the public names of those that it does not say, which
    therefore keep our defaults.

    Raises:
        UsageError: an option whose value this project has no part for.
    """
    asked = _Asked(public)
    return layout.options(asked, weights), sorted(asked.lacking)


@torch.no_grad()
def fill(
    model: RetrievalModel, layout: OfficialLayout, weights: Weights, lacking: Sequence[str] = ()
) -> None:
    """Copy every tensor of a public state dict into a model.

    Args:
        model: of the options of the checkpoint.
        layout: of its public code.
        weights: the state dict.
        lacking: public options that the checkpoint does not say, for the error message.

    Raises:
        UsageError: a tensor is missing, unexpected, of another shape or type, or holds NaN or
            infinity; all of them are named.
    """
    homes = {layout.public_name(key): value for key, value in model.state_dict().items()}
    shapes = {key: tuple(value.shape) for key, value in homes.items() if key is not None}
    expected = shapes | dict(layout.unused(model.recipe))
    missing = sorted(expected.keys() - weights.keys())
    dropped = "|".join(layout.dropped(model.recipe)) or "(?!)"
    left = sorted(weights.keys() - expected.keys())
    unexpected = [key for key in left if not re.fullmatch(dropped, key)]
    misshaped = [
        f"{key} is {tuple(weights[key].shape)} and should be {expected[key]}"
        for key in sorted(expected.keys() & weights.keys())
        if tuple(weights[key].shape) != tuple(expected[key])
    ]
    read = sorted(shapes.keys() & weights.keys())
    mistyped = [
        f"{key} is {weights[key].dtype} and should be {homes[key].dtype}"
        for key in read
        if weights[key].is_floating_point() != homes[key].is_floating_point()
    ]
    faults = [
        f"{len(found)} {what}: {', '.join(found)}"
        for what, found in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshaped),
            ("of another type", mistyped),
            ("with NaN or infinity", [key for key in read if not weights[key].isfinite().all()]),
        )
        if found
    ]
    if faults:
        unsaid = f" (they do not say {', '.join(lacking)}: defaults were taken)" if lacking else ""
        raise UsageError(
            f"the checkpoint does not fit the model that its options describe{unsaid}; tensors "
            + "; ".join(faults)
        )
    for key in shapes:
        homes[key].copy_(weights[key])


def supported(options: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse public options whose values this project has no part for.

    Args:
        options: public options.
        allowed: values that are supported, by public name; an absent option is supported.

    Raises:
        UsageError: with the option, its value and what is supported.
    """
    given = dict(options)  # a look at one that is not there is no question for it
    for key, values in allowed.items():
        if key in given and given[key] not in values:
            raise UsageError(
                f"the checkpoint was trained with {key}={given[key]!r}, which is not "
                f"supported; supported: {', '.join(map(repr, values))}"
            )


def unpublished(paper: str) -> OfficialLayout:
    """The layout of a paper without public code: its tensors keep our names, and there is no
    checkpoint to read.

    Args:
        paper: its name, for the error message.
    """

    def refuse(public: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
        raise UsageError(
            f"{paper} has no public code, so there are no public checkpoints of it to read; train "
            "one with `trainer fit`"
        )

    return OfficialLayout(names=((r"(.*)", r"\1"),), options=refuse, unused=lambda recipe: {})


LINEAGE_NAMES: tuple[Name, ...] = (
    (r"encoders\.video\.norms\.(\d)\.(.*)", r"input_vid_proj.\1.LayerNorm.\2"),
    (r"encoders\.video\.linears\.(\d)\.(.*)", r"input_vid_proj.\1.net.1.\2"),
    (r"encoders\.text\.norms\.(\d)\.(.*)", r"input_txt_proj.\1.LayerNorm.\2"),
    (r"encoders\.text\.linears\.(\d)\.(.*)", r"input_txt_proj.\1.net.1.\2"),
    (r"encoders\.text_position\.table\.weight", "txt_position_embed.position_embeddings.weight"),
    (r"encoders\.text_position\.norm\.(.*)", r"txt_position_embed.LayerNorm.\1"),
    (r"decoder\.init\.anchors\.weight", "query_embed.weight"),
    (r"heads\.0\.label\.(.*)", r"class_embed.\1"),
    (r"heads\.0\.span\.(.*)", r"span_embed.\1"),
)
"""What the Moment-DETR lineage has in common: projections, queries, moment head."""


GLOBAL_DOT_NAMES: tuple[Name, ...] = (
    (r"heads\.1\.clip\.(.*)", r"saliency_proj1.\1"),
    (r"heads\.1\.whole\.(.*)", r"saliency_proj2.\1"),
)
"""Saliency as the dot product with a global token, the second head of a base."""


def encoder_names(ours: str, theirs: str) -> tuple[Name, ...]:
    """Names of a list of encoder layers, from our prefix to the public one."""
    layer = rf"{re.escape(ours)}\.(\d+)\."
    return (
        (layer + r"attention\.(.*)", rf"{theirs}.\1.self_attn.\2"),
        (layer + r"feedforward\.(.*)", rf"{theirs}.\1.\2"),
        (layer + r"(norm\d\..*)", rf"{theirs}.\1.\2"),
    )


_DAB_LAYER = {
    "self_query": "sa_qcontent_proj",
    "self_query_pos": "sa_qpos_proj",
    "self_key": "sa_kcontent_proj",
    "self_key_pos": "sa_kpos_proj",
    "self_value": "sa_v_proj",
    "self_out": "self_attn.out_proj",
    "cross_query": "ca_qcontent_proj",
    "cross_query_pos": "ca_qpos_proj",
    "cross_query_sine": "ca_qpos_sine_proj",
    "cross_key": "ca_kcontent_proj",
    "cross_key_pos": "ca_kpos_proj",
    "cross_value": "ca_v_proj",
    "cross_out": "cross_attn.out_proj",
}
_DAB = {
    "sine_scale": "query_scale",
    "place": "ref_point_head",
    "anchor_width": "ref_anchor_head",
    "refine": "bbox_embed",
}


def dab_names(ours: str, theirs: str) -> tuple[Name, ...]:
    """Names of a DAB decoder without its anchors, from our prefix to the public one."""
    head = re.escape(ours)
    layer = rf"{head}\.layers\.(\d+)\."
    return (
        (
            layer + r"((?:self|cross)_\w+)\.(.*)",
            lambda m: f"{theirs}.layers.{m[1]}.{_DAB_LAYER[m[2]]}.{m[3]}",
        ),
        (layer + r"feedforward\.(.*)", rf"{theirs}.layers.\1.\2"),
        (layer + r"(norm\d\..*)", rf"{theirs}.layers.\1.\2"),
        (rf"{head}\.(norm\..*)", rf"{theirs}.\1"),
        (
            rf"{head}\.({'|'.join(_DAB)})\.(.*)",
            lambda m: f"{theirs}.{_DAB[m[1]]}.{m[2]}",
        ),
    )


_SLOTS = {"norm_clips": "norm_inputs"} | {
    ours: f"project_{ours[0]}" for ours in ("query", "key", "value")
}


def slot_names(ours: str, theirs: str) -> tuple[Name, ...]:
    """Names of a slot attention, from our prefix to the public one."""
    head = re.escape(ours)
    return (
        (rf"{head}\.({'|'.join(_SLOTS)})\.(.*)", lambda m: f"{theirs}.{_SLOTS[m[1]]}.{m[2]}"),
        (rf"{head}\.((?:norm_|mlp\.).*)", rf"{theirs}.\1"),
    )


def mlp_shapes(
    prefix: str, inputs: int, hidden: int, outputs: int, *, depth: int
) -> dict[str, tuple[int, ...]]:
    """Public names and shapes of an MLP."""
    widths = [inputs] + [hidden] * (depth - 1) + [outputs]
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(depth):
        shapes[f"{prefix}.layers.{i}.weight"] = (widths[i + 1], widths[i])
        shapes[f"{prefix}.layers.{i}.bias"] = (widths[i + 1],)
    return shapes


def projected_width(weights: Weights, projection: str) -> int:
    """Features that a public projection takes.

    What most of its first tensors say, so that a single wrong one is named and not believed.

    Raises:
        UsageError: the checkpoint has no such projection.
    """
    places = (("LayerNorm.weight", 0), ("LayerNorm.bias", 0), ("net.1.weight", 1))
    found = [
        int(x.shape[axis])
        for name, axis in places
        if (x := weights.get(f"{projection}.0.{name}")) is not None and x.dim() > axis
    ]
    return mode(found) if found else width_of(weights, f"{projection}.0.LayerNorm.weight")


def width_of(weights: Weights, key: str) -> int:
    """Length of a public tensor of one axis.

    Raises:
        UsageError: the checkpoint has no such tensor.
    """
    if key not in weights:
        raise UsageError(
            f"the checkpoint has no '{key}', from which the width of the features is read; "
            "it is not of this model, or 'model' is not its state dict"
        )
    return int(weights[key].shape[0])
