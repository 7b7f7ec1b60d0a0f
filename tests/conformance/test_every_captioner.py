"""What every captioner must keep."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

from data.errors import UsageError
from models.captioners import CAPTIONERS, CaptionRequest, create
from models.captioners.base import Captioner
from models.captioners.guards import FLAGS
from tests.models.captioners.chat_server import MODEL, chat_server
from tests.models.captioners.tiny_vlms import write

# vLLM's engine needs its own library and a GPU: tests/models/captioners has what can be tested.
every = pytest.mark.parametrize("name", [each for each in CAPTIONERS.names() if each != "vllm"])

Make = Callable[..., Captioner]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """`make(name, **options)`; for those that are nothing by themselves with a tiny model's folder,
    a server on loopback, a file.
    """
    folder = tmp_path_factory.mktemp("captioners")
    file = folder / "captions.csv"
    file.write_text("vid,timestamp,caption\n" + "".join(f"v,{i},Caption {i}.\n" for i in range(3)))
    open_: list[Captioner] = []
    with chat_server() as (address, _):
        checkpoints = {"vlm": cache(lambda: write("qwen2_5_vl", folder / "vlm"))}
        options: dict[str, dict[str, Any]] = {
            "openai": {"model": MODEL, "address": address},
            "precomputed": {"path": str(file)},
            "vlm": {"side": 56, "max_new_tokens": 8},
        }

        def made(name: str, **more: Any) -> Captioner:
            checkpoint = checkpoints[name]() if name in checkpoints else None
            open_.append(create(name, checkpoint, **options.get(name, {}), **more))
            return open_[-1]

        yield made
        for each in open_:
            each.close()


def requests(captioner: Captioner) -> list[CaptionRequest]:
    random = np.random.Generator(np.random.PCG64(0))
    sight = captioner.sight
    shape = (sight.frames, sight.side, sight.side + 14 * (sight.fit == "scaled"), 3)
    times_s = tuple(captioner.offsets_s(clip_len_s=2.0, gap_s=0.2, fps=10.0).tolist())
    flat = np.zeros(shape, dtype=np.uint8)
    noise = random.integers(0, 256, shape).astype(np.uint8)
    return [
        CaptionRequest(frames, "Describe the picture.", float(i), f"video:{i}", "v", times_s)
        for i, frames in enumerate((flat, noise, flat + 200))
    ]


@every
def test_every_request_gets_a_result_with_a_known_status(name: str, make: Make) -> None:
    captioner = make(name)
    results = captioner.caption(requests(captioner))
    assert len(results) == 3
    for result in results:
        assert (result.status == "failed") == (result.text == "")
        assert (result.status == "flagged") == bool(result.flags)
        assert set(result.flags) <= set(FLAGS)
        assert result.attempts >= 1
    assert captioner.caption([]) == []


@every
def test_a_batch_gives_what_its_requests_give_alone(name: str, make: Make) -> None:
    captioner = make(name)
    wanted = requests(captioner)
    alone = [captioner.caption([each])[0] for each in wanted]
    assert captioner.caption(wanted) == alone
    assert captioner.caption(wanted[::-1]) == alone[::-1]


@every
def test_the_recipe_is_plain_json_and_names_the_captioner(name: str, make: Make) -> None:
    assert json.loads(json.dumps(make(name).params()))["captioner"] == name


@every
def test_a_seed_and_a_device_are_taken_and_an_unknown_option_is_not(name: str, make: Make) -> None:
    make(name, seed=3, device="cpu")
    with pytest.raises(UsageError, match="unknown option 'seeed'; did you mean 'seed'"):
        make(name, seeed=1)


def test_an_unknown_captioner_says_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"unknown captioner 'lava'; did you mean 'llava'"):
        create("lava")
