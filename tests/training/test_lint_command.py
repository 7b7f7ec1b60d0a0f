"""`trainer lint`, and the overlap with the training that evaluation refuses."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from small_store import Annotations, small_values
from trainer_calls import call

from data.annotations import Annotation, save_jsonl
from data.store import CatalogueEntry, Store
from data.store.place import text_of
from data.video.types import VideoFacts

WriteConfig = Callable[..., Path]

ROW = Annotation(
    qid=1, query="A red ball rolls.", video_id="v", duration_s=24.0, windows=((2.0, 6.0),)
)


def saved(path: Path, *rows: Annotation) -> Path:
    save_jsonl(rows, path)
    return path


def test_a_clean_file_ends_with_exit_code_0(tmp_path: Path) -> None:
    result = call("lint", saved(tmp_path / "val.jsonl", ROW))
    assert result.exit_code == 0, result.output
    assert "1 row on 1 video, read as custom with clips of 2 s: nothing found" in result.output
    assert "files: 1, errors: 0, warnings: 0" in result.output


def test_a_warning_alone_ends_with_exit_code_0(tmp_path: Path) -> None:
    result = call("lint", saved(tmp_path / "val.jsonl", ROW, replace(ROW, qid=2)))
    assert result.exit_code == 0
    assert "row-twice" in result.output
    assert "files: 1, errors: 0, warnings: 1" in result.output


def test_an_error_ends_with_exit_code_1_and_its_place(tmp_path: Path) -> None:
    bad = [replace(ROW, qid=n, query=str(n), windows=((6.0, 2.0),)) for n in range(2, 7)]
    file = saved(tmp_path / "val.jsonl", ROW, *bad)
    result = call("lint", file, "--show", 2)
    assert result.exit_code == 1
    for word in ("window-reversed", "line 2: [6, 2]", "line 3: [6, 2]", "and 3 more"):
        assert word in result.output
    assert "line 4" not in result.output


def test_the_json_has_every_place(tmp_path: Path) -> None:
    train = saved(tmp_path / "train.jsonl", ROW)
    file = saved(
        tmp_path / "val.jsonl", ROW, replace(ROW, qid="x", query="who?", windows=((3, 3),))
    )
    with file.open("a") as more:
        more.write('{"qid": 3, ')
    out = tmp_path / "out" / "lint.json"
    assert call("lint", file, "--against", train, "--json", out).exit_code == 1
    found = json.loads(out.read_text())
    assert (found["errors"], found["warnings"]) == (4, 0)
    assert [each["file"] for each in found["against"]] == [str(train)]
    [about] = found["files"]
    assert (about["file"], about["dataset"], about["rows"]) == (str(file), "custom", 3)
    by_check = {each["check"]: each for each in found["findings"]}
    assert set(by_check) == {"wrong-form", "window-empty", "leak-row", "leak-video"}
    assert by_check["leak-row"]["rows"] == [
        {
            "where": f"{file}, line 1",
            "qid": 1,
            "video_id": "v",
            "detail": f"seen in {train}, line 1",
        }
    ]
    assert by_check["leak-row"]["against"] == str(train)
    assert by_check["wrong-form"]["rows"][0]["where"] == f"{file}, line 3"
    assert by_check["wrong-form"]["rows"][0]["qid"] is None
    assert by_check["window-empty"]["count"] == 1


def test_the_json_may_go_to_standard_output_and_the_table_then_does_not(tmp_path: Path) -> None:
    result = call("lint", saved(tmp_path / "val.jsonl", ROW), "--json", "-")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["errors"] == 0
    assert "nothing found" in result.stderr
    assert not Path("-").exists()


def test_the_table_has_errors_first_and_names_each_file_once(tmp_path: Path) -> None:
    train = saved(tmp_path / "train.jsonl", ROW)
    file = saved(tmp_path / "val.jsonl", ROW, replace(ROW, qid=2))
    output = call("lint", file, "--against", train).output
    assert output.index("leak-row") < output.index("row-twice")
    for words in (
        "line 1: seen in line 1",
        "line 2: the same video, query and moments are in line 1",
    ):
        assert words in " ".join(re.sub("[│\n]", " ", output).split())


def test_files_that_are_given_together_are_compared(tmp_path: Path) -> None:
    files = [saved(tmp_path / f"{name}.jsonl", replace(ROW, qid=name)) for name in "ab"]
    result = call("lint", *files)
    assert result.exit_code == 1
    assert "leak-row" in result.output
    assert f"{files[0]}: 1 row on 1 video, read as custom with clips of 2 s: nothing" in (
        result.output
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.jsonl"], "'none.jsonl': it does not exist"),
        (["."], "'.': it is a folder, not a file"),
        (["loop.jsonl"], "Too many levels of symbolic links"),
        (["val.jsonl", "--against", "none.jsonl"], "'none.jsonl': it does not exist"),
        (["val.jsonl", "--dataset", "qvh"], "unknown dataset 'qvh'"),
        (["val.jsonl", "--against", "../here/val.jsonl"], "is named twice"),
        (["val.jsonl", "val.jsonl"], "'val.jsonl' is named twice"),
        (["val.jsonl", "link.jsonl"], "'link.jsonl' is named twice"),
        (["val.jsonl", "--clip-len", "0"], "--clip-len must be a number of seconds above 0"),
        (["val.jsonl", "--clip-len", "nan"], "--clip-len must be a number of seconds above 0"),
        (["val.jsonl", "--clip-len", "1e-300"], "at least 0.001, got 1e-300"),
        (["val.jsonl", "--json", "."], "--json: '.' is a folder"),
        (["memory://nowhere/val.jsonl"], "is no annotation file of a store"),
        (["empty.jsonl"], "empty.jsonl"),
        (["val.jsonl", "--show", "-1"], "--show"),
        ([], "annotations"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_answered_with_a_sentence_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    saved(Path("val.jsonl"), ROW)
    Path("empty.jsonl").write_text("")
    for name, target in {"loop": "loop", "link": "val"}.items():
        Path(f"{name}.jsonl").symlink_to(f"{target}.jsonl")
    result = call("lint", *arguments)
    assert (result.exit_code, message in result.stderr) == (2, True), result.output
    assert "Traceback" not in result.output


def test_words_of_a_file_cannot_steer_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b[2J\x1b]0;title\x07[red]\u202e"
    row = {"qid": evil, "query": "q", "vid": evil, "duration": 4, "relevant_windows": [[1, 2]]}
    good = {"qid": "a" + evil, "query": "q", "vid": "v", "duration": 4}
    other = good | {"relevant_windows": [[3, 1]], "qid": "b"}
    file = tmp_path / "x\x1b[31m.jsonl"
    file.write_text("\n".join(json.dumps(each) for each in (other, row, good)))
    result = call("lint", file, "--dataset", "custom")
    assert result.exit_code == 1
    assert "\\x1b[2J" in result.output
    assert not set(result.output) & {"\x1b", "\x07", "\u202e"}


def test_a_broken_first_line_hides_nothing_of_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "val.jsonl"
    file.write_text('{"qid": 1, "query": "a\n')
    saved(tmp_path / "rest.jsonl", ROW, replace(ROW, query="?"))
    with file.open("ab") as more:
        more.write((tmp_path / "rest.jsonl").read_bytes())
    result = call("lint", file)
    assert result.exit_code == 1
    assert "line 1: is not JSON that can be used" in result.output
    assert "line 3: the same qid is in" in result.output


def test_rows_that_cannot_be_compared_are_told(tmp_path: Path) -> None:
    train = saved(tmp_path / "train.jsonl", replace(ROW, video_id="other"))
    with train.open("a") as more:
        more.write('{"qid": 2')
    result = call("lint", saved(tmp_path / "val.jsonl", ROW), "--against", train)
    assert result.exit_code == 1
    assert f"{train}: 2 rows on 1 video" in result.output
    assert "wrong-form" in result.output


# --- stores


def test_a_split_of_a_store_is_read_as_the_store_has_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [f"{text_of(store.path)}/annotations/{name}.jsonl" for name in ("train", "val")]
    result = call("lint", *files)
    assert result.exit_code == 0, result.output
    assert "10 rows on 10 videos, read as qvhighlights with clips of 2 s" in result.output
    monkeypatch.chdir(Path(files[1]).parent)
    assert "read as qvhighlights" in call("lint", "val.jsonl").output


def test_no_store_is_wrong_use(tmp_path: Path) -> None:
    result = call("lint", saved(tmp_path / "val.jsonl", ROW), "--store", tmp_path)
    assert result.exit_code == 2
    assert str(tmp_path) in result.stderr


def test_durations_are_compared_with_the_measured_ones(store: Store, tmp_path: Path) -> None:
    shutil.copytree(store.path, tmp_path / "store")
    measured = Store.open(tmp_path / "store")
    file = tmp_path / "store" / "annotations" / "val.jsonl"
    bare = call("lint", file, "--store", tmp_path / "store")
    assert bare.exit_code == 2
    assert "did not measure any video" in bare.stderr
    facts = VideoFacts(
        duration_s=20.0,
        fps=25.0,
        frames=500,
        width=64,
        height=64,
        rotation=0,
        codec="h264",
        pix_fmt="yuv420p",
        size_bytes=1000,
        has_audio=False,
        damaged=0,
    )
    measured.update_catalogue([CatalogueEntry("val-3", "0" * 64, facts)])
    outside = tmp_path / "mine.jsonl"
    shutil.copy(file, outside)
    for arguments in ([file], [outside, "--store", tmp_path / "store"]):
        result = call("lint", *arguments)
        assert result.exit_code == 1, result.output
        assert "duration-measured" in result.output
        assert "line 4: 24 s here, 20 s in the store" in result.output
    assert call("lint", outside).exit_code == 0


# --- what a model was trained on


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Path:
    """A finished run of one epoch."""
    folder = tmp_path_factory.mktemp("trained")
    values = small_values(store)
    values["loop"]["epochs"] = 1
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    result = call("fit", "-c", folder / "config.yaml", "--out", folder / "run")
    assert result.exit_code == 0, result.output
    return folder / "run"


@pytest.fixture
def run(tmp_path: Path, trained: Path) -> Path:
    """A run that a test may change."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def elsewhere(tmp_path: Path, store: Store, splits: Annotations) -> Path:
    """A store of the same features whose splits are other ones: `val` and `test` are taken from
    the training of the first; there is no `train`."""
    shutil.copytree(store.path, tmp_path / "elsewhere")
    other = Store.open(tmp_path / "elsewhere")
    other.save_annotations("val", splits["train"][:3])
    other.save_annotations("test", splits["val"])
    (tmp_path / "elsewhere" / "annotations" / "train.jsonl").unlink()
    return tmp_path / "elsewhere"


