"""Parameters chosen on one split, reported on another, by function and by command."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from data.errors import UsageError
from data.grid import Grid
from data.store import Store
from data.store.types import ItemKey, Recipe, Row, Schema, StreamSpec
from pipeline.cli import app
from pipeline.config import load_pipeline_config
from pipeline.events.compare import HUMAN, SECONDS, Tolerance, compare
from pipeline.events.evaluate import Truth
from pipeline.events.parser import parse
from pipeline.events.stored import Clips, StoredClips
from pipeline.events.tune import CHOSEN, KERNEL_CPD, Candidate, Space, score_all, split_truth, tune
from pipeline.events_commands import figures_table
from pipeline.stages.events import EventsOptions

STRICT = Tolerance(0.05, True)
WIDTH, CLIP_LEN_S = 12, 2.0


def film(seed: int) -> tuple[np.ndarray, list[float]]:
    """Noisy features of a few scenes, and their cuts in seconds."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(8, 16, rng.integers(3, 6))
    scenes = [np.tile(rng.standard_normal(WIDTH), (n, 1)) for n in lengths]
    rows = np.concatenate(scenes) + 0.8 * rng.standard_normal((lengths.sum(), WIDTH))
    return rows.astype(np.float32), (np.cumsum(lengths)[:-1] * CLIP_LEN_S).tolist()


FILMS = {f"v{seed:02d}": film(seed) for seed in range(16)}
TRUTH = {
    video: Truth(len(rows) * CLIP_LEN_S, (tuple(cuts),)) for video, (rows, cuts) in FILMS.items()
}


def clips_of(video: str) -> Clips:
    rows = FILMS[video][0].astype(np.float64)
    return Clips(rows, CLIP_LEN_S, len(rows) * CLIP_LEN_S)


def test_the_best_of_the_grid_is_chosen_and_of_equals_the_first() -> None:
    learn, held = split_truth(TRUTH, None)
    space = Space.of(methods=["rtp"], half_widths_s=[2.0, 8.0], deltas=[0.0, 0.4], min_lens_s=[8.0])
    done = tune(learn, held, clips_of, space, STRICT, before={}, cpd=False)
    candidates = space.candidates()
    scores = [score.f1 for score in score_all(candidates, learn, clips_of, STRICT, sorted(learn))]
    assert done.tried == len(candidates) == 8  # none of the scales; each with and without settle
    assert done.params == candidates[int(np.argmax(scores))].params
    assert done.learn[CHOSEN] == max(scores) > min(scores)
    assert list(done.rows)[:3] == [CHOSEN, "events, defaults", "uniform grid"]
    assert done.rows[CHOSEN].strictest.f1 > done.rows["uniform grid"].strictest.f1


def test_figures_are_of_videos_that_nothing_was_chosen_on() -> None:
    learn, held = split_truth(TRUTH, None)
    done = tune(learn, held, clips_of, Space.of(methods=["oneshot"]), STRICT, cpd=False)
    found = Candidate.parsing(done.params)
    again = score_all([found], held, clips_of, STRICT, held)[0]
    assert done.rows[CHOSEN].strictest == again
    assert (done.learned, done.held) == (len(learn), len(held))


def test_the_penalty_of_kernel_cpd_is_chosen_on_the_same_videos() -> None:
    pytest.importorskip("ruptures", reason="the extra `cpd` is optional")
    learn, held = split_truth(TRUTH, None)
    done = tune(learn, held, clips_of, Space.of(methods=["oneshot"]), STRICT)
    assert done.learn["KernelCPD, penalty chosen"] > 0.9
    assert done.rows["KernelCPD, penalty chosen"].strictest.f1 > 0.8


@pytest.mark.parametrize("method", ["rtp", "kts", "oneshot", "eatr-compat"])
def test_every_point_of_the_grid_is_a_section_of_pipeline_yaml(method: str) -> None:
    clips = clips_of("v00")
    for candidate in Space.of(methods=[method]).candidates():
        options = EventsOptions.model_validate(candidate.params)
        events = parse(clips.features, CLIP_LEN_S, clips.duration_s, **options.parameters)
        assert events.boundaries_s.tolist() == candidate.find(clips)


