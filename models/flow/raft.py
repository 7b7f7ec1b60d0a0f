"""RAFT optical flow: torchvision's network, with its weights or the authors'.

Teed and Deng, "RAFT: Recurrent All-Pairs Field Transforms for Optical Flow", ECCV 2020,
https://arxiv.org/abs/2003.12039. Checkpoints of torchvision (`raft_large_C_T_SKHT_V2-….pth`) and of
princeton-vl/RAFT (`raft-sintel.pth`, `raft-things.pth`, `raft-small.pth`) have the same tensors
under other names; tests/models/flow holds numbers of the authors' code.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from data.errors import UsageError, how_to_install, nearest
from models.compat import ensure_torchvision
from models.flow.base import CHUNK, FLOWS, Flow
from models.weights import (
    Checkpoint,
    Weights,
    fill_seeded,
    load_strictly,
    own_layout,
    renaming_layout,
    tensors_sha256,
)

__all__ = ["RAFT", "princeton_name"]

_MODELS = ("large", "small")
_STRIDE = 8

_RENAMINGS = (
    (r"^feature_encoder\.", "fnet."),
    (r"^context_encoder\.", "cnet."),
    (r"^(.net)\.convnormrelu\.0\.", r"\1.conv1."),
    (r"^(.net)\.convnormrelu\.1\.", r"\1.norm1."),
    (r"^(.net)\.conv\.", r"\1.conv2."),
    (r"\.convnormrelu(\d)\.0\.", r".conv\1."),
    (r"\.convnormrelu(\d)\.1\.", r".norm\1."),
    (r"^update_block\.motion_encoder\.convcorr(\d)\.0\.", r"update_block.encoder.convc\1."),
    (r"^update_block\.motion_encoder\.convflow(\d)\.0\.", r"update_block.encoder.convf\1."),
    (r"^update_block\.motion_encoder\.conv\.0\.", "update_block.encoder.conv."),
    (r"^mask_predictor\.convrelu\.0\.", "update_block.mask.0."),
    (r"^mask_predictor\.conv\.", "update_block.mask.2."),
)


def princeton_name(name: str, model: str) -> str:
    """The name in princeton-vl/RAFT of the tensor `name` of torchvision's RAFT.

    Args:
        name: torchvision's.
        model: "large" has two recurrent units (`gru.convz1`, `gru.convz2`), "small" one.
    """
    for pattern, replacement in _RENAMINGS:
        name = re.sub(pattern, replacement, name)
    unit = r"\2\1" if model == "large" else r"\2"
    return re.sub(r"recurrent_block\.convgru(\d)\.(conv.)", rf"gru.{unit}", name)


def _twice_saved(name: str) -> bool:
    """princeton-vl saves the norm of each shortcut under two names; `downsample.1` is the other."""
    return ".norm3." in name or ".norm4." in name


@FLOWS.register("raft")
class RAFT(Flow):
    """RAFT on the device of its weights, in float32.

    Pictures are padded to multiples of 8 by repeating their edges on both sides, as the authors and
    v-iashin/video_features do; the flow is cut back to the picture.

    Args:
        checkpoint: weights in the layout of torchvision or princeton-vl; None for seeded random
            ones, whose flow means nothing.
        model: "large", or "small".
        updates: refinements; the authors' demo and v-iashin use 20, torchvision's default is 12.
        seed: of the random weights.
        chunk: pairs of frames that go through the network together.

    Raises:
        UsageError: torchvision is not installed, or the checkpoint does not fit.
    """

    name = "raft"
    is_network = True
    # The smallest picture of the correlation pyramid, a 64th of the frame, needs two pixels.
    min_side = 121

    def __init__(
        self,
        checkpoint: Checkpoint | None = None,
        *,
        model: Literal["large", "small"] = "large",
        updates: int = 20,
        seed: int = 0,
        chunk: int = CHUNK,
    ) -> None:
        super().__init__(chunk)
        if model not in _MODELS:
            raise UsageError(f"flow raft: unknown model '{model}'; {nearest(model, _MODELS)}")
        if updates < 1:
            raise UsageError(f"flow raft: updates {updates}; give 1 or more")
        self.model, self.updates = model, updates
        self.net = _network(model)
        self.weights = self._filled(checkpoint, seed)

    def _filled(self, checkpoint: Checkpoint | None, seed: int) -> Weights:
        if checkpoint is None:
            fill_seeded(self.net, seed, _scale)
            return Weights("random", tensors_sha256(self.net), f"seed {seed}")
        layouts = (
            own_layout("torchvision", "feature_encoder.convnormrelu.0.weight"),
            renaming_layout(
                "princeton-vl",
                "fnet.conv1.weight",
                lambda name: princeton_name(name, self.model),
                _twice_saved,
            ),
        )
        return load_strictly(self.net, checkpoint, layouts, f"flow raft ({self.model})")

    def params(self) -> dict[str, Any]:
        """See `Flow.params`."""
        weights = self.weights.recipe()
        return {
            "flow": self.name,
            "model": self.model,
            "updates": self.updates,
            "weights": weights,
        }

    def between(self, first: Tensor, second: Tensor) -> Tensor:
        """See `Flow.between`."""
        height, width = first.shape[1:3]
        above, below = _margins(height)
        left, right = _margins(width)
        one, other = (_padded(each, (left, right, above, below)) for each in (first, second))
        flow: Tensor = self.net(one, other, num_flow_updates=self.updates)[-1]
        return flow[..., above : above + height, left : left + width]


def _network(model: str) -> nn.Module:
    if ensure_torchvision() == "absent":
        raise UsageError(
            "flow raft needs torchvision, which is not installed; install it: "
            f"{how_to_install('pipeline')}, or say flow: tvl1-torch"
        )
    from torchvision.models import optical_flow

    build = {"large": optical_flow.raft_large, "small": optical_flow.raft_small}[model]
    # torchvision's initialisation would move the caller's random state.
    with torch.random.fork_rng(devices=[]):
        net: nn.Module = build(weights=None, progress=False)
    return net


def _scale(name: str, tensor: Tensor) -> tuple[float, float]:
    """Offset and amplitude of random weights: small enough that the refinements stay bounded."""
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_var" or (leaf == "weight" and tensor.ndim < 2):
        return 1.0, 0.0
    return 0.0, float((3 / tensor[0].numel()) ** 0.5) if tensor.ndim > 1 else 0.0


def _margins(side: int) -> tuple[int, int]:
    """What is missing to the next multiple of 8, before and after: the smaller half before."""
    missing = -side % _STRIDE
    return missing // 2, missing - missing // 2


def _padded(frames: Tensor, margins: tuple[int, int, int, int]) -> Tensor:
    """uint8 (P, H, W, 3) to float (P, 3, H', W') in [-1, 1], edges repeated."""
    pictures = frames.permute(0, 3, 1, 2).float()
    return 2 * (functional.pad(pictures, margins, mode="replicate") / 255) - 1
