"""Every shipped configuration trains on its dataset, by name alone; some go the whole way.

They run on small stores in the form of their dataset, with narrow layers
(`shipped_recipes.NARROW`), made-up features in place of I3D and VGG, and random layers of width 16
in place of LLaMA's.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from every_dataset import CORPORA, small_dataset
from shipped_recipes import (
    CONFIGS,
    NARROW,
    SHIPPED,
    dataset_of,
    known_options,
    on_small_store,
    sets,
)
from small_store import write_store
from trainer_calls import good
from typer.testing import CliRunner

from data.annotations import DATASETS
from data.config import load_config
from data.store import Store
from models.retrieval import MODELS, PLUGINS, create_model
from training.cli import app
from training.config import TrainerConfig, shipped_or_file
from training.retrieval_task import build_model
from training.session import Session

HIGHLIGHTS_ONLY = {"tvsum", "youtube_highlights"}


def whole_way() -> list[Path]:
    """All of QD-DETR, of each other folder the first and the first of highlights alone, and one
    that reads two embeddings of the query."""
    chosen: dict[tuple[Path, bool], Path] = {}
    for path in SHIPPED:
        chosen.setdefault((path.parent, dataset_of(path) in HIGHLIGHTS_ONLY), path)
    two = CONFIGS / "lmr" / "qvhighlights.yaml"
    return sorted({*chosen.values(), *(CONFIGS / "qd_detr").glob("*.yaml"), two})


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Callable[[str], Store]:
    """A small store of a dataset; of the corpora of no paper, one like QVHighlights."""
    made: dict[str, Store] = {}

    def of(dataset: str) -> Store:
        if dataset not in CORPORA:
            return store
        if dataset not in made:
            made[dataset] = small_dataset(tmp_path_factory.mktemp("data") / dataset, dataset)
        return made[dataset]

    return of


def settings(path: Path, store: Store, **more: object) -> list[str]:
    """`--config` of a shipped file, made small."""
    config = load_config(TrainerConfig, path)
    values = on_small_store(path, store) | known_options(config, NARROW)
    values |= {"loop.epochs": 1, **more}
    if config.data.hold_out:
        values["data.hold_out"] = 0.3  # of 12 videos
    return ["--config", str(path), *sets(values)]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_dataset_of_a_paper_has_a_configuration_and_a_corpus_here() -> None:
    shipped = {dataset_of(path) for path in SHIPPED}
    assert set(CORPORA) < shipped
    assert set(CORPORA) < set(DATASETS)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_recipe_says_its_figure_its_source_and_that_it_was_not_reproduced(path: Path) -> None:
    head = path.read_text().split("\n\n")[0]
    if dataset_of(path) in DATASETS:
        before, _, after = head.partition("# Recipe: ")
        assert re.search(r"\d\d\.\d|not in this project's sources|No published", before)
        assert "reproduced" in " ".join(after.split("\n# "))
    assert max(map(len, head.splitlines())) < 112


def test_every_model_and_every_plug_in_has_a_configuration() -> None:
    configs = [load_config(TrainerConfig, path) for path in SHIPPED]
    assert {each.model.name for each in configs} == set(MODELS)
    named = {name for each in configs for name in each.model.plugins}
    named |= {name for path in SHIPPED for each in examples(path) for name in each.model.plugins}
    # the three of LLMEPET are options of it, those of LD-DETR parts of it
    assert named == set(PLUGINS)


def examples(path: Path) -> list[TrainerConfig]:
    """The configurations that a recipe's comment calls for with `--config NAME --set …`."""
    text = path.read_text().split("\n\n")[0].replace("\\\n#", " ")
    found = []
    for line in text.splitlines():
        name = re.search(r"--config (\w+/\w+) ", line)
        changes = re.findall(r"--set\s+'?((?:model|data)\.\w+=(?:\{.*\}|\w+))'?", line)
        if name and changes:
            found.append(load_config(TrainerConfig, shipped_or_file(Path(name[1])), changes))
    return found


@pytest.mark.parametrize("model", ["ld_detr", "llmepet"])
def test_plug_ins_of_a_recipe_s_comment_can_be_built(model: str) -> None:
    found = examples(CONFIGS / model / "qvhighlights.yaml")
    assert len(found) == 3
    for config in found:
        plugins = {
            name: {"weights": "random"} if name == "llm_refiner" else options
            for name, options in config.model.plugins.items()
        }
        with torch.device("meta"):
            built = create_model(config.model.name, video_dim=18, text_dim=16, plugins=plugins)
        assert ("events" in built.reads) == config.data.events


