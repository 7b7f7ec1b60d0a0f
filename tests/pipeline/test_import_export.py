"""`pipeline import` and `pipeline export` as a user calls them, and what the other commands say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
import yaml
from typer.testing import CliRunner, Result

from data.store import Store
from pipeline.cli import app

WIDTH, CLIPS = 8, 6


def call(*words: Any) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def answer(*words: Any, code: int = 0) -> Any:
    done = call(*words, "--json")
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def features(seed: int, clips: int = CLIPS) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((clips, WIDTH)).astype(np.float16)


def corpus(folder: Path, videos: int = 12) -> None:
    """As the feature packs of Moment-DETR: two streams, texts, annotations of two splits."""
    for name in ("slowfast_features", "clip_features", "clip_text_features"):
        (folder / name).mkdir(parents=True)
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    for number in range(videos):
        vid = f"v{number}_0.0_12.0"
        np.savez(folder / "slowfast_features" / f"{vid}.npz", features=features(number, CLIPS + 1))
        np.savez(folder / "clip_features" / f"{vid}.npz", features=features(100 + number))
        tokens = np.random.default_rng(200 + number).standard_normal((4, WIDTH))
        np.savez(
            folder / "clip_text_features" / f"qid{number}.npz",
            last_hidden_state=tokens.astype(np.float32),
            pooler_output=tokens[0].astype(np.float32),
        )
        row = {"qid": number, "query": f"query {number}", "vid": vid, "duration": 2 * CLIPS}
        row |= {"relevant_windows": [[2, 6]], "relevant_clip_ids": [1, 2]}
        row |= {"saliency_scores": [[4, 3, 2], [2, 1, 0]]}
        splits["train" if number < videos - 4 else "val"].append(row)
    for split, rows in splits.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"highlight_{split}_release.jsonl").write_text(text)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a corpus of features."""
    monkeypatch.chdir(tmp_path)
    corpus(tmp_path)
    return tmp_path


SPLITS = [
    *("--annotations", "train=highlight_train_release.jsonl"),
    *("--annotations", "val=highlight_val_release.jsonl"),
]


def import_all() -> None:
    first = ["--store", "store", "--dataset", "qvhighlights", *SPLITS]
    slowfast = answer("import", "--from", "slowfast_features", "--stage", "slowfast", *first)
    assert slowfast["counts"] == [{"outcome": "stored", "what": "cut", "inputs": 12}]
    answer("import", "--from", "clip_features", "--stream", "clip", "--store", "store")
    answer("import", "--from", "clip_text_features", "--store", "store")


