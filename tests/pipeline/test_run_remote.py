"""`pipeline run` and the trainer's dataset on stores that are no folder of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import toys
from typer.testing import CliRunner
from upath import UPath

from data.errors import UsageError
from data.store import Store
from data.store.files import atomic_write, list_folder, read_bytes
from data.store.place import place_of, text_of
from pipeline.cli import app
from pipeline.config import load_pipeline_config

QUERY = {"qid": 1, "query": "a dog runs", "duration": 8, "vid": "a", "relevant_windows": [[2, 4]]}


@pytest.fixture(params=["memory", "s3"])
def place(request: pytest.FixtureRequest) -> UPath:
    there: UPath = request.getfixturevalue(f"{request.param}_place")
    return there


def test_a_run_fills_a_remote_store_and_the_next_one_has_nothing_to_do(
    tmp_path: Path, run_toys: toys.RunToys, place: UPath
) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "b", "refuse-c"])
    (tmp_path / "train.jsonl").write_text(json.dumps(QUERY) + "\n")
    config: dict[str, Any] = {
        "store": text_of(place),
        "annotations": {"train": "train.jsonl"},
        "stages": {"rows": {}, "lengths": {}},
    }
    first = run_toys([], **config)
    assert first.exit_code == 3
    store = Store.open(place)
    assert {"probe", "rows", "lengths"} <= set(store.stages())
    assert store.reader("rows").ids() == ["a", "b"]
    assert {each.reason for each in store.failures("rows").read().values()} == {"toy-refused"}
    assert set(store.catalogue()) == {"a", "b", "refuse-c"}
    assert [each.query for each in store.annotations("train")] == ["a dog runs"]
    assert {each.level for each in store.verify()} <= {"note"}
    assert not [each.name for each in list_folder(place) if each.name == "cache"]

    shards = {stage: store.shards(stage) for stage in store.stages()}
    assert run_toys([], **config).exit_code == 3
    assert {stage: store.shards(stage) for stage in store.stages()} == shards


def test_a_url_is_never_taken_as_a_path_beside_the_config(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text("store: s3://bucket/store\nvideos: {root: videos}\n")
    assert load_pipeline_config(file).store == place_of("s3://bucket/store")
    assert load_pipeline_config(file, ["store=memory://b/s"]).store == place_of("memory://b/s")
    assert load_pipeline_config(file, ["store=out"]).store == Path.cwd() / "out"
    file.write_text("store: s3://key:secret@bucket/store\n")
    with pytest.raises(UsageError, match=r"'store': 's3://…@bucket/store' carries a key") as told:
        load_pipeline_config(file)
    assert "secret" not in str(told.value)


def test_a_configuration_with_a_url_is_dumped_and_read_back(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text("store: s3://bucket/store/\n")
    config = load_pipeline_config(file)
    assert config.model_dump(mode="json")["store"] == "s3://bucket/store"


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_the_maintainers_commands_work_on_a_remote_store(
    tmp_path: Path, run_toys: toys.RunToys, place: UPath
) -> None:
    toys.write_videos(tmp_path / "videos", ["a", "b"])
    stages = {"rows": {}}
    run_toys([], store=text_of(place), stages=stages)
    toys.write_videos(tmp_path / "videos", ["c"])
    run_toys([], store=text_of(place), stages=stages)
    run_toys([], stages=stages)  # the same, here
    store = Store.open(place)
    there = ["--store", text_of(place)]

    status = json.loads(call("status", *there, "--json").output)
    assert {each["stage"]: each["done"] for each in status["stages"]} == {"probe": 3, "rows": 3}
    assert all(each["last_write"] for each in status["stages"])
    assert len(store.shards("rows")) > 1
    assert call("compact", *there).exit_code == 0
    assert len(store.shards("rows")) == 1
    assert call("diff", text_of(place), tmp_path / "store").exit_code == 0
    assert call("verify", *there).exit_code == 0

    (shard,) = store.shards("rows")
    whole = read_bytes(shard)
    atomic_write(shard, whole[: len(whole) // 2])
    found = call("verify", *there)
    assert found.exit_code != 0
    assert shard.name in found.output
    assert call("repair", *there).exit_code in (0, 3)
    assert call("verify", *there).exit_code == 0
    run_toys([], store=text_of(place), stages=stages)
    assert store.reader("rows").ids() == ["a", "b", "c"]
    assert call("diff", text_of(place), tmp_path / "store").exit_code == 0
    gc = call("gc", *there, "--set-aside", "--older-than", "0s")
    assert gc.exit_code == 0, gc.output
    assert list_folder(place / "set-aside" / "rows") == []
    assert store.reader("rows").ids() == ["a", "b", "c"]
