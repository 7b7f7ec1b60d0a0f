"""`pipeline doctor` on libraries that only some configs need."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.config import load_pipeline_config
from pipeline.doctor import examine


def test_doctor_asks_for_the_libraries_of_an_extra_only_where_a_config_wants_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("torchcodec", "cv2"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed

    def states(*settings: str) -> dict[str, str]:
        config = load_pipeline_config(Path("tiny"), settings)
        return {each.name: each.state for each in examine(config)}

    assert (states()["decoder torchcodec"], states()["OpenCV's flow"]) == ("ok", "ok")
    assert states("decode.fallbacks=[torchcodec]")["decoder torchcodec"] == "fail"
    assert states("stages.i3d_flow.flow=tvl1")["OpenCV's flow"] == "fail"
    assert states("stages.i3d_flow.flow=raft")["OpenCV's flow"] == "ok"
