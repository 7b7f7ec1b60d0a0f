"""Schedules equal torch's, without state."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from data.errors import UsageError
from training.schedule import make_schedule


def torch_rates(make: Any, epochs: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, rates = make(optimizer), []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("options", "make"),
    [
        (
            {"name": "step", "every": 3, "gamma": 0.5},
            lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5),
        ),
        (
            {"name": "cosine"},
            lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10),
        ),
        (
            {"name": "cosine", "lowest": 0.2},
            lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10, 0.2),
        ),
        (
            {"name": "constant"},
            lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
        ),
        (
            {"name": "multistep", "at": [2, 7], "gamma": 0.5},
            lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 7], 0.5),
        ),
        (
            {"name": "linear"},
            lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 10),
        ),
    ],
    ids=["step", "cosine", "cosine-not-to-zero", "constant", "multistep", "linear"],
)
def test_factors_equal_torch(options: dict[str, Any], make: Any) -> None:
    schedule = make_schedule(options)
    found = [schedule.factor(epoch, 10) for epoch in range(10)]
    assert found == pytest.approx(torch_rates(make, 10), abs=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"optim\.schedule needs a 'name'; allowed: constant, cosine, linear, multistep, step"),
        ({"name": "cosin"}, "unknown schedule 'cosin'; did you mean 'cosine'"),
        ({"name": "step", "evry": 3}, "unknown key 'evry'; did you mean 'every'"),
        ({"name": "step"}, "'every' is needed and was not given"),
        ({"name": "multistep", "at": [7, 2]}, "'at': .*epochs must rise, each once"),
        ({"name": "multistep", "at": []}, "'at': .*at least 1 item"),
    ],
)
def test_a_wrong_schedule_is_answered_with_a_sentence(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        make_schedule(options)
