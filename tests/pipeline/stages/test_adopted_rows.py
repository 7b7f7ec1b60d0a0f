"""Files that get another name: their captions and features are copied, never made again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from grey_films import film
from rich.console import Console
from toy_captioners import ASKED, DOWN, toys_registered
from typer.testing import CliRunner

from data.errors import UsageError
from data.store import Row, Store
from data.store.gc import gc
from pipeline.cli import app
from pipeline.config import load_pipeline_config
from pipeline.engine.stop import StopFlag
from pipeline.progress import Progress
from pipeline.run import Result, Run, look, ray_or_inline

CAPTIONS = {"captioner": "toy", "part_size": 4}


@pytest.fixture(autouse=True)
def _toys() -> Iterator[None]:
    with toys_registered():
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`before.mp4` of 9 s: captions in three parts."""
    videos = tmp_path / "videos"
    videos.mkdir()
    film(videos / "before.mp4", [20 * second + 20 for second in range(9)])
    return videos


RunStages = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> RunStages:
    """`run(prompt="lmr")`: options of captions; the store is `tmp_path/store`."""

    def run(
        *,
        retry_failed: bool = False,
        share: str | None = None,
        most_gpu_hours: float | None = None,
        stages: dict[str, Any] | None = None,
        stop: StopFlag | None = None,
        **options: Any,
    ) -> Result:
        config = {
            "videos": {"root": "videos"},
            "store": "store",
            "engine": {"executor": "inline"},
            "stages": stages or {"captions": CAPTIONS | options},
        }
        (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(config))
        loaded = load_pipeline_config(tmp_path / "pipeline.yaml")
        quiet = Progress(Console(quiet=True))
        ASKED.clear()
        view = look(loaded, (), None, share)
        flag = stop or StopFlag()
        made = Run(loaded, view, ray_or_inline(loaded), quiet, flag, most_gpu_hours)
        return made.run(retry_failed=retry_failed)

    return run


def asked() -> list[tuple[str, float]]:
    return sorted((each.video, each.time_s) for each in ASKED)


def captions(tmp_path: Path, id_: str) -> Row:
    return Store.open(tmp_path / "store").reader("captions").row(id_)


def rename(folder: Path, before: str = "before", after: str = "after") -> None:
    (folder / f"{before}.mp4").rename(folder / f"{after}.mp4")


def test_a_file_that_got_another_name_in_its_folder_keeps_its_captions(
    tmp_path: Path, run: RunStages, folder: Path
) -> None:
    assert run().exit_code == 0
    old = captions(tmp_path, "before")
    rename(folder)
    (folder / "twin.mp4").write_bytes((folder / "after.mp4").read_bytes())
    assert run().exit_code == 0
    assert ASKED == []
    for name in ("after", "twin"):
        new = captions(tmp_path, name)
        assert new.key == replace(old.key, id=name)
        assert (new.texts, new.facts) == (old.texts, old.facts)
        np.testing.assert_array_equal(new["time_s"], old["time_s"])


def test_another_film_under_the_old_name_is_captioned(
    tmp_path: Path, run: RunStages, folder: Path
) -> None:
    run()
    rename(folder)
    film(folder / "before.mp4", [200, 100])
    assert run().exit_code == 0
    assert asked() == [("before", 0.0), ("before", 1.0)]
    assert len(captions(tmp_path, "after").texts["caption"]) == 9
    assert [text[:9] for text in captions(tmp_path, "before").texts["caption"]] == [
        "Level 200",
        "Level 100",
    ]


def test_rows_of_a_recipe_that_readers_are_not_sent_to_serve_as_well(
    tmp_path: Path, run: RunStages, folder: Path
) -> None:
    run(prompt="tea")
    run(prompt="videochat")
    rename(folder)
    assert run(prompt="tea").exit_code == 0
    assert asked() == []
    assert "one image frame" in captions(tmp_path, "after").texts["caption"][0]


def test_shares_take_over_rows_of_all_shares(tmp_path: Path, run: RunStages, folder: Path) -> None:
    run()
    rename(folder)
    for share in ("1/2", "2/2"):
        assert run(share=share).exit_code == 0
        assert asked() == []
    assert len(captions(tmp_path, "after").texts["caption"]) == 9


def test_features_are_taken_over_like_captions(
    tmp_path: Path, run: RunStages, folder: Path
) -> None:
    stages = {"clip": {"preset": "tiny"}}
    run(stages=stages)
    old = Store.open(tmp_path / "store").reader("clip").row("before")
    rename(folder)
    result = run(stages=stages)
    assert result.exit_code == 0
    assert [names for names, _ in result.times] == [("probe",)]  # no worker looked at frames
    new = Store.open(tmp_path / "store").reader("clip").row("after")
    np.testing.assert_array_equal(new["clip"], old["clip"])


