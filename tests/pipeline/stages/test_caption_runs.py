"""The stage of captions in the real engine, on real files: what a second run asks for again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from grey_films import film
from rich.console import Console
from toy_captioners import ASKED, DOWN, toys_registered
from typer.testing import CliRunner

from data.interop import export_captions
from data.store import Row, Store
from pipeline.cli import app
from pipeline.config import load_pipeline_config
from pipeline.engine.stop import StopFlag
from pipeline.progress import Progress
from pipeline.run import Result, Run, look, ray_or_inline


@pytest.fixture(autouse=True)
def _toys() -> Iterator[None]:
    with toys_registered():
        yield


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`long.mp4` of 9 s that gets brighter each second, `short.mp4` of 3 s that does not."""
    folder = tmp_path_factory.mktemp("films")
    film(folder / "long.mp4", [20 * second + 20 for second in range(9)])
    film(folder / "short.mp4", [120] * 3)
    return folder


RunCaptions = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, films: Path) -> RunCaptions:
    """`run(prompt="lmr")`: the options of the stage; the store is `tmp_path/store`."""

    def run(*, retry_failed: bool = False, videos: str = str(films), **options: Any) -> Result:
        config = {
            "videos": {"root": videos},
            "store": "store",
            "engine": {"executor": "inline"},
            "stages": {"captions": {"captioner": "toy", "part_size": 4, **options}},
        }
        (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(config))
        loaded = load_pipeline_config(tmp_path / "pipeline.yaml")
        quiet = Progress(Console(quiet=True))
        made = Run(loaded, look(loaded, (), None), ray_or_inline(loaded), quiet, StopFlag())
        ASKED.clear()
        return made.run(retry_failed=retry_failed)

    return run


def asked() -> list[tuple[str, float]]:
    return sorted((each.video, each.time_s) for each in ASKED)


def captions(tmp_path: Path, id_: str) -> Row:
    return Store.open(tmp_path / "store").reader("captions").row(id_)


EVERYTHING = sorted(
    [("long", float(t)) for t in range(9)] + [("short", float(t)) for t in range(3)]
)


def test_everything_is_captioned_once(tmp_path: Path, run: RunCaptions) -> None:
    assert run().exit_code == 0
    assert asked() == EVERYTHING
    texts = captions(tmp_path, "long").texts["caption"]
    levels = [int(text.split()[1].rstrip(":")) for text in texts]
    np.testing.assert_allclose(levels, range(20, 200, 20), atol=3)  # as H.264 keeps greys
    assert run().exit_code == 0
    assert asked() == []


def test_another_prompt_captions_everything_again_and_the_old_captions_stay(
    tmp_path: Path, run: RunCaptions
) -> None:
    run(prompt="tea")
    before = Store.open(tmp_path / "store").current["captions"]
    run(prompt="videochat")
    assert asked() == EVERYTHING
    store = Store.open(tmp_path / "store")
    assert store.current["captions"] != before
    assert len(store.reader("captions", before)) == 2
    run(prompt="tea")
    assert asked() == []


def test_a_file_that_is_called_otherwise_is_not_captioned_again(
    tmp_path: Path, run: RunCaptions, films: Path
) -> None:
    for name in ("first.mp4", "renamed.mp4"):
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).write_bytes((films / "long.mp4").read_bytes())
        row = {"video_id": "long", "path": str(tmp_path / name)}
        (tmp_path / "list.jsonl").write_text(json.dumps(row) + "\n")
        assert run(videos=str(tmp_path / "list.jsonl")).exit_code == 0
        assert len(ASKED) == (9 if name == "first.mp4" else 0)


def test_only_failed_captions_are_asked_for_again(tmp_path: Path, run: RunCaptions) -> None:
    DOWN.update({5.0, 7.0})
    assert run().exit_code == 3
    assert asked() == EVERYTHING
    failures = Store.open(tmp_path / "store").failures("captions").read()
    assert [(key, each.reason) for key, each in failures.items()] == [
        (("long", failures_content(failures), 1), "captions-failed")
    ]
    DOWN.clear()
    assert run().exit_code == 3  # quarantine is left alone
    assert asked() == []
    assert run(retry_failed=True).exit_code == 0
    assert asked() == [("long", 5.0), ("long", 7.0)]
    row = captions(tmp_path, "long")
    assert all(json.loads(each)["status"] == "ok" for each in row.texts["record"])
    assert len(set(row.texts["caption"])) == 9