def test_a_run_remembers_what_it_was_trained_on(run: Path, splits: Annotations) -> None:
    known = json.loads((run / "trained_on.json").read_text())
    assert (known["split"], known["dataset"], known["queries"]) == ("train", "qvhighlights", 24)
    assert known["videos"] == sorted(each.video_id for each in splits["train"])
    assert known["sources"] == known["videos"]
    assert len(known["rows_seen"]) == len(known["queries_seen"]) == 24


def test_a_run_is_refused_on_videos_of_its_training_in_any_store(
    run: Path, elsewhere: Path, tmp_path: Path
) -> None:
    there = ["--set", f"data.store={elsewhere}"]
    message = (
        "3 videos of split 'val' are in the training split too (first: train-0; 3 queries, 3 of "
        "them with the same words and moments)"
    )
    evaluate = ["evaluate", "--run", run, *there, "--split", "val"]
    predict = ["predict", "--run", run, *there, "--split", "val", "--out", tmp_path / "p.jsonl"]
    for command in (evaluate, predict):
        result = call(*command)
        assert result.exit_code == 2
        assert message in result.stderr
        allowed = call(*command, "--allow-overlap")
        assert allowed.exit_code == 0, allowed.output
        assert f"{message}; allowed by --allow-overlap" in allowed.output
    assert call("evaluate", "--run", run, *there, "--split", "test").exit_code == 0