def test_what_was_kept_of_an_unfinished_part_goes_with_the_file(
    tmp_path: Path, run: RunStages, folder: Path
) -> None:
    DOWN.update({5.0, 7.0})
    assert run().exit_code == 3
    DOWN.clear()
    rename(folder)
    assert run().exit_code == 0
    assert asked() == [("after", 5.0), ("after", 7.0)]
    records = captions(tmp_path, "after").texts["record"]
    assert [json.loads(each)["status"] for each in records] == ["ok"] * 9


def test_a_quarantined_part_is_whole_when_its_rows_are_there_under_another_name(
    tmp_path: Path, run: RunStages, folder: Path
) -> None:
    DOWN.update({5.0})
    assert run().exit_code == 3
    DOWN.clear()
    rename(folder)
    run()
    rename(folder, "after", "before")
    assert run().exit_code == 0
    assert asked() == []
    assert len(captions(tmp_path, "before").texts["caption"]) == 9


def test_captions_that_are_known_by_id_stay_with_their_id(
    tmp_path: Path, run: RunStages, folder: Path
) -> None:
    rename(folder, "before", "known")
    assert run(captioner="teller").exit_code == 0
    rename(folder, "known", "unknown")
    assert run(captioner="teller").exit_code == 3
    (failure,) = Store.open(tmp_path / "store").failures("captions").read().values()
    assert (failure.key.id, failure.reason) == ("unknown", "no-captions")


def test_rows_under_the_old_name_are_there_after_gc(
    tmp_path: Path, run: RunStages, folder: Path
) -> None:
    run()
    rename(folder)
    assert gc(Store.open(tmp_path / "store"), older_than_s=0, now=time.time() + 9e6) == []
    assert run().exit_code == 0
    assert asked() == []


def damage(shard: Path) -> None:
    """Change a caption, the first one, so that its row no longer fits its CRC32."""
    content = shard.read_bytes()
    place = content.index(b": This is one image frame")
    shard.write_bytes(content[:place] + b";" + content[place + 1 :])


def test_damaged_rows_are_made_again_and_not_copied(
    tmp_path: Path, run: RunStages, folder: Path
) -> None:
    run()
    good = captions(tmp_path, "before").texts["caption"]
    (shard,) = Store.open(tmp_path / "store").shards("captions")
    damage(Path(str(shard)))
    rename(folder)
    assert run().exit_code == 0
    assert asked() == [("after", float(second)) for second in range(4)]
    assert captions(tmp_path, "after").texts["caption"] == good
    problems = Store.open(tmp_path / "store").verify()
    assert [each for each in problems if each.level == "error"] == []


def test_of_two_names_with_the_rows_a_whole_one_serves(
    tmp_path: Path, run: RunStages, folder: Path
) -> None:
    run()
    (shard,) = Store.open(tmp_path / "store").shards("captions")
    rename(folder)
    run()  # "after" sorts before "before", and has a shard of its own
    (other,) = set(Store.open(tmp_path / "store").shards("captions")) - {shard}
    damage(Path(str(other)))
    rename(folder, "after", "third")
    assert run().exit_code == 0
    assert asked() == []


def test_a_budget_counts_no_captions_that_are_there_under_another_name(
    tmp_path: Path, run: RunStages, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.cost.gpu_here", lambda device: "NVIDIA H200")
    run(gpus=1)
    rename(folder)
    assert run(gpus=1, most_gpu_hours=0).exit_code == 0
    assert asked() == []
    film(folder / "new.mp4", [100])
    with pytest.raises(UsageError, match="nothing was begun"):
        run(gpus=1, most_gpu_hours=0)


def test_a_budget_counts_what_is_asked_for_again_also_beside_new_videos(
    tmp_path: Path, run: RunStages, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.cost.gpu_here", lambda device: "NVIDIA H200")
    told: list[str] = []
    monkeypatch.setattr(Progress, "note", lambda self, text: told.append(text))
    DOWN.update({5.0})
    assert run(gpus=1).exit_code == 3
    film(folder / "new.mp4", [100])
    run(gpus=1, most_gpu_hours=1, retry_failed=True)
    # the part of four captions that failed, and one of the video that nobody had probed
    assert any("captions: 5 captions left" in each for each in told)


def test_a_plan_counts_no_captions_that_are_there_under_another_name(
    tmp_path: Path, run: RunStages, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    (folder / "twin.mp4").write_bytes((folder / "before.mp4").read_bytes())
    run(stages={"probe": {}})
    (tmp_path / "pipeline.yaml").write_text(
        yaml.safe_dump(
            {"videos": {"root": "videos"}, "store": "store", "stages": {"captions": CAPTIONS}}
        )
    )
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["plan", "--json", "--no-measure"])
    assert done.exit_code == 0, done.output
    assert sum(each["captions"] for each in json.loads(done.stdout)["costs"]) == 0


def test_a_run_that_is_to_stop_copies_nothing(tmp_path: Path, run: RunStages, folder: Path) -> None:
    run()
    (folder / "twin.mp4").write_bytes((folder / "before.mp4").read_bytes())
    run(stages={"probe": {}})
    stop = StopFlag()
    stop.request()
    assert run(stop=stop).exit_code == 75
    assert "twin" not in Store.open(tmp_path / "store").reader("captions")
