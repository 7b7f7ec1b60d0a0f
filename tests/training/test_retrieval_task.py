"""How the spans of a model become windows, and what several processes share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from data.annotations import DATASETS
from data.errors import UsageError
from models.retrieval import Preset, create_model
from models.retrieval.decode import Decoding
from training.config import EvalGroup
from training.distributed import World
from training.retrieval_task import RetrievalTask, decoding_of


@pytest.mark.parametrize(
    ("preset", "clip_to", "dataset", "clip_s", "rounds"),
    [
        # the public QVHighlights code cuts to [0, 150], also where a video is shorter
        ("release", "dataset", "qvhighlights", (0.0, 150.0), True),
        ("release", "video", "qvhighlights", None, True),
        ("fixed", "dataset", "qvhighlights", (0.0, 150.0), True),
        ("fixed", "video", "qvhighlights", None, True),
        ("release", "video", "synthetic", None, False),
        ("fixed", "video", "synthetic", None, False),
    ],
)
def test_the_dataset_says_how_windows_are_cut_and_rounded(
    preset: Preset, clip_to: Any, dataset: str, clip_s: tuple[float, float] | None, rounds: bool
) -> None:
    model = create_model("qd_detr", video_dim=4, text_dim=4, preset=preset, hidden=8, heads=2)
    decoding = decoding_of(model, EvalGroup(clip_to=clip_to), DATASETS.get(dataset).post)
    assert (decoding.clip_s, decoding.round_to_clip) == (clip_s, rounds)


def test_the_range_of_a_dataset_that_has_none_is_refused() -> None:
    model = create_model("qd_detr", video_dim=4, text_dim=4, hidden=8, heads=2)
    asked = EvalGroup(clip_to="dataset")
    with pytest.raises(UsageError, match=r"cuts to no range .*say eval\.clip_to=video"):
        decoding_of(model, asked, DATASETS.get("synthetic").post)


def test_the_configuration_wins_over_the_dataset() -> None:
    model = create_model("qd_detr", video_dim=4, text_dim=4, hidden=8, heads=2)
    asked = EvalGroup(round_to_clip=False, nms_iou=0.5)
    decoding = decoding_of(model, asked, DATASETS.get("qvhighlights").post)
    assert (decoding.round_to_clip, decoding.nms_iou) == (False, 0.5)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_processes_send_each_other_queues_and_statistics_and_no_frozen_language_model() -> None:
    llm = {
        "weights": "random",
        "llm_width": 32,
        "llm_heads": 4,
        "layers": (0,),
        "numbers": "float32",
    }
    model = create_model(
        "qd_detr",
        video_dim=6,
        text_dim=4,
        hidden=8,
        heads=2,
        plugins={
            "llm_refiner": llm,
            "distill_align": {"queue_length": 8},
            "conv_fuser": {"heads": 2},
        },
    )
    assert {name.rsplit(".", 1)[1] for name in model.constants} >= {"q", "gate", "ffn_norm"}
    task = RetrievalTask(model, Decoding(), device=torch.device("cpu"), world=World(0, 2))
    ddp = next(each for each in vars(task).values() if isinstance(each, DistributedDataParallel))
    sent = {id(buffer) for buffer in ddp.modules_buffers}
    named = dict(model.named_buffers())
    assert {name for name, x in named.items() if id(x) not in sent} == model.constants
    assert any(".queue." in name for name in named.keys() - model.constants)