def test_a_method_that_does_not_look_cannot_be_tuned() -> None:
    with pytest.raises(UsageError, match="'uniform' cannot be tuned; allowed: rtp, kts"):
        Space.of(methods=["uniform"]).candidates()


def test_videos_are_divided_by_their_ids_alone() -> None:
    learn, held = split_truth(TRUTH, None)
    assert learn.keys() | held.keys() == TRUTH.keys()
    assert not learn.keys() & held.keys()
    fewer = {video: TRUTH[video] for video in sorted(TRUTH)[::2]}
    assert split_truth(fewer, None)[1].keys() == held.keys() & fewer.keys()


def test_splits_that_share_videos_or_lack_them_are_refused() -> None:
    with pytest.raises(UsageError, match="1 videos are in both splits"):
        split_truth(TRUTH, {"v03": TRUTH["v03"]})
    with pytest.raises(UsageError, match="0 to report on"):
        split_truth(TRUTH, None, share=0.0)


# ---------------------------------------------------------------- commands


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with features and events of the films, and their truth."""
    monkeypatch.chdir(tmp_path)
    store = Store.create(tmp_path / "store", dataset="test", clip_len_s=CLIP_LEN_S)
    clip = Recipe("clip", 1, {}, {}, Schema({"clip": StreamSpec((WIDTH,), "float32", "clip")}))
    params: dict[str, Any] = {"streams": {"clip": 1.0}, **EventsOptions().parameters}
    schema = Schema({"boundaries_s": StreamSpec((), "float64", "item")})
    events = Recipe("events", 1, params, {"clip": clip.id}, schema)
    with store.writer(clip) as features, store.writer(events) as found:
        for number, (video, (rows, _)) in enumerate(FILMS.items()):
            key, grid = ItemKey(video, f"{number:064x}"), Grid(len(rows) * CLIP_LEN_S, CLIP_LEN_S)
            features.add(Row(key, grid, {"clip": rows}))
            cuts = parse(rows.astype(np.float64), CLIP_LEN_S, grid.duration_s).boundaries_s
            found.add(Row(key, grid, {"boundaries_s": cuts}))
    store.set_current({"clip": clip.id, "events": events.id})
    write_truth(tmp_path / "truth.jsonl", TRUTH)
    return tmp_path


def write_truth(path: Path, truth: dict[str, Truth]) -> None:
    lines = [
        json.dumps(
            {
                "vid": video,
                "duration": each.duration_s,
                "boundaries": each.raters[0],
                "raters": each.raters,
            }
        )
        for video, each in truth.items()
    ]
    path.write_text("\n".join(lines))


def call(*words: Any, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["events", *(str(word) for word in words)])
    assert done.exit_code == code, done.output
    return done.output


def test_evaluate_prints_the_events_beside_everything_else(folder: Path) -> None:
    text = call("evaluate", "truth.jsonl", "--store", "store")
    for words in ("events (rtp)", "KernelCPD", "uniform grid of 9", "random", "no boundary"):
        assert words in text
    assert "F1@0.05" in text
    assert "F1@0.5s" in text
    assert "no row of human annotators: no video has two of them" in text


@pytest.mark.parametrize("learn", [None, {KERNEL_CPD: 0.5}])
def test_a_terminal_of_80_columns_shows_every_name_and_figure(
    learn: dict[str, float] | None,
) -> None:
    rows = compare({"events, as stored": {}, KERNEL_CPD: {}}, TRUTH)
    written = io.StringIO()
    console = Console(width=80, file=written)
    console.print(figures_table("scores", rows, SECONDS, learn))
    text = written.getvalue()
    assert "…" not in text
    for words in ("F1@0.05", "prec.", "recall", "F1@0.5s", "F1@1s", "KernelCPD,", "boundary"):
        assert words in text


def test_one_number_of_boundaries_for_unlike_videos_is_said_to_be_hard_on_kernel_cpd(
    folder: Path,
) -> None:
    words = ("evaluate", "truth.jsonl", "--store", "store")
    lengths = [each.duration_s for each in TRUTH.values()]
    assert max(lengths) > 1.5 * min(lengths)
    assert "one number for all is hard on KernelCPD" in " ".join(call(*words).split())
    assert "one number for all" not in " ".join(call(*words, "--no-cpd").split())


def test_evaluate_says_as_json_what_it_prints(folder: Path) -> None:
    raters = {video: Truth(each.duration_s, each.raters * 2) for video, each in TRUTH.items()}
    write_truth(folder / "two.jsonl", {**raters, "gone": Truth(10.0, ((5.0,), (5.0,)))})
    told = json.loads(
        call("evaluate", "two.jsonl", "--store", "store", "--tolerance", "2s", "--json")
    )
    assert (told["videos"], told["missing"]) == (17, 1)
    assert told["scores"][HUMAN]["f1"]["2s"] == 1.0
    assert told["scores"]["events (rtp)"]["f1"].keys() >= {"0.05", "0.5", "2s"}
    recall = told["scores"]["events (rtp)"]["recall"]["0.5"]
    words = ["evaluate", "two.jsonl", "--store", "store", "--no-cpd", "--present", "--json"]
    present = json.loads(call(*words))
    assert (present["videos"], present["missing"]) == (16, 1)
    assert "KernelCPD" not in present["scores"]
    assert present["scores"]["events (rtp)"]["recall"]["0.5"] > recall


def test_evaluate_refuses_the_truth_of_other_videos(folder: Path) -> None:
    write_truth(folder / "other.jsonl", {"gone": Truth(10.0, ((5.0,),))})
    text = call("evaluate", "other.jsonl", "--store", "store", code=2)
    assert "none of the 1 videos" in text


def test_streams_that_hold_no_features_per_clip_are_refused(folder: Path) -> None:
    store = Store.open(folder / "store")
    recipe = Recipe("own", 1, {}, {}, Schema({"own": StreamSpec((2,), "float32", "item")}))
    with store.writer(recipe) as writer:
        writer.add(Row(ItemKey("v00", "0" * 64), None, {"own": np.zeros((3, 2), np.float32)}))
    store.set_current({**store.current, "own": recipe.id})
    with pytest.raises(UsageError, match=r"stage 'own' of .* holds no features per clip"):
        StoredClips(store, {"own": 1.0})
    with pytest.raises(UsageError, match=r"no stage 'other'.*: clip, events, own"):
        StoredClips(store, {"other": 1.0})
    assert StoredClips(store, {"clip": 1.0}).ids() == FILMS.keys()


def test_tune_writes_a_config_that_the_stage_takes(folder: Path) -> None:
    words = ["--method", "rtp", "--half-width", 4, "--half-width", 8, "--delta", 0.3, "--no-cpd"]
    words += ["--scales", "2,4", "--min-len", 4, "--out", "events.yaml"]
    text = call("tune", "truth.jsonl", "--store", "store", *words)
    assert CHOSEN in text
    assert "events, as stored" in text
    written = (folder / "events.yaml").read_text()
    assert written.startswith("# Chosen by `pipeline events tune` among 6 on")
    section = yaml.safe_load(written)["stages"]["events"]
    assert section["streams"] == {"clip": 1.0}
    assert EventsOptions.model_validate(section).delta_rel == 0.3


def test_tune_reports_on_a_second_file_and_says_as_json_what_it_chose(folder: Path) -> None:
    write_truth(folder / "learn.jsonl", dict(list(TRUTH.items())[:10]))
    write_truth(folder / "test.jsonl", {**dict(list(TRUTH.items())[10:]), "gone": TRUTH["v00"]})
    words = ["--test", "test.jsonl", "--store", "store", "--method", "oneshot", "--json"]
    told = json.loads(call("tune", "learn.jsonl", *words, "--objective", "2s"))
    assert (told["learned"], told["held"], told["objective"]) == (10, 6, "2s")
    assert told["params"]["method"] == "oneshot"
    assert told["scores"][CHOSEN]["f1"].keys() >= {"0.05", "2s", "0.5s"}
    assert any("1 videos have no features" in note for note in told["notes"])


def test_tune_prints_the_figure_that_it_chose_by(folder: Path) -> None:
    words = ("--method", "oneshot", "--objective", "3s", "--no-cpd", "--out", "chosen.yaml")
    for more in ((), ("--tolerance", "3s")):
        text = call("tune", "truth.jsonl", "--store", "store", *words, *more)
        assert text.count("F1@3s") == 1


def test_tune_names_the_file_whose_videos_are_not_in_the_store(folder: Path) -> None:
    others = {f"other-{video}": each for video, each in TRUTH.items()}
    write_truth(folder / "others.jsonl", others)
    words = ("tune", "truth.jsonl", "--store", "store", "--test", "others.jsonl")
    assert "others.jsonl names others" in call(*words, code=2)


def test_widths_of_the_same_number_of_clips_are_one() -> None:
    space = Space(half_widths_s=(1.0, 2.0, 3.0, 4.0, 4.5, 8.0)).of_clips(2.0)
    assert space.half_widths_s == (2.0, 4.0, 8.0)


def test_prices_of_settling_replace_the_list() -> None:
    tried = Space.of(methods=["rtp"], half_widths_s=[4.0], deltas=[0.4], settles=[0.5, 2.0])
    assert {each.params.get("settle") for each in tried.candidates()} == {0.5, 2.0}


def test_nothing_better_is_promised_below_one_clip() -> None:
    learn, held = split_truth(TRUTH, None)
    space = Space.of(
        methods=["rtp"], half_widths_s=[8.0], scales=(), deltas=[0.4], min_lens_s=[2.0, 60.0]
    )
    done = tune(learn, held, clips_of, space, STRICT, cpd=False)
    assert done.params["min_len_s"] == CLIP_LEN_S
    assert not done.notes


def test_what_is_chosen_is_not_mixed_with_options_of_the_config_it_extends(folder: Path) -> None:
    words = ["--method", "oneshot", "--half-width", 4, "--no-cpd"]
    call("tune", "truth.jsonl", "--store", "store", *words, "--out", "chosen.yaml")
    other = {"scales": [2.0, 32.0], "pool": "mean", "taper": "gaussian", "delta_rel": 0.7}
    base = {"stages": {"events": {**other, "min_len_s": 9.0, "max_depth": 1}}}
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    (folder / "job.yaml").write_text("extends: [tiny, base.yaml, chosen.yaml]")
    events: Any = load_pipeline_config(folder / "job.yaml").stage_options["events"]
    assert events.parameters == {**EventsOptions().parameters, "method": "oneshot"}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--method", "uniform"], "cannot be tuned"),
        (["--scales", "a"], "--scales takes seconds"),
        (["--stream", "clip=-1"], "--stream takes STAGE"),
        (["--objective", "5%"], "a tolerance is a part"),
        (["--out", "events.txt"], "--out names a YAML file"),
        (["--half-width", "-1"], "'half_width_s': input should be greater than 0, got -1"),
        (["--delta", "3"], "'delta_rel': input should be less than or equal to 1"),
        (["--settle", "0"], "'settle': input should be greater than 0"),
        (["--min-len", "-1"], "'min_len_s': input should be greater than or equal to 0"),
        (["--method", "oneshot", "--delta", "0.3"], "--delta means nothing to oneshot"),
        (["--stream", "clip", "--stream", "clip=0.5"], "--stream names 'clip' twice"),
        (["--tolerance", "0.05"], "--tolerance takes seconds"),
        (["--share", "0"], "give more videos, another share, or a test file"),
    ],
)
def test_tune_refuses_what_it_cannot_use(folder: Path, words: list[str], problem: str) -> None:
    assert problem in call("tune", "truth.jsonl", "--store", "store", *words, code=2)