def test_a_run_without_a_memory_takes_the_training_split_of_the_store_and_says_so(
    run: Path, elsewhere: Path
) -> None:
    (run / "trained_on.json").unlink()
    result = call("evaluate", "--run", run)
    assert result.exit_code == 0, result.output
    assert "did not write down what it was trained on; taking it for split 'train'" in result.output
    there = ["--set", f"data.store={elsewhere}", "--split", "test"]
    result = call("evaluate", "--run", run, *there)
    assert result.exit_code == 2
    assert "has no split 'train' to take for it" in result.stderr
    allowed = call("evaluate", "--run", run, *there, "--allow-overlap")
    assert allowed.exit_code == 0, allowed.output
    assert "whether videos are shared was not checked" in allowed.output


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"split": 1}'])
def test_a_damaged_memory_is_refused(run: Path, text: str) -> None:
    (run / "trained_on.json").write_text(text)
    result = call("evaluate", "--run", run)
    assert result.exit_code == 2
    assert "should say what the run was trained on and cannot be read" in result.stderr


def test_a_run_is_not_resumed_on_other_annotations(
    tmp_path: Path, store: Store, splits: Annotations, config_file: WriteConfig
) -> None:
    shutil.copytree(store.path, tmp_path / "store")
    mine, out = Store.open(tmp_path / "store"), tmp_path / "run"
    config = config_file(data__store=str(tmp_path / "store"), loop__epochs=1)
    assert call("fit", "-c", config, "--out", out).exit_code == 0
    before = (out / "trained_on.json").read_text()
    mine.save_annotations("train", splits["train"][:-1])
    more = ["fit", "--resume", "--out", out, "--set", "loop.epochs=2"]
    result = call(*more)
    assert result.exit_code == 2
    assert "split 'train' had 24 queries, 'train' has 23, and they are not" in result.stderr
    assert (out / "trained_on.json").read_text() == before
    mine.save_annotations("train", splits["train"])
    (out / "trained_on.json").unlink()
    (tmp_path / "store" / "videos.jsonl").write_text("{")
    result = call(*more)
    assert result.exit_code == 0
    told = " ".join(result.output.split())
    assert "did not write down what it was trained on until now" in told
    assert "durations were not compared with those of the videos" in told
    assert (out / "trained_on.json").read_text() == before


