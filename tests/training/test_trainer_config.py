"""The trainer's configuration: shipped files load, wrong ones are explained, switches work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data.config import load_config, parse_config
from data.errors import UsageError
from data.store import Store
from training.config import TrainerConfig
from training.session import Session

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "trainer"


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS))
)
def test_every_shipped_configuration_builds_its_model(path: Path, store: Store) -> None:
    config = load_config(TrainerConfig, path, [f"data.store={store.path}", "loop.device=cpu"])
    assert path.read_text().startswith("# ")
    assert f"--config {path.relative_to(CONFIGS.parents[1])}" in path.read_text()
    session = Session(config, lambda sentence: None)
    assert sum(each.numel() for each in session.task(session.train).model.parameters()) > 0


def test_the_two_demo_configurations_differ_in_the_narrative_merge_alone() -> None:
    switch = ["data.narratives=true", "model.plugins={tea: {}}"]
    plain = load_config(TrainerConfig, CONFIGS / "qd_detr" / "demo.yaml", switch)
    assert plain == load_config(TrainerConfig, CONFIGS / "qd_detr" / "demo_tea.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loop.epoch=3", r"unknown key 'loop\.epoch'; did you mean 'epochs'\?"),
        ("optim.schedule={name: cosin}", r"unknown schedule 'cosin'; did you mean 'cosine'"),
        ("loop.epochs=0", r"'loop\.epochs': .* greater than or equal to 1, got 0"),
        ("data.narratives=true", r"data\.narratives=true, but model\.plugins is empty"),
        ("data.cache=gpu", r"'data\.cache': .*'auto', 'device' or 'none', got 'gpu'"),
        ("data.max_windows=6", r"'data\.max_windows': .* less than or equal to 5"),
        ("model.preset=paper2", r"'model\.preset': .*'fixed', 'paper' or 'release'"),
    ],
)
def test_wrong_options_are_answered_with_a_sentence(
    values: dict[str, Any], override: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        parse_config(TrainerConfig, values, [override], source="test")


def test_half_precision_on_a_cpu_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="precision=float16 needs a GPU, and device=cpu"):
        parse_config(TrainerConfig, values, ["loop.precision=float16"], source="test")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.name=qd_det", "unknown model 'qd_det'; did you mean 'qd_detr'"),
        ("model.options={hiden: 8}", "hiden"),
        ("model.plugins={te: {}}", "unknown plug-in 'te'; did you mean 'tea'"),
        ("model.plugins={tea: {}}", r"--set data\.narratives=true"),
        ("loop.device=cuda:99x", "is no device; allowed: auto, cpu, cuda"),
    ],
)
def test_what_only_the_model_or_machine_can_know_is_answered_too(
    values: dict[str, Any], override: str, message: str
) -> None:
    config = parse_config(TrainerConfig, values, [override], source="test")

    def build() -> None:
        session = Session(config, lambda sentence: None)
        session.task(session.train)

    with pytest.raises(UsageError, match=message):
        build()
