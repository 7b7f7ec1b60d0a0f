from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from data.errors import UsageError
from models.clip import build_clip
from pipeline.stage import StageContext
from pipeline.stages.features import ClipOptions, ClipStage
from pipeline.stages.text import TextOptions, text_dims


def dims(**options: Any) -> tuple[int, tuple[int, int]]:
    """What the stages `clip` and `queries` declare."""
    clip = ClipStage(StageContext(2.0), ClipOptions(**options))
    shape = clip.schema.arrays["clip"].shape
    return shape[-1], text_dims(TextOptions(**options))


@pytest.mark.parametrize(
    ("model", "pictures", "text"),
    [
        # open_clip's model_configs: embed_dim, text width
        ("ViT-B-32-quickgelu", 512, (512, 512)),
        ("ViT-L-14-quickgelu", 768, (768, 768)),
        ("RN50x4", 640, (640, 640)),
    ],
)
def test_a_model_of_open_clip_is_known_by_its_name(
    model: str, pictures: int, text: tuple[int, int]
) -> None:
    assert dims(preset="full", options={"model": model}) == (pictures, text)


def test_without_a_name_the_tensors_of_the_checkpoint_tell(tmp_path: Path) -> None:
    tiny = build_clip("tiny")
    state = {k: v for k, v in tiny.net.state_dict().items() if "resblocks.1." not in k}
    state = {k: v for k, v in state.items() if "resblocks.2." not in k}
    save_file(state, tmp_path / "w.safetensors")
    assert dims(preset="full", checkpoint=tmp_path / "w.safetensors") == (128, (64, 128))
    assert dims(preset="tiny") == (128, (64, 128))


def test_an_unknown_model_is_told_when_a_plan_is_made() -> None:
    with pytest.raises(UsageError, match="did you mean 'ViT-B-32'"):
        dims(preset="full", options={"model": "ViT-B-23"})
