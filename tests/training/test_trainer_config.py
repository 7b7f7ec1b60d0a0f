"""The trainer's configuration: shipped files load, wrong ones are explained, switches work."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shipped_recipes import CONFIGS, SHIPPED, on_small_store

from data.config import load_config, parse_config
from data.errors import UsageError
from data.store import Store
from models.retrieval.types import StepContext
from training.batch import Draw
from training.config import TrainerConfig, shipped_or_file
from training.retrieval_task import build_model
from training.run import _differences
from training.session import Session


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_shipped_configuration_builds_its_model(path: Path, store: Store) -> None:
    changes = [f"{name}={value}" for name, value in on_small_store(path, store).items()]
    config = load_config(TrainerConfig, path, changes)
    assert path.read_text().startswith("# ")
    assert f"--config {path.relative_to(CONFIGS.parents[1])}" in path.read_text()
    session = Session(config, lambda sentence: None)
    with torch.device("meta"):
        model = build_model(config.model, session.train.samples)
    assert sum(each.numel() for each in model.parameters()) > 0


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
        (
            "data.narratives=true",
            r"data\.narratives=true, but nothing would .*plugins: none.*\(tea.*\(lmr\)",
        ),
        (
            "data.events=true",
            r"data\.events=true, but nothing .*name: qd_detr.*\(event_regulation.*\(eatr",
        ),
        ("data.event_depth=2", r"data\.event_depth=2, but no events .* set data\.events=true"),
        ("data.event_depth=-1", r"'data\.event_depth': .* greater than or equal to 0"),
        ("optim.lr=.inf", r"'optim\.lr': .*finite number, got inf"),
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


def test_a_stream_that_no_plug_in_reads_is_not_loaded_in_silence(values: dict[str, Any]) -> None:
    values["data"] |= {"narratives": True, "events": True}
    values["model"]["plugins"] = {"tea": {}}
    with pytest.raises(UsageError, match=r"data\.events=true, but nothing .*plugins: tea\)"):
        parse_config(TrainerConfig, values, source="test")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.narratives=true", "model.plugins={tea: {merge: none}}"],
            r"data\.narratives=true, but under these options model 'qd_detr' .*tea reads none",
        ),
        (
            ["data.events=true", "model={name: eatr, options: {events: online}}"],
            r"data\.events=true, but under these options model 'eatr' .*reads none",
        ),
        (
            ["data.other_texts=[llama]"],
            r"data\.other_texts has 'llama', but under .* model 'qd_detr' .*does not read it; take",
        ),
        (
            ["data.narratives=true", "data.other_texts=[llama]", "model={name: lmr}"],
            r"data\.other_texts has 'llama', but under .* model 'lmr' .*does not read it; take",
        ),
        (
            ["data.narratives=true", "model={name: lmr, options: {description_query: other}}"],
            r"embedding 'llama', and the data give no other .*data\.other_texts.*--stage queries",
        ),
    ],
)
def test_what_the_options_of_a_model_leave_unread_is_not_loaded_in_silence(
    values: dict[str, Any], overrides: list[str], message: str
) -> None:
    session = Session(
        parse_config(TrainerConfig, values, overrides, source="test"), lambda sentence: None
    )
    with pytest.raises(UsageError, match=message):
        session.task(session.train)


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.narratives=true", "model={name: lmr, options: {hidden: 16, heads: 2}}"],
        [
            "data.narratives=true",
            "data.other_texts=[llama]",
            "model={name: lmr, options: {hidden: 16, heads: 2, description_query: other}}",
        ],
        ["data.events=true", "model={name: eatr, options: {hidden: 16, heads: 2}}"],
        ["data.events=true", "model.plugins={event_regulation: {}}"],
    ],
)
def test_a_model_gets_the_side_streams_that_it_reads(
    values: dict[str, Any], overrides: list[str]
) -> None:
    config = parse_config(TrainerConfig, values, overrides, source="test")
    session = Session(config, lambda sentence: None)
    task, queries = session.task(session.train), session.hold(session.train)
    (batch,) = queries.read([np.arange(4)], Draw())
    losses = task.losses(batch, StepContext())
    assert all(each.isfinite() for each in losses.values())


def test_the_depth_of_events_is_part_of_what_a_run_was_trained_as(values: dict[str, Any]) -> None:
    config = parse_config(TrainerConfig, values, source="test")
    # this model reads no events, so the check for that is passed over
    coarse, fine = (
        config.model_copy(
            update={"data": config.data.model_copy(update={"events": True, "event_depth": depth})}
        )
        for depth in (1, None)
    )
    assert _differences(coarse, fine) == "data.event_depth was 1 and is None"


def test_other_embeddings_are_part_of_what_a_run_was_trained_as(values: dict[str, Any]) -> None:
    one, other = (
        parse_config(TrainerConfig, values, [f"data.other_texts={names}"], source="test")
        for names in ("[]", "[llama]")
    )
    assert _differences(one, other) == "data.other_texts was () and is ('llama',)"


def test_a_side_stream_whose_stage_was_not_run_is_named_with_the_command(
    values: dict[str, Any], store: Store, tmp_path: Path
) -> None:
    shutil.copytree(store.path, tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "narratives")
    values["data"] |= {"store": str(tmp_path / "store"), "narratives": True}
    values["model"]["plugins"] = {"tea": {}}
    session = Session(parse_config(TrainerConfig, values, source="test"), lambda sentence: None)
    with pytest.raises(UsageError, match=r"no narratives; .*pipeline run --stage narratives"):
        session.split("val")


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_half_precision_on_a_cpu_is_refused(
    values: dict[str, Any], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    values["loop"] |= {"precision": "float16", "device": device}
    config = parse_config(TrainerConfig, values, source="test")
    with pytest.raises(UsageError, match=f"float16 needs a GPU, and loop.device={device} is"):
        Session(config, lambda sentence: None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.name=qd_det", "unknown model 'qd_det'; did you mean 'qd_detr'"),
        ("model.options={hiden: 8}", "hiden"),
        ("model.plugins={te: {}}", "unknown plug-in 'te'; did you mean 'tea'"),
        ("model.plugins={tea: {}}", r"data\.narratives=true"),
        ("model={name: lmr}", r"side stream 'narrative', and the data give none.*narratives=true"),
        ("data.other_texts=[lama]", r"as 'lama', too; there are: llama; name it in pipeline\.yaml"),
        ("data.other_texts=[llama, llama]", r"other_texts must name different encoders"),
        ("model={name: eatr}", r"reads 'events', which the data do not load.*data\.events=true"),
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


def test_shipped_configs_are_known_by_name_and_a_wrong_name_by_its_nearest(tmp_path: Path) -> None:
    assert shipped_or_file(Path("qd_detr/demo")) == CONFIGS / "qd_detr" / "demo.yaml"
    own = tmp_path / "own.yaml"
    own.write_text("")
    assert shipped_or_file(own) == own
    with pytest.raises(UsageError, match="did you mean 'qd_detr/demo'"):
        shipped_or_file(Path("qd_detr/dmo"))
