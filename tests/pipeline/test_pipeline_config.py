"""pipeline.yaml: what is inherited, what paths mean, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import toys
import yaml
from pydantic import BaseModel

from data.annotations import DATASETS
from data.errors import UsageError
from pipeline.config import load_pipeline_config, shipped_configs
from pipeline.program import Program
from pipeline.stage import STAGES
from pipeline.stages.common import NetworkOptions


def write(path: Path, **values: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_the_configs_that_ship_load_and_make_a_program(name: str, tmp_path: Path) -> None:
    config = load_pipeline_config(Path(name), [f"videos.root={tmp_path}", "store=store"])
    assert config.store == Path.cwd() / "store"
    official = [each for each, options in config.stage_options.items() if named(options)]
    # Official weights are on no machine of CI: the same networks with random ones instead.
    without = [f"stages.{each}.checkpoint=null" for each in official]
    config = load_pipeline_config(Path(name), without)
    program = Program.build(config.context, config.stage_options)
    assert {stage.name for stage in program.stages} >= set(config.stage_options)


def named(options: BaseModel) -> bool:
    return str(getattr(options, "checkpoint", "")).startswith(("zoo:", "hf:"))


def test_captions_of_a_paper_are_put_beside_the_features_of_a_dataset(tmp_path: Path) -> None:
    file = write(tmp_path / "job.yaml", extends=["charades_sta", "tea_captions"])
    config = load_pipeline_config(file)
    assert config.clip_len_s == DATASETS.get("charades_sta").clip_len_s
    asked: dict[str, Any] = dict(config.stage_options)
    of_the_dataset = {"probe", "clip", "slowfast", "queries", "events"}
    assert set(asked) == of_the_dataset | {"captions", "narratives"}
    assert asked["captions"].captioner == "llava"
    # What a later one says counts: LMR's grid, and its captioner.
    other = write(tmp_path / "lmr.yaml", extends=["charades_sta", "tea_captions", "lmr_captions"])
    both = load_pipeline_config(other)
    assert both.clip_len_s == 2.0
    asked = dict(both.stage_options)
    assert asked["captions"].captioner == "videochat"


@pytest.mark.parametrize("wrong", [[["tiny"]], [1], {"tiny": 1}])
def test_a_config_extends_names_and_nothing_else(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(UsageError, match="`extends` is one name or a list of names"):
        load_pipeline_config(write(tmp_path / "wrong.yaml", extends=wrong))


def test_shipped_captions_are_asked_for_as_the_papers_say() -> None:
    tea: Any = load_pipeline_config(Path("tea_captions")).stage_options["captions"]
    assert (tea.prompt, tea.per, tea.every_s, tea.captioner) == ("tea", "timestamp", 1.0, "llava")
    lmr: Any = load_pipeline_config(Path("lmr_captions")).stage_options["captions"]
    assert (lmr.prompt, lmr.per, lmr.captioner) == ("lmr", "clip", "videochat")


BENCHMARKS = sorted(set(shipped_configs()) - {"tiny", "tea_captions", "lmr_captions"})


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_shipped_config_of_a_benchmark_has_no_narrow_or_random_network(name: str) -> None:
    config = load_pipeline_config(Path(name))
    assert config.decode.mode == "exact"
    assert config.decode.fallbacks == ()  # another decoder makes other pixels
    networks = {
        each: o for each, o in config.stage_options.items() if isinstance(o, NetworkOptions)
    }
    assert set(networks) == {"clip", "slowfast", "queries"}
    for options in networks.values():
        assert options.preset == "full"
        assert named(options)


@pytest.mark.parametrize("name", sorted(set(BENCHMARKS) - {"slowfast_clip"}))
def test_a_shipped_config_of_a_benchmark_has_its_clip_length(name: str) -> None:
    config = load_pipeline_config(Path(name))
    assert config.dataset == name
    assert config.clip_len_s == DATASETS.get(name).clip_len_s


@pytest.mark.parametrize("name", sorted(set(BENCHMARKS) - {"slowfast_clip"}))
def test_a_shipped_config_of_a_benchmark_cuts_events_in_whole_clips(name: str) -> None:
    config = load_pipeline_config(Path(name))
    events: Any = config.stage_options["events"]
    assert events.streams == {"clip": 1.0}
    assert events.method == "rtp"
    for seconds in (events.half_width_s, events.min_len_s):
        assert seconds % config.clip_len_s == 0
    assert {"half_width_s", "min_len_s", "delta_rel"} <= events.model_fields_set


def test_official_weights_that_are_missing_are_told_with_the_command_that_gets_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("XDG_CACHE_HOME", "TORCH_HOME", "STORYLINE_WEIGHTS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_pipeline_config(Path("qvhighlights"))
    with pytest.raises(UsageError, match="pipeline weights fetch clip-vit-b-32-openai"):
        Program.build(config.context, config.stage_options)


@pytest.mark.parametrize("checkpoint", ["zoo:slowfast-r50-8x8-kinetics400", "hf:org/name"])
def test_official_weights_for_the_narrow_network_are_refused_at_once(checkpoint: str) -> None:
    with pytest.raises(UsageError, match=r"stages\.slowfast.*narrow.*add `preset: full`"):
        load_pipeline_config(Path("tiny"), [f"stages.slowfast.checkpoint={checkpoint}"])


def test_an_option_of_the_network_in_the_wrong_place_is_told_the_right_one() -> None:
    with pytest.raises(UsageError, match=r"stands under 'stages\.slowfast\.options'"):
        load_pipeline_config(Path("tiny"), ["stages.slowfast.sampling=hero"])


NAMED_ONLY = {"i3d_flow", "panns", "vgg"}
"""Stages beyond the papers' streams: they run when a config or `--stage` names them."""


