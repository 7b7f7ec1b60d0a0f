"""An official file for the narrow network of `preset: tiny`: the mistake that is made first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data.errors import UsageError
from models.backbones import create
from pipeline.stage import STAGES, StageContext


@pytest.mark.parametrize("name", ["slowfast", "vgg", "panns"])
def test_a_file_that_does_not_fit_is_told_with_the_preset_to_add(name: str, tmp_path: Path) -> None:
    # Small, and with the classifier that official files have.
    narrow = create(name, preset="tiny", classes=3, calibrated=False)
    torch.save(narrow.net.state_dict(), tmp_path / "official.pth")
    kind = STAGES.get(name)
    stage = kind(StageContext(1.0), kind.Options(checkpoint=tmp_path / "official.pth"))
    with pytest.raises(
        UsageError, match=r"'official\.pth' is an official file, add `preset: full`"
    ):
        stage.setup()


def test_a_file_that_is_not_there_has_nothing_to_do_with_the_preset(tmp_path: Path) -> None:
    kind = STAGES.get("slowfast")
    stage = kind(StageContext(1.0), kind.Options(checkpoint=tmp_path / "none.pth"))
    with pytest.raises(UsageError, match="does not exist") as raised:
        stage.setup()
    assert "preset" not in str(raised.value)
