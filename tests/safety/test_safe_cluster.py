"""Ray: whoever reaches a cluster without token runs code on it, so the doctor says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.doctor import examine
from pipeline.engine.exposure import warning


@pytest.mark.parametrize(
    ("address", "auth", "state"),
    [
        (None, None, "ok"),
        ("10.0.0.5:6379", "token", "ok"),
        ("ray://head.cluster:10001", "token", "ok"),
        ("10.0.0.5:6379", None, "fail"),
        ("ray://head.cluster:10001", None, "fail"),
        ("http://head:8265", "disabled", "fail"),
        ("[2001:db8::1]:6379", None, "fail"),
        ("127.0.0.1:6379", None, "warn"),
        ("ray://localhost:10001", None, "warn"),
        ("[::1]:6379", None, "warn"),
        ("auto", None, "warn"),
    ],
)
def test_the_doctor_refuses_a_cluster_that_everyone_can_use(
    address: str | None, auth: str | None, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    for name, value in (("RAY_ADDRESS", address), ("RAY_AUTH_MODE", auth)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    (check,) = (each for each in examine() if each.name == "Ray cluster")
    assert check.state == state
    assert state == "ok" or "run code on it" in check.advice
    told = warning(None, os.environ)
    assert ("run code on it" in told) == (state == "fail")


def test_the_address_of_the_config_counts_before_that_of_the_environment() -> None:
    assert "10.0.0.5:6379" in warning("10.0.0.5:6379", {"RAY_ADDRESS": "127.0.0.1:6379"})
    assert warning("127.0.0.1:6379", {"RAY_ADDRESS": "10.0.0.5:6379"}) == ""


def test_the_image_of_the_pipeline_asks_for_a_token_and_runs_as_nobody_special(root: Path) -> None:
    text = (root / "docker" / "pipeline.Dockerfile").read_text()
    assert "RAY_AUTH_MODE=token" in text
    assert "USER 1000:1000" in text