def test_a_trainer_learns_from_an_imported_store_alone(folder: Path) -> None:
    from training.cli import app as trainer

    import_all()
    config = {
        "data": {"store": "store", "streams": ["slowfast", "clip"]},
        "model": {
            "name": "qd_detr",
            "options": {"hidden": 16, "feedforward": 16, "heads": 2, "queries": 3},
        },
        "optim": {"lr": 0.001},
        "loop": {"epochs": 1, "batch_size": 4, "device": "cpu"},
        "eval": {"split": "val", "every": 1},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    words = ["fit", "--config", "config.yaml", "--out", "run"]
    done = CliRunner().invoke(trainer, words)
    assert done.exit_code == 0, done.output
    assert (folder / "run" / "metrics.json").is_file()


def test_the_clip_length_of_the_dataset_is_that_of_a_new_store(folder: Path) -> None:
    import_all()
    store = Store.open(folder / "store")
    assert (store.dataset, store.clip_len_s) == ("qvhighlights", 2.0)
    assert store.splits() == ["train", "val"]


def test_what_was_imported_and_repaired_is_told(folder: Path) -> None:
    np.savez("slowfast_features/v0_0.0_12.0.npz", features=features(0, 20))
    words = ["import", "--from", "slowfast_features", "-s", "slowfast", "--store", "store"]
    done = call(*words, "--dataset", "qvhighlights", *SPLITS)
    assert done.exit_code == 3, done.output
    assert "a folder of 12 npz files with 'features' (Moment-DETR" in done.output
    # The same sentence is said once for all videos, after the refusals.
    cut = ": 12 s (annotations) are 6 clips; the file has 7 rows: the last 1 cut"
    assert f"v10_0.0_12.0, v11_0.0_12.0 and 9 more{cut}" in done.output
    refused = "v0_0.0_12.0: length: has 20 rows for 6 clips: 14 more"
    assert done.output.index(refused) < done.output.index(cut)
    assert "pipeline failures --stage slowfast --store store" in done.output
    listed = call("failures", "--store", "store")
    assert "v0_0.0_12.0" in listed.output


def test_a_dry_run_changes_nothing(folder: Path) -> None:
    words = ["import", "--from", "clip_features", "-s", "clip", "--store", "store"]
    made = answer(*words, "--dataset", "qvhighlights", *SPLITS, "--dry-run")
    assert made["counts"] == [{"outcome": "planned", "what": "kept", "inputs": 12}]
    assert not (folder / "store").exists()


def test_the_maintenance_commands_know_an_imported_store(folder: Path) -> None:
    import_all()
    stages = {each["stage"]: each for each in answer("status", "--store", "store")["stages"]}
    assert stages["clip"]["done"] == 12
    assert stages["clip"]["remarks"] == ["imported"]
    assert answer("verify", "--store", "store")["problems"] == []
    for command in (["repair"], ["compact"], ["gc", "--older-than", "0s"]):
        assert call(*command, "--store", "store").exit_code == 0
    (shard,) = (folder / "store" / "clip").rglob("shard-*.h5")
    raw = bytearray(shard.read_bytes())
    raw[-5] ^= 1
    shard.write_bytes(raw)
    assert call("verify", "--store", "store").exit_code == 4
    assert call("repair", "--store", "store").exit_code in (0, 4)
    again = answer("import", "--from", "clip_features", "-s", "clip", "--store", "store")
    assert again["counts"][-1] == {"outcome": "stored", "what": "kept", "inputs": 1}
    assert answer("verify", "--store", "store")["problems"][0]["level"] == "note"


def test_two_imported_stores_can_be_compared(folder: Path) -> None:
    import_all()
    words = ["import", "--from", "clip_features", "-s", "clip", "--store", "other"]
    answer(*words, "--dataset", "qvhighlights", *SPLITS)
    compared = call("diff", "store", "other", "--stage", "clip")
    assert compared.exit_code == 0, compared.output


def test_export_and_import_go_round(folder: Path) -> None:
    import_all()
    made = answer("export", "--store", "store", "--out", "out")
    assert made["files"]["queries"] == 12
    words = ["import", "--from", "out/clip_features", "-s", "clip", "--store", "again"]
    answer(*words, "--dataset", "qvhighlights", "--annotations", "train=out/train.jsonl")
    one, other = (Store.open(folder / name).reader("clip") for name in ("store", "again"))
    for id in one.ids():
        np.testing.assert_array_equal(other.array(id, "clip"), one.array(id, "clip"))


def test_an_export_of_a_split_that_lacks_rows_ends_with_3(folder: Path) -> None:
    import_all()
    store = Store.open(folder / "store")
    import dataclasses

    row = dataclasses.replace(store.annotations("val")[0], video_id="unseen")
    store.save_annotations("test", [row])
    done = call("export", "--store", "store", "--out", "out", "--split", "test")
    assert done.exit_code == 3
    assert "clip: 1 are in the annotations and have no row, for example unseen" in done.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--from", "clip_features"], "give the stream a name with --stage"),
        (["--from", "nowhere", "-s", "clip"], "there is nothing at nowhere"),
        (["--from", "clip_text_features", "-s", "clip"], "become the stage 'queries', not 'clip'"),
        (["--from", "clip_features", "-s", "clip", "--annotations", "x"], "is not SPLIT=FILE"),
        (["--from", "clip_features", "-s", "probe"], "which is no stream"),
    ],
)
def test_wrong_usage_ends_with_2_and_starts_nothing(
    folder: Path, words: list[str], told: str
) -> None:
    done = call("import", *words, "--store", "store", "--dataset", "qvhighlights")
    assert (done.exit_code, (folder / "store").exists()) == (2, False), done.output
    assert told in done.output


