"""What every captioner must keep."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data.errors import UsageError
from models.captioners import CAPTIONERS, CaptionRequest, create
from models.captioners.base import Captioner
from models.captioners.guards import FLAGS

every = pytest.mark.parametrize("name", CAPTIONERS.names())


def requests(captioner: Captioner) -> list[CaptionRequest]:
    random = np.random.Generator(np.random.PCG64(0))
    sight = captioner.sight
    shape = (sight.frames, sight.side, sight.side + 14 * (sight.fit == "scaled"), 3)
    flat = np.zeros(shape, dtype=np.uint8)
    noise = random.integers(0, 256, shape).astype(np.uint8)
    return [
        CaptionRequest(frames, "Describe the picture.", float(i), f"video:{i}")
        for i, frames in enumerate((flat, noise, flat + 200))
    ]


@every
def test_every_request_gets_a_result_with_a_known_status(name: str) -> None:
    captioner = create(name)
    results = captioner.caption(requests(captioner))
    assert len(results) == 3
    for result in results:
        assert (result.status == "failed") == (result.text == "")
        assert (result.status == "flagged") == bool(result.flags)
        assert set(result.flags) <= set(FLAGS)
        assert result.attempts >= 1
    assert captioner.caption([]) == []


@every
def test_a_batch_gives_what_its_requests_give_alone(name: str) -> None:
    captioner = create(name)
    wanted = requests(captioner)
    alone = [captioner.caption([each])[0] for each in wanted]
    assert captioner.caption(wanted) == alone
    assert captioner.caption(wanted[::-1]) == alone[::-1]


@every
def test_the_recipe_is_plain_json_and_names_the_captioner(name: str) -> None:
    assert json.loads(json.dumps(create(name).params()))["captioner"] == name


@every
def test_a_seed_and_a_device_are_taken_and_an_unknown_option_is_not(name: str) -> None:
    create(name, seed=3, device="cpu")
    with pytest.raises(UsageError, match="unknown option 'sede'; did you mean 'seed'"):
        create(name, sede=1)


def test_an_unknown_captioner_says_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"unknown captioner 'llava'; .*allowed: .*pixel"):
        create("llava")