def test_other_cuts_of_a_recording_are_refused(
    tmp_path: Path, store: Store, splits: Annotations, config_file: WriteConfig
) -> None:
    predictions, truth = tmp_path / "p.jsonl", tmp_path / "val.jsonl"
    row = replace(ROW, video_id="yt_0.0_24.0")
    saved(truth, row)
    saved(tmp_path / "train.jsonl", replace(row, qid=2, video_id="yt_24.0_48.0"))
    predictions.write_text(json.dumps({"qid": 1, "pred_relevant_windows": [[2, 6, 1.0]]}))
    command = ["evaluate", "--predictions", predictions, "--annotations", truth]
    command += ["--dataset", "qvhighlights"]
    assert call(*command).exit_code == 0
    known = [*command, "--trained-on", tmp_path / "train.jsonl"]
    result = call(*known)
    assert result.exit_code == 2
    message = (
        "1 videos of the annotations are other cuts of recordings of the training split (first: "
        "yt_0.0_24.0; 1 queries)"
    )
    assert message in result.stderr
    scores = tmp_path / "scores.json"
    allowed = call(*known, "--allow-overlap", "--json", scores)
    assert allowed.exit_code == 0
    assert message in allowed.output
    assert message in json.loads(scores.read_text())["overlap"]


def test_a_file_of_a_training_must_be_read_whole(tmp_path: Path) -> None:
    predictions, train = tmp_path / "p.jsonl", tmp_path / "train.jsonl"
    predictions.write_text(json.dumps({"qid": 1, "pred_relevant_windows": [[2, 6, 1.0]]}))
    saved(train, replace(ROW, video_id="other"))
    with train.open("a") as more:
        more.write("{")
    truth = saved(tmp_path / "val.jsonl", replace(ROW, windows=((2.5, 60.5),)))
    command = ["evaluate", "--predictions", predictions, "--annotations", truth]
    command += ["--dataset", "custom"]
    result = call(*command, "--trained-on", train)
    assert result.exit_code == 2
    assert f"--trained-on: {train}, line 2: is not JSON" in result.stderr
    # faults of the ground truth are told, too
    told = " ".join(call(*command).output.split())
    assert "has faults: 1 × moments that end over a clip after their video" in told
    assert f"trainer lint {truth} --dataset custom" in told


def test_a_file_of_a_training_that_may_be_of_several_datasets_is_read_as_the_scored_one(
    tmp_path: Path,
) -> None:
    # captions of a video called "v_…" may be of three datasets
    captions = {"duration": 24.0, "timestamps": [[2.0, 6.0]], "sentences": ["A red ball rolls."]}
    truth, train, predictions = (tmp_path / name for name in ("val.json", "train.json", "p.jsonl"))
    truth.write_text(json.dumps({"v_a": captions}))
    train.write_text(json.dumps({"v_a": captions, "v_b": captions}))
    predictions.write_text(json.dumps({"qid": "v_a_0", "pred_relevant_windows": [[2, 6, 1.0]]}))
    command = ["evaluate", "--predictions", predictions, "--annotations", truth]
    result = call(*command, "--dataset", "activitynet_cg", "--trained-on", train)
    assert result.exit_code == 2
    assert "1 videos of the annotations are in the training split too (first: v_a" in result.stderr


def test_faults_of_the_annotations_are_told_and_work_goes_on(
    tmp_path: Path, store: Store, splits: Annotations, config_file: WriteConfig
) -> None:
    shutil.copytree(store.path, tmp_path / "store")
    mine = Store.open(tmp_path / "store")
    first, *rest = splits["val"]
    late = replace(first, windows=((4.0, 40.0),), clip_ids=None, saliency=None)
    rest = [replace(row, clip_ids=None, saliency=None) for row in rest]
    mine.save_annotations("val", [late, *rest])
    config = config_file(data__store=str(tmp_path / "store"), loop__epochs=1)
    result = call("fit", "-c", config, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    told = " ".join(result.output.split())
    assert "split 'val' has faults: 1 × moments that end over a clip after their video" in told
    file = tmp_path / "store" / "annotations" / "val.jsonl"
    assert f"All of them: trainer lint {file}" in told
    assert "split 'train' has faults" not in told
    assert call("lint", file).exit_code == 1