PROPOSED = [path for path in SHIPPED if "\n#   --set " in path.read_text()]


@pytest.mark.parametrize("path", PROPOSED, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_what_a_recipe_s_comment_proposes_to_change_can_be_changed(
    path: Path, stores: Callable[[str], Store]
) -> None:
    proposed = [
        part
        for line in path.read_text().splitlines()
        if line.startswith("#   --set ")
        for part in shlex.split(line.lstrip("# "))
    ]
    kept = on_small_store(path, stores(dataset_of(path)))
    if "data.streams" in " ".join(proposed):
        kept.pop("data.streams", None)
    config = load_config(
        TrainerConfig, path, [part for part in [*sets(kept), *proposed] if part != "--set"]
    )
    session = Session(config, lambda sentence: None)
    with torch.device("meta"):
        build_model(config.model, session.train.samples)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_shipped_configuration_trains_three_steps_and_is_scored(
    path: Path, stores: Callable[[str], Store], tmp_path: Path
) -> None:
    store, out = stores(dataset_of(path)), tmp_path / "run"
    size = 2 if dataset_of(path) in CORPORA else 8
    good("fit", *settings(path, store, **{"loop.batch_size": size}), "--out", out)
    (epoch,) = rows_of(out / "history.jsonl")
    assert epoch["step"] >= 3
    assert all(math.isfinite(each) for each in numbers_of(epoch))
    assert json.loads((out / "metrics.json").read_text())["best"]["brief"]


def numbers_of(value: Any) -> list[float]:
    """All numbers in a record."""
    if isinstance(value, dict):
        return [each for part in value.values() for each in numbers_of(part)]
    return [value] if isinstance(value, int | float) else []


@pytest.mark.parametrize("path", whole_way(), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_shipped_configuration_trains_scores_and_predicts(
    path: Path, stores: Callable[[str], Store], tmp_path: Path
) -> None:
    store, out = stores(dataset_of(path)), tmp_path / "run"
    split = load_config(TrainerConfig, path).eval.split
    good("fit", *settings(path, store), "--out", out)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["best"]["brief"][metrics["selected_by"]] is not None

    test = [name for name in store.splits() if name != "train"][-1]
    good("evaluate", "--run", out, "--split", test, "--json", tmp_path / "scores.json")
    good("predict", "--run", out, "--split", test, "--out", tmp_path / "found.jsonl")
    found, truth = rows_of(tmp_path / "found.jsonl"), store.annotations(test)
    assert [row["qid"] for row in found] == [row.qid for row in truth]
    for row, annotation in zip(found, truth, strict=True):
        if path.stem in HIGHLIGHTS_ONLY:
            assert "pred_relevant_windows" not in row
            assert len(row["pred_saliency_scores"]) == len(annotation.saliency or ())
        else:
            count = len(row["pred_relevant_windows"])
            assert 1 <= count <= 10 if path.parent.name == "univtg" else count == 4

    baseline = ["evaluate", *settings(path, store), "--split", split]
    for name in ("--blind", "--untrained"):
        good(*baseline, name, "--json", tmp_path / f"{name}.json")
        scores = json.loads((tmp_path / f"{name}.json").read_text())
        assert scores["brief"].keys() == metrics["best"]["brief"].keys()


@pytest.mark.parametrize("dataset", sorted(HIGHLIGHTS_ONLY))
def test_highlights_are_learned_from_ratings_alone(dataset: str, tmp_path: Path) -> None:
    # every clip that annotators like points in the direction of its query (small_store.py)
    store, out = small_dataset(tmp_path, dataset, times=2), tmp_path / "run"
    more = {"optim.lr": 4e-3, "loop.epochs": 10, "model.options.input_dropout": 0.0}
    config = settings(CONFIGS / "qd_detr" / f"{dataset}.yaml", store, **more)
    good("fit", *config, "--out", out)
    metrics = json.loads((out / "metrics.json").read_text())
    without = []
    for name in ("--blind", "--untrained"):
        good("evaluate", *config, name, "--json", tmp_path / "scores.json")
        without.append(json.loads((tmp_path / "scores.json").read_text())["brief"]["mAP"])
    # measured: 0.98 and 1.00; blind 0.54 and 0.76, untrained 0.27 and 0.88 (chance: few clips)
    assert metrics["selected_by"] == "mAP"
    assert metrics["last"]["brief"]["mAP"] > 0.9
    assert metrics["last"]["brief"]["mAP"] > max(without) + 0.05


def test_one_domain_is_trained_and_scored_by_data_where(
    stores: Callable[[str], Store], tmp_path: Path
) -> None:
    store, out = stores("tvsum"), tmp_path / "run"
    config = settings(CONFIGS / "qd_detr" / "tvsum.yaml", store)
    good("fit", *config, "--set", "data.where={domain: VU}", "--out", out)
    domains = {row.video_id: row.extra["domain"] for row in store.annotations("val")}
    found = rows_of(out / "predictions" / "val-best.jsonl")
    assert {domains[row["vid"]] for row in found} == {"VU"}
    assert len(found) == 2

    other = ["evaluate", "--run", out, "--set"]
    assert "BK" in good(*other, "eval.where={domain: BK}").output
    result = CliRunner().invoke(app, [*map(str, other), "data.where={domain: BK}"])
    assert result.exit_code == 2
    assert "data.where was {'domain': 'VU'} and is {'domain': 'BK'}" in " ".join(
        result.output.split()
    )
    result = CliRunner().invoke(app, [*map(str, other), "eval.where={domain: XX}"])
    assert result.exit_code == 2
    assert "domain = 'XX'; there are: BK, VU" in " ".join(result.output.split())


def test_subsets_of_new_words_are_scored_by_eval_where(
    stores: Callable[[str], Store], tmp_path: Path
) -> None:
    store, out = stores("charades_cg"), tmp_path / "run"
    config = settings(CONFIGS / "qd_detr" / "charades_cg.yaml", store)
    good("fit", *config, "--out", out)
    place = tmp_path / "scores.json"
    evaluate = ["evaluate", "--run", out, "--split", "novel_word", "--json", place]
    good(*evaluate)
    whole = json.loads(place.read_text())
    good(*evaluate, "--set", "eval.where={news: VERB}")
    part = json.loads(place.read_text())
    assert part["brief"].keys() == whole["brief"].keys()
    assert part["eval.where"] == {"news": "VERB"}
    assert part["queries"] < whole["queries"]
    assert "eval.where" not in whole


@pytest.mark.parametrize("cache", ["device", "none"])
def test_a_resumed_run_on_ratings_is_the_same_to_the_last_bit(
    cache: str, stores: Callable[[str], Store], tmp_path: Path
) -> None:
    store = stores("youtube_highlights")
    more = {"data.cache": cache, "eval.every": 1}
    config = settings(CONFIGS / "qd_detr" / "youtube_highlights.yaml", store, **more)
    good("fit", *config, "--out", tmp_path / "whole", "--set", "loop.epochs=3")
    good("fit", *config, "--out", tmp_path / "parts", "--set", "loop.epochs=1")
    good("fit", *config, "--out", tmp_path / "parts", "--resume", "--set", "loop.epochs=3")
    histories = [
        [{**each, "seconds": 0} for each in rows_of(tmp_path / name / "history.jsonl")]
        for name in ("whole", "parts")
    ]
    assert histories[0] == histories[1]
    predictions = [
        (tmp_path / name / "predictions" / "val-best.jsonl").read_bytes()
        for name in ("whole", "parts")
    ]
    assert predictions[0] == predictions[1]


def test_queries_without_moments_and_without_ratings_teach_nothing(tmp_path: Path) -> None:
    store = small_dataset(tmp_path, "tvsum")
    rows = [replace(row, clip_ids=None, saliency=None) for row in store.annotations("train")]
    store.save_annotations("train", rows)
    config = settings(CONFIGS / "qd_detr" / "tvsum.yaml", store)
    result = CliRunner().invoke(app, ["fit", *config, "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    assert "8 queries of split 'train' have no ground-truth moment and no saliency" in said


@pytest.mark.parametrize(("clip_len_s", "said"), [(1.0, False), (2.0, True)])
def test_clips_of_another_length_than_in_the_papers_are_told(
    clip_len_s: float, said: bool, tmp_path: Path
) -> None:
    rows = small_dataset(tmp_path / "own", "charades_sta").annotations("train")
    store = write_store(tmp_path / "store", {"train": rows}, "charades_sta", clip_len_s)
    config = load_config(TrainerConfig, CONFIGS / "qd_detr" / "charades_sta.yaml")
    config = config.model_copy(
        update={"data": config.data.model_copy(update={"store": store.path})}
    )
    told: list[str] = []
    Session(config, told.append)
    note = "has clips of 2 s; figures of papers on 'charades_sta' are of clips of 1 s"
    assert any(note in each for each in told) == said