def test_each_retry_asks_only_for_what_failed_last(tmp_path: Path, run: RunCaptions) -> None:
    for down, seconds in (({4.0, 5.0, 7.0}, None), ({5.0}, [4, 5, 7]), (set(), [5])):
        DOWN.clear()
        DOWN.update(down)
        run(retry_failed=True)
        if seconds is not None:
            assert asked() == [("long", float(second)) for second in seconds]
    assert len(captions(tmp_path, "long").texts["caption"]) == 9


def test_captions_that_share_a_failed_one_share_it_when_it_is_there(
    tmp_path: Path, run: RunCaptions
) -> None:
    DOWN.add(0.0)
    assert run(reuse={"kind": "near"}).exit_code == 3
    DOWN.clear()
    assert run(reuse={"kind": "near"}, retry_failed=True).exit_code == 0
    assert asked() == [("long", 0.0), ("short", 0.0)]
    records = [json.loads(each) for each in captions(tmp_path, "short").texts["record"]]
    assert [each.get("reused_from") for each in records] == [None, 0, 0]
    assert len(set(captions(tmp_path, "short").texts["caption"])) == 1


def failures_content(failures: Any) -> str:
    ((_, content, _),) = failures
    return str(content)


def test_failed_captions_are_stored_where_the_user_says_so(
    tmp_path: Path, run: RunCaptions
) -> None:
    DOWN.add(5.0)
    assert run().exit_code == 3
    assert run(failed="keep", retry_failed=True).exit_code == 0
    assert asked() == [("long", 5.0)]  # the same recipe, the same kept captions
    records = [json.loads(each) for each in captions(tmp_path, "long").texts["record"]]
    assert [each["status"] for each in records].count("failed") == 1
    assert records[5]["reason"] == "HTTP 503, four times"


def test_still_pictures_are_captioned_once_with_reuse(tmp_path: Path, run: RunCaptions) -> None:
    assert run(reuse={"kind": "near"}).exit_code == 0
    assert [each for each in asked() if each[0] == "short"] == [("short", 0.0)]
    assert len([each for each in asked() if each[0] == "long"]) == 9
    assert captions(tmp_path, "short").facts["reused"] == 2


def test_captions_with_times_of_their_own_come_without_decoding(
    tmp_path: Path, run: RunCaptions, films: Path
) -> None:
    (tmp_path / "list.jsonl").write_text(
        "".join(
            json.dumps({"video_id": name, "path": str(films / f"{file}.mp4")}) + "\n"
            for name, file in (("known", "long"), ("unknown", "short"))
        )
    )
    assert run(captioner="teller", videos=str(tmp_path / "list.jsonl")).exit_code == 3
    row = captions(tmp_path, "known")
    assert row["time_s"].tolist() == [0.5, 1.75, 4.0]
    (failure,) = Store.open(tmp_path / "store").failures("captions").read().values()
    assert failure.reason == "no-captions"


def test_captions_are_exported_by_the_command(
    tmp_path: Path, run: RunCaptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    monkeypatch.chdir(tmp_path)
    export = ["export", "--store", "store", "--format"]
    done = CliRunner().invoke(app, [*export, "captions", "--out", "captions.jsonl"])
    assert done.exit_code == 0, done.output
    lines = (tmp_path / "captions.jsonl").read_text().splitlines()
    assert len(lines) == len(EVERYTHING)
    assert json.loads(lines[0])["input"]
    done = CliRunner().invoke(app, [*export, "paragraphs", "--out", "text", "--json"])
    assert json.loads(done.stdout)["files"] == {"captions": 12, "videos": 2}
    assert (tmp_path / "text" / "short.txt").read_text().startswith("0: Level 1")
    wrong = CliRunner().invoke(app, [*export, "captions", "--out", "c.jsonl", "--stream", "clip"])
    assert wrong.exit_code == 2
    assert "leave --stream and --dtype out" in wrong.output
    unknown = CliRunner().invoke(app, [*export, "caption", "--out", "c.jsonl"])
    assert unknown.exit_code == 2
    assert "did you mean 'captions'" in unknown.output


@pytest.mark.parametrize(
    ("form", "out"),
    [("captions", "c.jsonl"), ("captions", "c.csv"), ("paragraphs", "paragraphs")],
)
def test_what_was_exported_can_be_taken_as_captions_again(
    tmp_path: Path, run: RunCaptions, form: str, out: str
) -> None:
    run()
    before = captions(tmp_path, "long")
    store = Store.open(tmp_path / "store")
    export_captions(store, tmp_path / out, form)
    assert run(captioner="precomputed", options={"path": out}).exit_code == 0
    assert asked() == []
    after = captions(tmp_path, "long")
    assert after.texts["caption"] == before.texts["caption"]
    np.testing.assert_array_equal(after["time_s"], before["time_s"])
    assert after.facts["captioner"]["captioner"] == "precomputed"