def test_a_new_store_needs_a_clip_length(folder: Path) -> None:
    done = call("import", "--from", "clip_features", "-s", "clip", "--store", "store")
    assert done.exit_code == 2
    assert "give --clip-len SECONDS" in done.output


def test_files_of_another_clip_length_leave_no_store_behind(folder: Path) -> None:
    words = ["import", "--from", "clip_features", "-s", "clip", "--store", "store", *SPLITS]
    done = call(*words, "--dataset", "qvhighlights", "--rows-per-clip", "3", "--most", "0")
    assert done.exit_code == 2
    assert "one every 2 s; --rows-per-clip 1" in done.output
    assert not (folder / "store").exists()


# --- together with stages of the pipeline


@pytest.fixture
def with_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_stages: None) -> Path:
    """The current folder, with three videos, a config, and features of them."""
    monkeypatch.chdir(tmp_path)
    toys.write_videos(tmp_path / "videos", ["a", "b", "c"])
    config = {"videos": {"root": "videos"}, "store": "store", "stages": {"rows": {}}}
    (tmp_path / "pipeline.yaml").write_text(
        yaml.safe_dump(config | {"engine": {"executor": "inline"}})
    )
    (tmp_path / "f").mkdir()
    for number, id in enumerate("abc"):
        np.save(tmp_path / "f" / f"{id}.npy", features(number, 4))
    return tmp_path


def test_a_config_says_store_dataset_and_clip_length(with_videos: Path) -> None:
    answer("import", "--from", "f", "-s", "i3d")
    assert Store.open(with_videos / "store").reader("i3d").ids() == ["a", "b", "c"]


def test_imported_rows_stay_current_until_a_run_has_made_all_others(with_videos: Path) -> None:
    imported = answer("import", "--from", "f", "-s", "rows")["recipe"]
    (line,) = (each for each in answer("plan")["stages"] if each["stage"] == "rows")
    assert line["present"] == 0
    assert line["change"] == f"imported rows ({imported}) are read until these are complete"
    store = Store.open(with_videos / "store")
    assert call("run", "--limit", "2").exit_code == 0
    assert store.current["rows"] == imported
    done = call("run")
    assert done.exit_code == 0, done.output
    assert f"readers of 'rows' were sent to imported rows ({imported}); now to" in done.output
    assert store.current["rows"] == line["recipe"]
    assert len(store.reader("rows", imported)) == len(store.reader("rows")) == 3


def test_after_a_run_an_import_must_be_asked_to_replace(with_videos: Path) -> None:
    assert call("run").exit_code == 0
    before = Store.open(with_videos / "store").current["rows"]
    done = call("import", "--from", "f", "-s", "rows")
    assert done.exit_code == 2
    assert f"rows that `pipeline run` made (recipe {before})" in done.output
    made = answer("import", "--from", "f", "-s", "rows", "--replace")
    assert Store.open(with_videos / "store").current["rows"] == made["recipe"]


def test_imported_rows_belong_to_the_videos_that_were_probed(with_videos: Path) -> None:
    assert call("run").exit_code == 0
    answer("import", "--from", "f", "-s", "i3d")
    store = Store.open(with_videos / "store")
    for id in "abc":
        assert store.reader("i3d").key(id).content == store.reader("rows").key(id).content
        assert store.reader("i3d").facts(id)["expected"] == "probe"
