"""RAFT against the numbers of princeton-vl's code on filled weights (README.md here)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from moving_texture import frames

from data.errors import UsageError
from models.flow import create_flow
from models.flow.raft import princeton_name

GOLDEN = json.loads((Path(__file__).parent / "raft.json").read_text())
MODELS = pytest.mark.parametrize("model", ["large", "small"])


def princeton_state(goldens: Any, model: str, prefix: str = "module.") -> dict[str, torch.Tensor]:
    """What `torch.save(DataParallel(net).state_dict())` of the authors holds."""
    weights = {}
    for name, shape in GOLDEN[model]["shapes"].items():
        filled = name.replace(".norm3.", ".downsample.1.").replace(".norm4.", ".downsample.1.")
        weights[prefix + name] = goldens.weights({filled: shape})[filled]
    return weights


@MODELS
def test_the_flow_is_that_of_the_authors_padding_and_all(goldens: Any, model: str) -> None:
    golden = GOLDEN[model]
    flow = create_flow("raft", princeton_state(goldens, model), model=model, updates=4)
    given = torch.from_numpy(frames(3, golden["height"], golden["width"]))[None]
    found = flow(given)[0].transpose(0, 1)
    assert np.abs(golden["flow"]).max() > 5
    np.testing.assert_allclose(found[:, :, 5::16, 3::16], golden["flow"], rtol=1e-4, atol=1e-4)


@MODELS
def test_both_layouts_are_the_same_weights(goldens: Any, model: str) -> None:
    theirs = create_flow("raft", princeton_state(goldens, model, prefix=""), model=model)
    own = create_flow("raft", theirs.net.state_dict(), model=model)
    assert (theirs.weights.layout, own.weights.layout) == ("princeton-vl", "torchvision")
    assert theirs.weights.sha256 == own.weights.sha256
    assert own.params()["weights"] == {"kind": "file", "sha256": own.weights.sha256}


@MODELS
def test_every_tensor_of_torchvision_has_a_name_at_princeton(model: str) -> None:
    floats = {
        name: list(value.shape)
        for name, value in create_flow("raft", model=model).net.state_dict().items()
        if value.is_floating_point()
    }
    listed = {
        name: shape
        for name, shape in GOLDEN[model]["shapes"].items()
        if ".norm3." not in name and ".norm4." not in name
    }
    assert {princeton_name(name, model): shape for name, shape in floats.items()} == listed


def test_random_weights_are_called_so_and_leave_the_callers_random_state_alone() -> None:
    state = torch.get_rng_state()
    one, other = create_flow("raft", model="small"), create_flow("raft", model="small", seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert one.params()["weights"]["kind"] == "random"
    assert one.params() != other.params()
    assert not any(each.requires_grad for each in one.parameters())


def test_a_wrong_checkpoint_is_a_sentence(goldens: Any) -> None:
    large = princeton_state(goldens, "large")
    with pytest.raises(UsageError, match=r"does not fit flow raft \(small\); missing"):
        create_flow("raft", large, model="small")
    del large["module.cnet.conv2.bias"]
    with pytest.raises(UsageError, match=r"missing 1 tensors: context_encoder\.conv\.bias"):
        create_flow("raft", large)
    with pytest.raises(UsageError, match="known layouts: torchvision, princeton-vl"):
        create_flow("raft", {"stranger": torch.zeros(1)})


def test_wrong_options_are_sentences() -> None:
    with pytest.raises(UsageError, match="unknown model 'larg'; did you mean 'large'"):
        create_flow("raft", model="larg")
    with pytest.raises(UsageError, match="updates 0; give 1 or more"):
        create_flow("raft", updates=0)


def test_pictures_below_the_size_of_the_pyramid_are_refused() -> None:
    flow = create_flow("raft", model="small", updates=1)
    assert flow(torch.zeros(1, 2, 121, 121, 3, dtype=torch.uint8)).shape[-2:] == (121, 121)
    with pytest.raises(ValueError, match="at least 121 pixels, got 120x130"):
        flow(torch.zeros(1, 2, 120, 130, 3, dtype=torch.uint8))
