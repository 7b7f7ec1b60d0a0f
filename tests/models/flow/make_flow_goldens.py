"""Makes the reference numbers of this folder; not a test.

python make_flow_goldens.py tvl1                  # needs opencv-contrib-python-headless
python make_flow_goldens.py raft CORE FILL_EXT    # CORE: folder `core` of princeton-vl/RAFT
                                                  # FILL_EXT: fill_ext.py of the shared goldens
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from moving_texture import frames

HERE = Path(__file__).parent
EVERY, FIRST = 16, (5, 3)


def tvl1() -> dict[str, Any]:
    import cv2

    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames(3)]
    pairs = itertools.pairwise(greys)
    method = cv2.optflow.DualTVL1OpticalFlow_create()
    flow = np.stack([method.calc(*pair, None) for pair in pairs]).transpose(0, 3, 1, 2)
    return {"made_with": f"OpenCV {cv2.__version__}", "flow": thinned(flow)}


def raft(core: Path, fill_ext: Path) -> dict[str, Any]:
    """The authors' code, unchanged, on weights filled by name."""
    sys.path.insert(0, str(core))
    import torch
    from raft import RAFT
    from utils.utils import InputPadder

    spec = importlib.util.spec_from_file_location("fill_ext", fill_ext)
    rule = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rule)
    made: dict[str, Any] = {
        "made_with": "princeton-vl/RAFT 2888e15a51fa41140771d3f498ed8023cff098d1",
        "iterations": 4,
    }
    for model, (height, width) in {"large": (131, 150), "small": (128, 141)}.items():
        options = argparse.Namespace(small=model == "small", mixed_precision=False)
        net = RAFT(options).eval()
        own = net.state_dict()
        shapes = {k: list(v.shape) for k, v in own.items() if v.is_floating_point()}
        # norm3 and norm4 are second names of downsample.1: one tensor, one value.
        filled = {
            name: torch.from_numpy(rule.fill_tensor(_one_name(name), shape))
            for name, shape in shapes.items()
        }
        net.load_state_dict(own | filled)
        pictures = torch.from_numpy(frames(3, height, width)).permute(0, 3, 1, 2).float()
        padder = InputPadder(pictures.shape)
        one, other = padder.pad(pictures[:-1], pictures[1:])
        with torch.no_grad():
            _, flow = net(one, other, iters=made["iterations"], test_mode=True)
        found = thinned(padder.unpad(flow).numpy())
        made[model] = {"height": height, "width": width, "flow": found, "shapes": shapes}
    return made


def _one_name(name: str) -> str:
    return name.replace(".norm3.", ".downsample.1.").replace(".norm4.", ".downsample.1.")


def thinned(flow: np.ndarray[Any, Any]) -> list[Any]:
    """Every 16th pixel, from row 5 and column 3, to 5 decimals."""
    thin: list[Any] = (
        flow[:, :, FIRST[0] :: EVERY, FIRST[1] :: EVERY].astype(float).round(5).tolist()
    )
    return thin


if __name__ == "__main__":
    name, *paths = sys.argv[1:]
    found = {"tvl1": tvl1, "raft": raft}[name](*(Path(path) for path in paths))
    (HERE / f"{name}.json").write_text(json.dumps(found, separators=(",", ":")) + "\n")
