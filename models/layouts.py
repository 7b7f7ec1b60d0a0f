"""Recognises whose checkpoint a table of tensors is, so that a wrong file is told by its name."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

__all__ = ["LAYOUTS", "KnownLayout", "recognised"]


@dataclass(frozen=True)
class KnownLayout:
    """A public naming convention.

    Args:
        what: the network and whose convention, with its article: "an I3D in piergiaj's layout".
        probes: names that are all there; none of the other conventions has all of them.
        give_to: the backbone that reads it; "" if none does.
    """

    what: str
    probes: tuple[str, ...]
    give_to: str = ""


LAYOUTS = (
    KnownLayout("an I3D in piergiaj's layout", ("Conv3d_1a_7x7.conv3d.weight",), "i3d"),
    KnownLayout("an I3D in hassony2's layout", ("conv3d_1a_7x7.conv3d.weight",), "i3d"),
    KnownLayout(
        "a SlowFast in PySlowFast's layout",
        ("s1.pathway0_stem.conv.weight", "s1.pathway1_stem.conv.weight"),
        "slowfast",
    ),
    KnownLayout("a one-pathway network of PySlowFast", ("s1.pathway0_stem.conv.weight",)),
    KnownLayout("a SlowFast in Caffe2's layout", ("t_conv1_w", "conv1_w"), "slowfast"),
    KnownLayout("a one-pathway network in Caffe2's layout", ("conv1_w",)),
    KnownLayout(
        "a SlowFast in PyTorchVideo's layout",
        ("blocks.0.multipathway_blocks.0.conv.weight",),
        "slowfast",
    ),
    KnownLayout(
        "a CLIP in the layout of OpenAI / open_clip",
        ("token_embedding.weight", "visual.conv1.weight"),
        "clip",
    ),
    KnownLayout(
        "a CLIP of open_clip with a text tower of its own",
        ("text.token_embedding.weight", "logit_scale"),
        "clip",
    ),
    KnownLayout(
        "a SigLIP in Hugging Face's layout",
        ("text_model.head.weight", "vision_model.head.probe"),
    ),
    KnownLayout(
        "a CLIP in Hugging Face's layout",
        (
            "text_model.embeddings.token_embedding.weight",
            "vision_model.embeddings.class_embedding",
        ),
        "clip",
    ),
    KnownLayout("a Cnn14 of PANNs", ("conv_block6.conv2.weight", "fc_audioset.weight"), "panns"),
    KnownLayout("a VGG of torchvision", ("features.0.weight", "classifier.6.weight"), "vgg"),
    KnownLayout(
        "a RAFT in torchvision's layout", ("feature_encoder.convnormrelu.0.weight",), "flow"
    ),
    KnownLayout(
        "a RAFT in princeton-vl's layout", ("fnet.conv1.weight", "cnet.conv1.weight"), "flow"
    ),
    KnownLayout("a ResNet of torchvision", ("layer1.0.conv1.weight", "fc.weight")),
    KnownLayout("a moment retrieval model", ("input_txt_proj.0.LayerNorm.weight",)),
)
"""The first one that fits is meant."""


def recognised(names: Collection[str]) -> KnownLayout | None:
    """Whose tensors these are; None if nobody's that is known here."""
    return next((each for each in LAYOUTS if all(probe in names for probe in each.probes)), None)