def test_the_default_runs_every_stage_of_the_papers(tmp_path: Path) -> None:
    config = load_pipeline_config(Path("tiny"))
    assert set(config.stage_options) == set(STAGES.names()) - NAMED_ONLY


def test_two_keys_make_a_whole_config(tmp_path: Path) -> None:
    file = write(tmp_path / "job.yaml", extends="tiny", videos={"root": "videos"}, store="out")
    config = load_pipeline_config(file)
    tiny = load_pipeline_config(Path("tiny"))
    assert config.videos.root == tmp_path / "videos"
    assert config.store == tmp_path / "out"
    assert config.stage_options == tiny.stage_options


@pytest.mark.usefixtures("toy_stages")
def test_a_config_inherits_and_replaces_value_by_value(tmp_path: Path) -> None:
    write(
        tmp_path / "base" / "base.yaml",
        store="store",
        engine={"attempts": {"crash": 7}, "timeout_s": 5},
        stages={"rows": {"scale": 3.0, "group": 2}},
    )
    file = write(
        tmp_path / "job.yaml",
        extends="base/base.yaml",
        engine={"attempts": {"crash": 2}},
        stages={"rows": {"group": 4}, "sums": None},
    )
    config = load_pipeline_config(file, ["engine.workers=3"])
    attempts = config.engine.attempts.by_cause
    assert (attempts["crash"], attempts["killed"]) == (2, 5)
    assert (config.engine.timeout_s, config.engine.workers) == (5, 3)
    assert config.stage_options == {
        "rows": toys.ToyRows.Options(scale=3.0, group=4),
        "sums": toys.ToySum.Options(),
    }
    assert config.store == tmp_path / "base" / "store"


@pytest.mark.usefixtures("toy_stages")
def test_paths_are_relative_to_the_file_that_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    file = write(
        tmp_path / "there" / "job.yaml",
        store="store",
        videos={"root": "/absolute"},
        annotations={"train": "a/train.jsonl"},
        stages={"rows": {"checkpoint": "net.pt"}},
    )
    config = load_pipeline_config(file, ["store=mine"])
    assert config.store == tmp_path / "here" / "mine"
    assert config.videos.root == Path("/absolute")
    assert config.annotations == {"train": tmp_path / "there" / "a" / "train.jsonl"}
    assert config.stage_options["rows"].checkpoint == tmp_path / "there" / "net.pt"  # type: ignore[attr-defined]


WRONG = {
    "unknown key": ({"stroe": "x"}, "unknown key 'stroe'; did you mean 'store'"),
    "unknown stage": ({"stages": {"rosw": {}}}, "unknown key 'stages.rosw'; did you mean 'rows'"),
    "unknown option": (
        {"stages": {"rows": {"scael": 1}}},
        "unknown key 'stages.rows.scael'; did you mean 'scale'",
    ),
    "wrong type": ({"engine": {"attempts": "many"}}, "'engine.attempts': .*got 'many'"),
    "option of a wrong type": ({"stages": {"rows": {"scale": "x"}}}, "'stages.rows.scale': "),
    "no such base": ({"extends": "huge"}, "extends 'huge', which is no file beside it"),
    "circle": ({"extends": "job.yaml"}, "extend each other in a circle"),
    "stages as a list": ({"stages": ["rows"]}, "'stages': "),
}


@pytest.mark.usefixtures("toy_stages")
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_config_is_refused_with_its_key(tmp_path: Path, name: str) -> None:
    values, sentence = WRONG[name]
    file = write(tmp_path / "job.yaml", **values)
    with pytest.raises(UsageError, match=sentence):
        load_pipeline_config(file)


@pytest.mark.usefixtures("toy_stages")
def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("store: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(UsageError, match="not valid YAML"):
        load_pipeline_config(file)


def test_a_missing_config_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"extends: tiny\nvideos: \{root: FOLDER"):
        load_pipeline_config(tmp_path / "pipeline.yaml")


@pytest.mark.parametrize(
    ("words", "streams"),
    [
        ([], {"dinov2": 1.0}),
        (["stages.events.streams={slowfast: 2.0}"], {"slowfast": 2.0}),
        (["stages.events.streams.slowfast=2.0"], {"dinov2": 1.0, "slowfast": 2.0}),
    ],
)
def test_streams_of_events_are_those_that_are_named_last(
    tmp_path: Path, words: list[str], streams: dict[str, float]
) -> None:
    write(tmp_path / "events.yaml", stages={"events": {"streams": {"clip": 1.0}}})
    file = write(
        tmp_path / "job.yaml",
        extends=["tiny", "events.yaml"],
        stages={"events": {"streams": {"dinov2": 1.0}}},
    )
    events: Any = load_pipeline_config(file, words).stage_options["events"]
    assert events.streams == streams
