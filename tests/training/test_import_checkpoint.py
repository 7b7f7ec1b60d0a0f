"""A public checkpoint becomes a run that predicts what the model itself does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from public_checkpoints import trained, write
from small_store import WIDTH, Annotations, write_store
from trainer_calls import call, good

from data.annotations import save_jsonl
from data.identity import query_id
from data.store import Store
from models.retrieval import MODELS, create_model, load_official
from models.retrieval.official import official_state_dict
from models.retrieval.types import Batch
from training.predictions import read_predictions
from training.run import Run
from training.session import Session


@pytest.mark.parametrize("name", ["qd_detr", "moment_detr"])
def test_a_public_checkpoint_predicts_and_is_scored_as_a_run(
    name: str, tmp_path: Path, store: Store, splits: Annotations
) -> None:
    file, run, found = (
        write(tmp_path / "best.ckpt", trained(name)),
        tmp_path / "run",
        tmp_path / "p",
    )
    told = good("import-checkpoint", name, file, "--out", run).output
    assert "--set data.store=STORE" in told
    assert "slowfast, clip" in told
    on = ["--run", run, "--split", "val", "--set", f"data.store={store.path}"]
    good("predict", *on, "--out", found)
    good("evaluate", *on, "--json", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["brief"]["MR-full-R1@0.5"] is not None

    predictions = read_predictions(found, splits["val"])
    session = Session(Run.open(run, [f"data.store={store.path}"]).config, lambda sentence: None)
    (batch,) = session.hold(session.split("val")).read([np.arange(10)], None)
    model = load_official(name, file).to(session.device)
    with torch.no_grad():
        saliency = model(batch.tensors).saliency
    for row, each in zip(saliency.tolist(), predictions, strict=True):
        assert each.saliency == pytest.approx(row[: len(each.saliency)], abs=1e-3)


def test_the_run_says_where_it_comes_from_and_what_the_options_were(
    tmp_path: Path, store: Store
) -> None:
    file, run = write(tmp_path / "best.ckpt", trained("qd_detr"), max_v_l=-1), tmp_path / "run"
    good("import-checkpoint", "qd_detr", file, "--out", run, "--store", store.path)
    opened = Run.open(run)
    assert opened.config.model.preset == "release"
    assert opened.config.data.max_clips is None
    assert opened.config.data.max_tokens == 32
    assert str(opened.config.data.store) == str(store.path)
    assert opened.imported == "best.ckpt"
    assert opened.about["imported"]["options"]["lr"] == 0.0001
    told = good("evaluate", "--run", run).output
    assert "was imported, and nobody said what it was trained on" in told
    assert "trained elsewhere (best.ckpt)" in told


def test_what_it_was_trained_on_is_remembered(
    tmp_path: Path, store: Store, splits: Annotations
) -> None:
    file, rows = write(tmp_path / "best.ckpt", trained("qd_detr")), tmp_path / "val.jsonl"
    save_jsonl(splits["val"], rows)
    arguments = ["import-checkpoint", "qd_detr", file, "--store", store.path]
    known = ["--trained-on", rows, "--dataset", "qvhighlights"]
    told = good(*arguments, "--out", tmp_path / "known", *known).output
    assert "nobody said" not in told
    refused = call("evaluate", "--run", tmp_path / "known", "--split", "val")
    assert refused.exit_code == 2
    assert "10 videos of split 'val' are in the training split too" in refused.output
    good("evaluate", "--run", tmp_path / "known", "--split", "test")


def test_streams_can_be_named(tmp_path: Path, store: Store) -> None:
    file, run = write(tmp_path / "best.ckpt", trained("qd_detr")), tmp_path / "run"
    streams = ["--stream", "clip", "--stream", "slowfast"]
    told = good("import-checkpoint", "qd_detr", file, "--out", run, *streams).output
    assert "as its options name them" not in told
    assert Run.open(run).config.data.streams == ("clip", "slowfast")


def test_an_imported_run_is_not_continued(tmp_path: Path, store: Store) -> None:
    file, run = write(tmp_path / "best.ckpt", trained("qd_detr")), tmp_path / "run"
    good("import-checkpoint", "qd_detr", file, "--out", run, "--store", store.path)
    found = call("fit", "--resume", "--out", run)
    assert found.exit_code == 2
    assert "imported from best.ckpt and has no optimiser to continue with" in found.output


def test_features_of_another_width_are_refused_with_what_to_do(
    tmp_path: Path, store: Store
) -> None:
    file, run = write(tmp_path / "best.ckpt", trained("qd_detr")), tmp_path / "run"
    good("import-checkpoint", "qd_detr", file, "--out", run, "--stream", "clip")
    found = call("evaluate", "--run", run, "--set", f"data.store={store.path}")
    assert found.exit_code == 2
    assert "reads 18 features a clip, and this store has 10" in found.output
    assert "import it again with --stream NAME" in found.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_dim": 32}, "does not fit the model that its options describe"),
        ({"no_norm_vfeat": True}, "no_norm_vfeat=True, which is not supported"),
        ({"ctx_mode": "video"}, "ctx_mode='video', which is not supported"),
        ({"dropout": 2.0}, "dropout"),
    ],
    ids=str,
)
def test_a_checkpoint_that_does_not_fit_leaves_nothing_behind(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file, run = write(tmp_path / "best.ckpt", trained("qd_detr"), **change), tmp_path / "run"
    found = call("import-checkpoint", "qd_detr", file, "--out", run)
    assert found.exit_code == 2
    assert message in found.output
    assert not run.exists()


def test_wrong_use_is_answered_before_anything_is_written(tmp_path: Path) -> None:
    file, run = write(tmp_path / "best.ckpt", trained("qd_detr")), tmp_path / "run"
    for arguments, message in (
        (["qd_det", file], "did you mean 'qd_detr'"),
        (["qd_detr", tmp_path / "none.ckpt"], "no checkpoint at"),
        (["moment_detr", file], "unexpected"),
        (["lmr", file], "LMR has no public code"),
    ):
        found = call("import-checkpoint", *arguments, "--out", run)
        assert found.exit_code == 2
        assert message in found.output
        assert not run.exists()
    run.mkdir()
    (run / "mine.txt").write_text("")
    taken = call("import-checkpoint", "qd_detr", file, "--out", run)
    assert taken.exit_code == 2
    assert "exists already" in taken.output


@pytest.mark.parametrize(
    ("change", "said", "unsaid"),
    [
        ({"v_feat_dirs": "../features/clip_features"}, "options name them: clip;", "f, e, a, t"),
        ({"clip_length": "2"}, "options name them: slowfast, clip;", "clips of"),
        ({"clip_length": float("nan")}, "options name them: slowfast, clip;", "clips of"),
    ],
    ids=str,
)
def test_what_the_options_say_of_features_may_be_of_another_type(
    change: dict[str, Any], said: str, unsaid: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "best.ckpt", trained("qd_detr"), **change)
    told = " ".join(
        good("import-checkpoint", "qd_detr", file, "--out", tmp_path / "r").output.split()
    )
    assert said in told
    assert unsaid not in told


def of_words(path: Path, text_dim: int = WIDTH, **options: Any) -> Path:
    """A public checkpoint with a table of words, for features of the small store; its code keeps
    tensors and options in two files, which somebody put together."""
    torch.manual_seed(5)
    sizes = {"hidden": 16, "heads": 2, "words": "ids", "vocabulary": 12, "video_dim": WIDTH}
    model = create_model("emb", text_dim=text_dim, preset="release", **sizes)
    weights = official_state_dict(model, MODELS.get("emb").official)
    torch.save({"model": weights, "opt": {"dim": 16, "num_heads": 2} | options}, path)
    return path


def test_a_model_of_word_ids_reads_the_word_vectors_of_a_store_as_they_are(
    tmp_path: Path, store: Store, splits: Annotations
) -> None:
    file, run, out = of_words(tmp_path / "best.ckpt"), tmp_path / "run", tmp_path / "p"
    told = good("import-checkpoint", "emb", file, "--out", run, "--stream", "clip", "--stream",
                "slowfast", "--store", store.path).output  # fmt: skip
    assert "the learned vector that all unknown words shared is lost" in told
    assert "its options do not say drop_rate, epochs, extend" in told
    assert Run.open(run).config.data.max_tokens is None
    good("predict", "--run", run, "--split", "val", "--out", out)
    assert good("evaluate", "--run", run, "--split", "val").exit_code == 0

    model = load_official("emb", file, words="vectors")  # of clips without their place
    for row, each in zip(splits["val"], read_predictions(out, splits["val"]), strict=True):
        clips = [store.reader(name).array(row.video_id, name) for name in ("clip", "slowfast")]
        video = torch.from_numpy(np.concatenate(clips, axis=1)).float().unsqueeze(0)
        words = store.reader("queries").array(query_id(row.query), "tokens")
        text = torch.from_numpy(np.array(words)).float().unsqueeze(0)
        masks = [torch.ones(x.shape[:2], dtype=torch.bool) for x in (video, text)]
        with torch.no_grad():
            found = model(Batch(video, masks[0], text, masks[1]))
        assert each.saliency == pytest.approx(found.saliency[0].tolist(), abs=1e-3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("words=ids", "for that this model is built with words=vectors; leave it out"),
        ("clip_place=read", "for that this model is built with clip_place=ignored; leave it out"),
    ],
)
def test_what_reading_a_store_asks_of_a_model_cannot_be_set(
    override: str, message: str, tmp_path: Path
) -> None:
    file, run = of_words(tmp_path / "best.ckpt"), tmp_path / "run"
    found = call("import-checkpoint", "emb", file, "--out", run, "--set", override)
    assert found.exit_code == 2
    assert message in " ".join(found.output.split())
    assert not run.exists()


def test_a_public_number_of_layers_that_is_none_is_named(tmp_path: Path) -> None:
    file = of_words(tmp_path / "best.ckpt", num_layers=None)
    found = call("import-checkpoint", "emb", file, "--out", tmp_path / "run")
    assert found.exit_code == 2
    assert "attention_layers: Input should be a valid integer, got None" in found.output


def test_what_is_set_is_not_told_as_a_default(tmp_path: Path) -> None:
    file = write(tmp_path / "best.ckpt", trained("qd_detr"))
    content = torch.load(file, weights_only=False)  # written above
    vars(content["opt"]).pop("nheads")
    torch.save(content, file)
    asked = ["--out", tmp_path / "run", "--set", "heads=2", "--set", "dropout=0.3"]
    told = " ".join(good("import-checkpoint", "qd_detr", file, *asked).output.split())
    assert "its options do not say aux_loss" in told
    assert "nheads" not in told
    assert "defaults were taken where --set says nothing" in told
    assert Run.open(tmp_path / "run").about["imported"]["set"] == {"heads": 2, "dropout": 0.3}


def test_word_vectors_of_another_width_or_encoder_are_refused_with_what_to_do(
    tmp_path: Path, splits: Annotations
) -> None:
    store = write_store(tmp_path / "store", splits)
    wide, run = of_words(tmp_path / "wide.ckpt", text_dim=12), tmp_path / "wide"
    known = ["--stream", "clip", "--stream", "slowfast", "--store", store.path]
    good("import-checkpoint", "emb", wide, "--out", run, *known)
    found = call("predict", "--run", run, "--split", "val", "--out", tmp_path / "p")
    assert found.exit_code == 2
    assert "reads 12 features a word, and this store has 16" in found.output

    good("import-checkpoint", "emb", of_words(tmp_path / "f.ckpt"), "--out", tmp_path / "r", *known)
    encoded_by(store, "hash")
    found = call("predict", "--run", tmp_path / "r", "--split", "val", "--out", tmp_path / "p")
    assert found.exit_code == 2
    assert "encoded by 'hash'" in found.output
    assert "stages.queries: {encoder: glove}" in found.output
    encoded_by(store, "glove")
    good("predict", "--run", tmp_path / "r", "--split", "val", "--out", tmp_path / "p")


def encoded_by(store: Store, encoder: str) -> None:
    """Give the queries of a store another recipe, of an encoder."""
    reader = store.reader("queries")
    recipe = replace(reader.recipe, params={"encoder": {"name": encoder}})
    writer = store.writer(recipe)
    for id in reader.ids():
        writer.add(reader.row(id))
    writer.flush()
    store.set_current({"queries": recipe.id})


def test_options_that_the_file_does_not_say_can_be_set(tmp_path: Path) -> None:
    model = trained("ld_detr", loops=3, decoder_layers=2)
    sizes = {"num_decoder_layers": 2, "num_encoder1_layers": 1, "num_decoder_loops": 7}
    file, run = write(tmp_path / "best.ckpt", model, **sizes), tmp_path / "run"
    arguments = ["import-checkpoint", "ld_detr", file, "--out", run]
    built_in = ["--set", "heads=2", "--set", "feedforward=32"]
    good(*arguments, *built_in, "--set", "loops=3")
    opened = Run.open(run)
    assert opened.config.model.options["loops"] == 3
    assert opened.about["imported"]["set"] == {"heads": 2, "feedforward": 32, "loops": 3}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("loop=3", "--set loop: model 'ld_detr' has no such option; did you mean 'loops'?"),
        ("video_dim=3", "--set video_dim: model 'ld_detr' has no such option"),
        ("loops", "'loops' is not of the form"),
        ("loops=0", "loops: Input should be greater than or equal to 1"),
    ],
)
def test_a_wrong_option_is_refused_with_the_near_ones(
    asked: str, message: str, tmp_path: Path
) -> None:
    file, run = write(tmp_path / "best.ckpt", trained("ld_detr")), tmp_path / "run"
    found = call("import-checkpoint", "ld_detr", file, "--out", run, "--set", asked)
    assert found.exit_code == 2
    assert message in " ".join(found.output.split())
    assert not run.exists()


def test_no_predicted_window_of_an_imported_run_leaves_its_video(
    tmp_path: Path, store: Store, splits: Annotations
) -> None:
    """The public code leaves [0, 26] of 24 s as it is; here only eval.clip_to=dataset does."""
    model = trained("qd_detr")
    with torch.no_grad():
        model.heads[0].span.layers[-1].bias += 4  # far wider than the video
    file, run = write(tmp_path / "best.ckpt", model), tmp_path / "run"
    good("import-checkpoint", "qd_detr", file, "--out", run, "--store", store.path)
    ends = []
    for chosen in ("video", "dataset"):
        asked = ["--set", f"eval.clip_to={chosen}", "--split", "val", "--out", tmp_path / chosen]
        good("predict", "--run", run, *asked)
        found = read_predictions(tmp_path / chosen, splits["val"])
        ends.append(max(end for each in found for _, end, _ in each.windows))
    assert ends[0] == splits["val"][0].duration_s
    assert ends[1] > ends[0]


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "evil.ckpt"
    torch.save({"model": {}, "opt": pytest.raises}, file)
    found = call("import-checkpoint", "qd_detr", file, "--out", tmp_path / "run")
    assert found.exit_code == 2
    assert "cannot be read safely" in found.output
