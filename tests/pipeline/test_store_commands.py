"""The maintainer's commands over stores that toy stages made."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import toys
import yaml
from typer.testing import CliRunner, Result

from data.store import Failure, Store
from data.store.files import read_bytes
from pipeline.cli import app
from pipeline.quarantine import read_quarantine

pytestmark = pytest.mark.usefixtures("toy_stages")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three videos, a config, and a finished run of two stages; it is the current folder."""
    monkeypatch.chdir(tmp_path)
    toys.write_videos(tmp_path / "videos", ["a", "b", "c"])
    write_config(tmp_path)
    assert call("run").exit_code == 0
    return tmp_path


def write_config(folder: Path, **values: Any) -> None:
    base = {"videos": {"root": "videos"}, "store": "store", "stages": {"rows": {}}}
    base["engine"] = {"executor": "inline"}
    base["annotations"] = {"train": "train.jsonl"}
    query = {"qid": "1", "query": "A cat.", "vid": "a", "duration": 8.0}
    (folder / "train.jsonl").write_text(json.dumps(query | {"relevant_windows": [[0, 2]]}) + "\n")
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(base | values))


def call(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def answer(*words: str, code: int = 0) -> Any:
    done = call(*words, "--json")
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def rows_shard(folder: Path) -> Path:
    (shard,) = (folder / "store" / "rows").rglob("*.h5")
    return shard


def flip(path: Path, needle: bytes) -> None:
    raw = bytearray(path.read_bytes())
    raw[raw.index(needle)] ^= 1
    path.write_bytes(raw)


def contents(folder: Path) -> dict[str, bytes]:
    reader = Store.open(folder / "store").reader("rows")
    return {id_: reader.row(id_)["vector"].tobytes() for id_ in reader.ids()}


def test_verify_ends_with_0_or_4_and_names_the_shard(folder: Path) -> None:
    for words in (["--deep"], ["--shallow"], ["--untrusted"], ["--store", "store"]):
        done = call("verify", *words)
        assert done.exit_code == 0, done.output
        assert "everything is right" in done.stdout
    shard = rows_shard(folder)
    flip(shard, toys.expected("b").tobytes())
    assert call("verify", "--shallow").exit_code == 0
    for words in ([], ["--untrusted"]):
        found = answer("verify", *words, code=4)
        assert found["errors"] == len(found["problems"]) == 2
        assert all(shard.name in each["where"] for each in found["problems"])
        assert {each["level"] for each in found["problems"]} == {"error"}


def test_a_note_is_no_damage(folder: Path) -> None:
    (rows_shard(folder).parent / "notes.txt").touch()
    done = call("verify")
    assert done.exit_code == 0
    assert "note: file: " in done.stdout
    assert "everything is right" in done.stdout


def test_repair_then_run_gives_every_row_back_bit_for_bit(folder: Path) -> None:
    before, shard = contents(folder), rows_shard(folder)
    flip(shard, toys.expected("b").tobytes())
    assert [each["lost"] for each in answer("repair", "--dry-run")["repairs"]] == [1]
    assert call("verify").exit_code == 4
    done = call("repair")
    assert done.exit_code == 0, done.output
    assert "1 repaired" in done.stdout
    assert "1 damaged items of 3: set aside, 2 items kept, 1 to make again" in done.stdout
    assert call("verify").exit_code == 0
    assert set(contents(folder)) == {"a", "c"}
    assert "rows: 1/1" in call("run").output
    assert contents(folder) == before
    assert "0 repaired" in call("repair").stdout
    assert "1 files" in call("status").stdout


def test_what_repair_cannot_decide_is_named_with_4(folder: Path) -> None:
    path = rows_shard(folder).parent / "recipe.json"
    newer = json.loads(path.read_text()) | {"schema_version": 99}
    path.write_text(json.dumps(newer))
    found = answer("repair", code=4)
    assert found["left"] == 1
    assert json.loads(path.read_text()) == newer


def test_a_damaged_store_json_is_written_anew_where_it_can_be_known(folder: Path) -> None:
    path = folder / "store" / "store.json"
    before = path.read_bytes()
    for spoiled in (before[:30], None):
        if spoiled is None:
            path.unlink()
        else:
            path.write_bytes(spoiled)
        found = answer("verify", code=4)
        assert [each["where"] for each in found["problems"]] == [str(path)]
        would = call("repair", "--dry-run")
        assert "would be written anew" in would.stdout
        assert not path.exists() or path.read_bytes() == spoiled
        assert call("repair").exit_code == 0
        assert path.read_bytes() == before
    assert (folder / "store" / "set-aside" / "store.json").read_bytes() == before[:30]


def test_a_damaged_store_json_asks_for_what_nobody_can_know(folder: Path) -> None:
    call("run", "--set", "stages.rows.scale=2")
    path = folder / "store" / "store.json"
    before = json.loads(path.read_text())
    path.write_text("{")
    asked = call("repair", "--store", "store")
    assert asked.exit_code == 2
    assert "--dataset NAME" in asked.stderr
    asked = call("repair")
    assert asked.exit_code == 2
    assert "choose with --current rows=ID" in asked.stderr
    words = ["--store", "store", "--dataset", "videos"]
    assert call("repair", *words, "--current", f"rows={before['current']['rows']}").exit_code == 0
    assert json.loads(path.read_text()) == before
    assert call("repair", "--current", "rows").exit_code == 0  # nothing is damaged


def test_a_store_of_a_newer_version_is_not_repaired(folder: Path) -> None:
    path = folder / "store" / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    done = call("repair")
    assert done.exit_code == 2
    assert "99" in done.stderr
    assert json.loads(path.read_text())["schema_version"] == 99


def test_gc_shows_what_goes_and_how_much_is_freed(folder: Path) -> None:
    older = rows_shard(folder).parent
    call("run", "--set", "stages.rows.scale=2")
    assert "0 B freed" in call("gc").stdout
    for path in older.iterdir():
        os.utime(path, (time.time() - 3e6,) * 2)
    would = call("gc", "--dry-run")
    assert f"rows/{older.name}" in would.stdout
    assert "would be freed" in would.stdout
    assert older.exists()
    found = answer("gc", "--older-than", "20d")
    assert [each["what"] for each in found["found"]] == [f"rows/{older.name}"]
    assert found["bytes"] > 0
    assert not older.exists()
    wrong = call("gc", "--older-than", "a week")
    assert wrong.exit_code == 2
    assert "'a week' is no age" in wrong.stderr


def test_compact_makes_one_shard_of_many_and_status_recommends_it(folder: Path) -> None:
    toys.write_videos(folder / "videos", [f"v{number}" for number in range(9)])
    call("run", "--set", "engine.commit_every_s=0")
    before = contents(folder)
    lines = {each["stage"]: each for each in answer("status")["stages"]}
    assert lines["rows"]["shards"] == 10
    assert "`pipeline compact` makes 1" in lines["rows"]["remarks"][0]
    assert [each["after"] for each in answer("compact", "--dry-run")["stages"]] == [1, 1]
    done = call("compact", "--stage", "rows")
    assert done.exit_code == 0, done.output
    lines = {each["stage"]: each for each in answer("status")["stages"]}
    assert [lines[name]["shards"] for name in ("probe", "rows")] == [10, 1]
    assert contents(folder) == before
    assert "nothing to do" in call("run").output
    assert call("verify").exit_code == 0


def test_compact_leaves_damaged_shards_alone_and_ends_with_4(folder: Path) -> None:
    toys.write_videos(folder / "videos", ["d"])
    shard = rows_shard(folder)
    call("run")
    flip(shard, toys.expected("b").tobytes())
    spoiled = shard.read_bytes()
    done = call("compact")
    assert done.exit_code == 4
    assert f"left alone, damaged: {shard}" in done.stdout
    assert shard.read_bytes() == spoiled


def test_diff_ends_with_0_or_1_and_names_stream_and_video(folder: Path) -> None:
    call("run", "--store", "other")
    assert call("diff", "store", "other").exit_code == 0
    call("run", "--set", "stages.rows.scale=2")
    done = call("diff", "store", "other", "--stage", "rows")
    assert done.exit_code == 1
    assert "rows: 3 differing" in done.stdout
    assert "params.scale: 2.0 -> 1.0" in done.stdout
    assert "vector: differs in 3: cosine median 1.000000" in done.stdout
    found = answer("diff", "store", "other", "--tolerance", "2")
    assert found["same"]
    assert [each["within"] for each in found["stages"]] == [0, 3]
    assert call("diff", "store", "nowhere").exit_code == 2


def test_failures_are_listed_with_reason_log_and_the_command_that_retries(folder: Path) -> None:
    toys.write_videos(folder / "videos", ["refuse-1", "raise-1"])
    assert call("run").exit_code == 3
    done = call("failures")
    assert done.exit_code == 0
    assert "refuse-1 is refused" in done.stdout
    assert "pipeline run --stage rows --retry-failed" in done.stdout
    assert "ZeroDivisionError" in call("failures", "--log", "--reason", "exception").stdout
    (one,) = answer("failures", "--stage", "rows", "--reason", "toy-refused")["failures"]
    assert (one["stage"], one["key"]["id"], one["attempts"]) == ("rows", "refuse-1", 1)
    assert "nothing is in quarantine" in call("failures", "--stage", "probe").stdout
    call("run", "--set", "stages.rows.scale=2", "--limit", "5")
    assert "2 more under other recipes: --all" in call("failures").stdout
    assert len(answer("failures", "--all")["failures"]) == 4


def test_a_success_after_a_failure_is_not_in_quarantine(folder: Path) -> None:
    store = Store.open(folder / "store")
    key = store.reader("rows").key("a")
    store.failures("rows").record(Failure("rows", key, "crash", "died", 1))
    assert list(read_quarantine(store)) == []


@pytest.mark.parametrize("kind", ["memory_place", pytest.param("s3_place", marks=pytest.mark.slow)])
def test_all_of_it_works_on_an_object_store(
    kind: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    url = str(request.getfixturevalue(kind))
    done = call("run", "--store", url)
    assert done.exit_code == 0, done.output
    toys.write_videos(folder / "videos", ["d", "refuse-1"])
    assert call("run", "--store", url).exit_code == 3
    assert call("diff", "store", url).exit_code == 1
    for words in (["verify"], ["status"], ["failures"], ["gc"], ["compact"], ["repair"]):
        done = call(*words, "--store", url)
        assert done.exit_code == 0, (words, done.output)
    store = Store.open(url)
    (shard,) = store.shards("rows")
    shard.write_bytes(read_bytes(shard)[:-50])
    assert call("verify", "--store", url).exit_code == 4
    assert call("repair", "--store", url).exit_code == 0
    assert call("run", "--store", url).exit_code == 3
    assert store.reader("rows").ids() == ["a", "b", "c", "d"]
    assert call("verify", "--store", url).exit_code == 0


def test_a_stage_that_is_not_there_is_refused_and_never_means_all(folder: Path) -> None:
    toys.write_videos(folder / "videos", ["d"])
    call("run")
    before = sorted(path.name for path in (folder / "store").rglob("*.h5"))
    for command in (["compact"], ["failures"], ["diff", "store", "store"]):
        done = call(*command, "--stage", "rowz")
        assert done.exit_code == 2
        assert "did you mean 'rows'?" in done.output
    assert sorted(path.name for path in (folder / "store").rglob("*.h5")) == before


def test_videos_that_this_machine_has_not_hashed_are_not_missing(folder: Path) -> None:
    (folder / "store" / "cache" / "files.jsonl").unlink()  # as on another machine
    found = answer("status")
    assert found["unhashed"] == 3
    assert [(each["done"], each["missing"]) for each in found["stages"]] == [(3, 0), (3, 0)]
    assert "3 videos were not hashed on this machine" in call("status").stdout
    assert answer("plan")["unhashed"] == ["a", "b", "c"]
    assert "3 videos to do are known to the store" in call("plan").stdout
    call("run")
    (folder / "videos" / "a.mp4").write_text("toy video a, cut anew")
    found = answer("status")
    assert found["unhashed"] == 0  # it was hashed, and is another one now
    assert [(each["done"], each["missing"]) for each in found["stages"]] == [(2, 1), (2, 1)]


def test_a_store_json_that_is_lost_is_told_with_the_command_that_mends_it(folder: Path) -> None:
    (folder / "store" / "store.json").unlink()
    done = call("status", "--store", "store")
    assert done.exit_code == 2
    assert "`pipeline repair` writes it again" in done.output
    first = sorted((folder / "store").rglob("*.h5"))[0]
    first.write_bytes(first.read_bytes()[:500])
    assert (
        "the clip length cannot be known"
        in call("repair", "--store", "store", "--dataset", "dataset").output
    )
    assert call("repair").exit_code == 0
    assert call("run").exit_code == call("verify").exit_code == 0


def test_the_log_of_what_was_set_aside_is_not_one_of_these_files(folder: Path) -> None:
    with (folder / "store" / "videos.jsonl").open("a") as file:
        file.write('{"video_id')
    assert call("repair").exit_code == 0
    assert answer("status")["set_aside"] == 1
    assert "set-aside: 1 files" in call("verify").stdout
    call("gc", "--set-aside", "--older-than", "0s")
    assert answer("status")["set_aside"] == 0
    assert "set-aside" not in call("verify").stdout
