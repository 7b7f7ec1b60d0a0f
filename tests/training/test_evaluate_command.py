"""`trainer evaluate` and `trainer compare` on files, as a user meets them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trainer_calls import call
from typer.testing import Result

from data.store import Store

Rows = list[dict[str, Any]]
VAL = ("annotations", "qvhighlights", "highlight_val_release.jsonl")


def write(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def truth(count: int = 12, first: int = 0) -> Rows:
    """Two queries per video, each with a moment of 20 s at 10 s."""
    return [
        {
            "qid": qid,
            "query": f"something {qid}",
            "vid": f"v{qid // 2}",
            "duration": 150,
            "relevant_windows": [[10, 30]],
        }
        for qid in range(first, first + count)
    ]


def answers(rows: Rows, shift_s: float = 0.0) -> Rows:
    """Every third query gets a wrong window, the others one that is shifted."""
    return [
        {
            "qid": row["qid"],
            "query": row["query"],
            "vid": row["vid"],
            "pred_relevant_windows": [
                [100, 120, 0.5] if row["qid"] % 3 == 0 else [10 + shift_s, 30 + shift_s, 0.5]
            ],
        }
        for row in rows
    ]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    rows = truth()
    return {
        "truth": write(tmp_path / "val.jsonl", rows),
        "good": write(tmp_path / "good.jsonl", answers(rows)),
        "poor": write(tmp_path / "poor.jsonl", answers(rows, 9)),
        "json": tmp_path / "out.json",
        "rows": tmp_path / "rows.jsonl",
    }


def evaluate(files: dict[str, Path], predictions: Path, *more: Any) -> Result:
    return call(
        *("evaluate", "--dataset", "qvhighlights", "--annotations", files["truth"]),
        *("--predictions", predictions, *more),
    )


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("name", ["qd_detr_val", "moment_detr_val"])
def test_published_predictions_have_the_published_scores_key_for_key(
    shared: Path, tmp_path: Path, name: str
) -> None:
    folder, out = shared / "predictions" / name, tmp_path / "out.json"
    result = call(
        *("evaluate", "--dataset", "qvhighlights", "--annotations", shared.joinpath(*VAL)),
        *("--predictions", folder / "predictions.jsonl", "--json", out),
    )
    assert result.exit_code == 0, result.output
    found, expected = read(out), read(folder / "expected.json")
    for group, values in expected.items():
        for key, value in values.items():
            if isinstance(value, dict):
                assert {each: found[group][key][each] for each in value} == value
            else:
                assert found[group][key] == value
    assert found["mode"] == "official"


def test_a_score_says_how_it_came_about(files: dict[str, Path]) -> None:
    result = evaluate(files, files["good"], "--json", files["json"])
    assert result.exit_code == 0, result.output
    found = read(files["json"])
    digests = {
        name: hashlib.sha256(files[name].read_bytes()).hexdigest() for name in ("truth", "good")
    }
    assert found["annotations"] == {"file": "val.jsonl", "sha256": digests["truth"]}
    assert found["predictions"] == {"file": "good.jsonl", "sha256": digests["good"]}
    assert (found["dataset"], found["metrics"]) == ("qvhighlights", "mr_hd")
    assert (found["mode"], found["queries"]) == ("official", 12)
    assert found["brief"]["MR-full-R1@0.5"] == 66.67
    assert "ci" not in found
    assert "12 queries, mr_hd, official metrics" in result.output


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_scores_may_go_to_standard_output_alone(files: dict[str, Path], command: str) -> None:
    given = {
        "evaluate": ["--predictions", files["good"]],
        "compare": [files["poor"], files["good"], "--ci-samples", 99],
    }
    common = ("--dataset", "qvhighlights", "--annotations", files["truth"], "--json", "-")
    result = call(command, *given[command], *common)
    assert result.exit_code == 0, result.output
    assert "MR-full-mAP" in json.loads(result.stdout)["brief"]
    assert "MR-full-mAP" in result.stderr
    assert "are in -" not in result.stderr


def test_another_evaluator_and_the_strict_mode_are_chosen_and_named(
    files: dict[str, Path],
) -> None:
    evaluate(
        files,
        files["good"],
        *("--metrics", "mr_hd_univtg", "--mode", "strict", "--json", files["json"]),
    )
    found = read(files["json"])
    assert (found["metrics"], found["mode"]) == ("mr_hd_univtg", "strict")
    assert "MR-full-mAP-key" in found["brief"]


def test_the_names_of_univtg_and_of_moment_detr_stand_beside_each_other(
    files: dict[str, Path],
) -> None:
    # showlab/UniVTG, eval/eval.py: the keys of `brief` without highlights
    full = ("mAP", "mAP@0.5", "mAP@0.75", "mIoU", "R1@0.3", "R1@0.5", "R1@0.7", "R5@0.3")
    names = [f"MR-full-{name}-key" for name in (*full, "R5@0.5", "R5@0.7")]
    names += [f"MR-{name}-{kind}" for name in ("short", "middle") for kind in ("mAP", "mIoU")]
    result = evaluate(files, files["good"], "--json", files["json"])
    assert "-key" not in result.output
    brief = read(files["json"])["brief"]
    assert {name: brief[name] for name in names} == {
        name: brief[name.removesuffix("-key")] for name in names
    }
    evaluate(files, files["good"], "--metrics", "mr_hd_univtg", "--json", files["json"])
    theirs = read(files["json"])["brief"]
    assert {name: theirs[name] for name in names if "short" not in name} == {
        name: brief[name] for name in names if "short" not in name
    }


def with_saliency(rows: Rows) -> Rows:
    return [{**row, "pred_saliency_scores": [0.1] * 75} for row in rows]


def rated(rows: Rows) -> Rows:
    return [{**row, "relevant_clip_ids": [5], "saliency_scores": [[4, 4, 4]]} for row in rows]


def without(rows: Rows, name: str) -> Rows:
    return [{key: value for key, value in row.items() if key != name} for row in rows]


@pytest.mark.parametrize("mode", ["official", "strict"])
@pytest.mark.parametrize(
    ("missing", "kept", "told"),
    [
        (
            "pred_relevant_windows",
            {"HL-min-Fair", "HL-min-Good", "HL-min-VeryGood"},
            "moments are not scored: the predictions have no moments",
        ),
        (
            "pred_saliency_scores",
            {"full", "long", "middle", "short"},
            "highlights are not scored: the predictions have no saliency scores",
        ),
    ],
)
def test_what_a_file_has_is_scored_and_what_it_has_not_is_said(
    files: dict[str, Path], missing: str, kept: set[str], told: str, mode: str
) -> None:
    write(files["truth"], rated(truth()))
    whole = with_saliency(answers(truth()))
    parts = {"HL-min-Fair", "HL-min-Good", "HL-min-VeryGood", "full", "long", "middle", "short"}
    evaluate(files, write(files["good"], whole), "--mode", mode, "--json", files["json"])
    both = read(files["json"])
    assert both.keys() & parts == parts
    assert "notes" not in both
    write(files["good"], without(whole, missing))
    result = evaluate(files, files["good"], "--mode", mode, "--json", files["json"])
    assert result.exit_code == 0, result.output
    assert told in result.output
    found = read(files["json"])
    assert found["notes"] == [told]
    assert found.keys() & parts == kept
    assert {name: found[name] for name in kept} == {name: both[name] for name in kept}


def test_a_comparison_without_a_number_in_common_is_refused(files: dict[str, Path]) -> None:
    write(files["truth"], rated(truth()))
    whole = with_saliency(answers(truth()))
    write(files["good"], without(whole, "pred_saliency_scores"))
    write(files["poor"], without(whole, "pred_relevant_windows"))
    result = call(
        *("compare", files["poor"], files["good"], "--dataset", "qvhighlights"),
        *("--annotations", files["truth"], "--json", files["json"]),
    )
    assert result.exit_code == 2, result.output
    assert "no number in common: A has HL-min-Fair-mAP" in result.stderr
    assert not files["json"].exists()


def test_windows_that_are_not_listed_best_first_are_told(files: dict[str, Path]) -> None:
    rows = answers(truth())
    rows[4]["pred_relevant_windows"] = [[50, 60, 0.1], [10, 30, 0.9]]
    result = evaluate(files, write(files["good"], rows), "--json", files["json"])
    told = "1 of 12 queries do not list their best window first (qid 4); official R1, R5 and mIoU"
    assert told in result.output
    assert read(files["json"])["notes"][0].startswith(told)
    result = call(
        *("compare", files["poor"], files["good"], "--dataset", "qvhighlights"),
        *("--annotations", files["truth"]),
    )
    assert f"B: {told}" in result.output
    # strict looks at the scores
    result = evaluate(files, files["good"], "--mode", "strict")
    assert "best window first" not in result.output


def test_compare_takes_the_format_that_is_named(files: dict[str, Path]) -> None:
    bare = answers(truth())
    for row in bare:
        row["pred_relevant_windows"] = [window[:2] for window in row["pred_relevant_windows"]]
    write(files["good"], bare)
    options = ["--dataset", "qvhighlights", "--annotations", files["truth"]]
    refused = call("compare", files["good"], files["good"], *options)
    assert refused.exit_code == 2
    assert "name the format `unscored`" in refused.stderr
    options += ["--format", "unscored", "--json", files["json"]]
    result = call("compare", files["good"], files["good"], *options)
    assert result.exit_code == 0, result.output
    each = read(files["json"])["brief"]["MR-full-R1@0.5"]
    assert (each["a"], each["b"], each["p"]) == (66.67, 66.67, 1)


def test_files_are_scored_and_compared_without_torch() -> None:
    # torch takes seconds to import, the scores of a file a fifth of one
    code = "import sys, training.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_intervals_are_shown_and_written_beside_the_scores(files: dict[str, Path]) -> None:
    result = evaluate(
        files,
        files["good"],
        "--ci",
        "--ci-samples",
        200,
        "--ci-level",
        0.9,
        "--json",
        files["json"],
    )
    assert "90 % interval over 6 videos" in result.output
    found = read(files["json"])
    assert (found["ci"]["samples"], found["ci"]["level"]) == (200, 0.9)
    low, high = found["ci"]["brief"]["MR-full-R1@0.5"]
    assert low < 66.67 < high
    assert found["ci"]["full"]["MR-R1"]["0.5"] == [low, high]
    assert found["ci"]["brief"]["MR-long-mAP"] is None
    assert set(found["ci"]["brief"]) == set(found["brief"])  # the names of UniVTG, too


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_results_are_written_even_if_nobody_reads_on_to_the_table(
    files: dict[str, Path], command: str
) -> None:
    whose = ["--dataset", "qvhighlights", "--annotations", files["truth"], "--json", files["json"]]
    which = {
        "evaluate": ["--predictions", files["good"]],
        "compare": [files["poor"], files["good"]],
    }
    main = [sys.executable, "-c", "from training.cli import main; main()"]
    arguments = map(str, [*main, command, *which[command], *whose, "--per-query", files["rows"]])
    running = subprocess.Popen(list(arguments), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert running.stdout is not None
    running.stdout.readline()
    running.stdout.close()
    running.wait()
    assert read(files["json"])["queries"] == len(files["rows"].read_text().splitlines()) == 12


def test_a_split_of_a_store_is_scored_on_the_clips_of_the_store(
    files: dict[str, Path], tmp_path: Path
) -> None:
    Store.create(tmp_path / "store", dataset="mine", clip_len_s=1.0)
    split = tmp_path / "store" / "annotations" / "val.jsonl"
    split.parent.mkdir()
    labels = {"relevant_clip_ids": list(range(10, 30)), "saliency_scores": [[4, 4, 4]] * 20}
    write(split, [row | labels for row in truth()])
    best = [1.0 if 10 <= clip < 30 else 0.0 for clip in range(150)]
    rated = write(files["good"], [row | {"pred_saliency_scores": best} for row in answers(truth())])
    result = call(
        *("evaluate", "--dataset", "custom", "--annotations", split),
        *("--predictions", rated, "--json", files["json"]),
    )
    assert result.exit_code == 0, result.output
    assert "has faults" not in result.output
    # with clips of 2 s the moments would be clips 5 to 14
    assert read(files["json"])["HL-min-VeryGood"] == {"HL-mAP": 100.0, "HL-Hit1": 100.0}


def test_one_row_per_query_adds_up_to_the_score(files: dict[str, Path]) -> None:
    evaluate(files, files["poor"], "--per-query", files["rows"], "--json", files["json"])
    rows = [json.loads(line) for line in files["rows"].read_text().splitlines()]
    assert [row["qid"] for row in rows] == list(range(12))
    assert {row["vid"] for row in rows} == {f"v{video}" for video in range(6)}
    brief = read(files["json"])["brief"]
    # the JSON repeats some numbers by UniVTG's names
    assert {name.removesuffix("-key") for name in brief} == rows[0].keys() - {"qid", "vid", "query"}
    for name in rows[0].keys() & brief.keys():
        value = brief[name]
        shares = [row[name] for row in rows if row[name] is not None]
        assert (value is None) == (not shares)
        assert value is None or sum(shares) / len(shares) == pytest.approx(value / 100, abs=1e-4)


def test_two_files_are_compared_query_by_query(files: dict[str, Path]) -> None:
    result = call(
        *("compare", files["poor"], files["good"], "--dataset", "qvhighlights"),
        *("--annotations", files["truth"], "--json", files["json"], "--per-query", files["rows"]),
    )
    assert result.exit_code == 0, result.output
    assert "all exchanges of A and B on some of the 6 videos" in " ".join(result.output.split())
    found = read(files["json"])
    each = found["brief"]["MR-full-R1@0.5"]
    # the poor windows overlap 11 of 29 s: IoU 0.38; 8 of 12 queries become right
    assert (each["a"], each["b"], each["difference"]) == (0, 66.67, 66.67)
    assert (each["better"], each["worse"], each["equal"]) == (8, 0, 4)
    # every video has at least one query that changed, so two of 64 flips are as far from 0
    assert each["p"] == 2 / 64
    # 14 numbers have a query behind them (no moment is long or short); twelve changed alike
    assert each["p_holm"] == 14 * 2 / 64
    assert found["brief"]["MR-full-R1@0.3"]["p_holm"] == 1
    assert found["brief"]["MR-long-mAP"]["p"] is None
    assert (found["units"], found["exact"], found["queries"]) == (6, True, 12)
    assert found["a"]["file"] == "poor.jsonl"
    rows = [json.loads(line) for line in files["rows"].read_text().splitlines()]
    assert rows[1]["MR-full-R1@0.5"] == {"a": 0, "b": 1, "difference": 1}


def spoiled(rows: Rows, fault: str) -> Rows:
    """Predictions with one fault."""
    if fault == "missing":
        return rows[1:]
    if fault == "unknown":
        return [*rows, {**rows[0], "qid": 99}]
    if fault == "twice":
        return [*rows, rows[0]]
    if fault == "another split":
        return [{**row, "qid": row["qid"] + 1000} for row in rows]
    if fault == "nan":
        return [{**rows[0], "pred_relevant_windows": [[0, float("nan"), 1]]}, *rows[1:]]
    return [{**rows[0], "pred_relevant_windows": []}, *rows[1:]]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("missing", "1 are missing from the predictions (qid 0)"),
        ("unknown", "1 are in the predictions but not in the annotations (qid 99)"),
        ("twice", "qid 0 came before, in line 1; every query is answered once"),
        (
            "another split",
            "None of the 12 query ids match: are these predictions of another split?",
        ),
        ("nan", "NaN"),
        ("no window", "1 queries have no predicted window (first: 0)"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_predictions_that_are_not_of_these_queries_are_an_error_and_never_a_score(
    files: dict[str, Path], command: str, fault: str, told: str
) -> None:
    write(files["good"], spoiled(answers(truth()), fault))
    if command == "evaluate":
        result = evaluate(files, files["good"], "--json", files["json"])
    else:
        result = call(
            *("compare", files["poor"], files["good"], "--dataset", "qvhighlights"),
            *("--annotations", files["truth"], "--json", files["json"]),
        )
    assert result.exit_code == 2, result.output
    assert told in result.stderr
    assert "Traceback" not in result.output
    assert not files["json"].exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--metrics", "mrhd"], "unknown metric 'mrhd'; did you mean 'mr_hd'?"),
        (["--ci", "--ci-level", "95"], "above 0 and below 1, got 95.0"),
        (["--ci", "--ci-samples", "3"], "3 samples are too few"),
        (["--split", "val"], "--split goes with --run or --config, not with --predictions"),
        (["--json", "."], "--json: '.' is a folder; name a file to write"),
        (["--per-query", "."], "--per-query: '.' is a folder; name a file to write"),
    ],
)
def test_options_that_make_no_sense_are_told(
    files: dict[str, Path], options: list[str], told: str
) -> None:
    result = evaluate(files, files["good"], *options)
    assert (result.exit_code, told in result.stderr) == (2, True), result.stderr


def test_a_comparison_needs_to_know_the_ground_truth(files: dict[str, Path]) -> None:
    result = call("compare", files["poor"], files["good"])
    assert result.exit_code == 2
    assert "compare needs --annotations FILE and --dataset NAME" in result.stderr
