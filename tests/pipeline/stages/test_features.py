from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.errors import UsageError
from data.store.types import ItemKey
from data.video.types import VideoFacts, Window
from models.backbones import create
from pipeline.config import PipelineConfig
from pipeline.stage import STAGES, Item, StageContext
from pipeline.stages.common import weights_params
from pipeline.stages.features import BackboneStage
from pipeline.stages.text import KNOWN_DIMS, TextOptions, build_encoder, text_dims

FACTS = VideoFacts(3.0, 10, 30, 64, 64, 0, "h264", "yuv420p", 1, False, 0)
ITEM = Item(ItemKey("film", "0" * 64), facts=FACTS)


def stage(name: str = "clip", **options: Any) -> BackboneStage:
    kind = STAGES.get(name)
    made = kind(StageContext(1.0), kind.Options(**options))
    assert isinstance(made, BackboneStage)
    return made


@pytest.fixture(scope="module")
def clip() -> BackboneStage:
    made = stage()
    made.setup()
    return made


def test_a_video_gets_exactly_one_vector_per_clip(clip: BackboneStage) -> None:
    vectors = [np.full(128, value, np.float32) for value in (0.1, 0.2, 0.3)]
    row = clip.finish(ITEM, vectors)
    np.testing.assert_array_equal(row["clip"], np.stack(vectors).astype(np.float16), strict=True)
    assert row.facts["weights"]["kind"] == "random"
    with pytest.raises(ValueError, match="2 features for the 3 clips of video film"):
        clip.finish(ITEM, vectors[:2])


@pytest.mark.parametrize("value", [np.nan, 1e6])
def test_features_that_float16_cannot_hold_are_refused(clip: BackboneStage, value: float) -> None:
    with pytest.raises(ValueError, match="film are not finite in float16"):
        clip.finish(ITEM, [np.full(128, value, np.float32)] * 3)


def windows(stage: BackboneStage, count: int) -> list[Window]:
    request = stage.request(ITEM)
    edge, frames = request.view.short_side, request.times_s.shape[1]
    noise = np.random.default_rng(3).integers(0, 256, (count, frames, edge, edge, 3))
    pictures = noise.astype(np.uint8)
    pictures.flags.writeable = False  # as the decoder's shared memory is
    return [Window("clip", i, each, request.times_s[i]) for i, each in enumerate(pictures)]


@pytest.mark.parametrize("name", ["clip", "slowfast", "i3d"])
def test_a_stage_gives_the_rows_that_its_network_gives_in_batches_of_any_size(name: str) -> None:
    rows = []
    for batch_size in (3, 2):
        made = stage(name, batch_size=batch_size)
        made.setup()
        asked = windows(made, 3)
        parts = (asked[i : i + batch_size] for i in range(0, 3, batch_size))
        results = [each for part in parts for each in made.encode(ITEM, part)]
        rows.append(made.finish(ITEM, results)[name])
    plain = create(name, preset="tiny").encode(np.stack([each.frames for each in asked]))
    for row in rows:
        np.testing.assert_allclose(row, plain, rtol=2e-3, atol=2e-3)  # float16


def test_precision_changes_rows_and_recipe_and_compiling_does_not(clip: BackboneStage) -> None:
    low = stage(precision="bfloat16")
    assert low.recipe({}).id != clip.recipe({}).id
    assert dict(low.params()) == {**clip.params(), "precision": "bfloat16"}
    assert stage(compile=True, batch_size=3).recipe({}).id == clip.recipe({}).id
    low.setup()
    asked = windows(low, 3)
    rows = [each.finish(ITEM, each.encode(ITEM, asked))["clip"] for each in (low, clip)]
    assert not np.array_equal(*rows)
    np.testing.assert_allclose(*rows, rtol=0.1, atol=0.1)
    with pytest.raises(ValueError, match="'float32' or 'bfloat16'"):
        stage(precision="float16")


def test_several_rows_of_a_window_fill_the_grid_and_the_spare_one_is_dropped(
    clip: BackboneStage,
) -> None:
    pairs = [
        np.stack([np.full(128, value), np.full(128, value + 1)]).astype(np.float32)
        for value in (0, 2)
    ]
    assert clip.finish(ITEM, pairs)["clip"][:, 0].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="1 features for the 3 clips"):
        clip.finish(ITEM, pairs[:1])


def test_a_closed_stage_holds_no_network() -> None:
    made = stage()
    made.setup()
    made.close()
    with pytest.raises(ValueError, match="used before its setup"):
        made.encode(ITEM, [])


def test_a_backbone_asks_for_frames_of_every_clip_at_its_own_size(clip: BackboneStage) -> None:
    request = clip.request(ITEM)
    assert request.times_s.tolist() == [[0.5], [1.5], [2.5]]
    assert (request.view.short_side, request.inclusive) == (64, False)


@pytest.mark.parametrize("name", ["clip", "slowfast", "i3d", "i3d_flow", "vgg", "captions"])
def test_fast_pixels_are_asked_for_and_make_another_recipe(name: str) -> None:
    kind = STAGES.get(name)
    told = {"dataset": "custom", "clip_len_s": 1.0}
    plain, exact, fast = (
        kind(PipelineConfig.model_validate(told | decode).context, kind.Options())
        for decode in ({}, {"decode": {"mode": "exact"}}, {"decode": {"mode": "fast"}})
    )
    assert exact.recipe({}).id == plain.recipe({}).id
    assert fast.recipe({}).id != plain.recipe({}).id
    assert fast.recipe({}).params["pixels"] == "fast"
    assert "pixels" not in plain.params()
    for made, mode in ((exact, "exact"), (fast, "fast")):
        made.setup()
        assert made.request(ITEM).view.mode == mode


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "slowfast", "i3d"])
def test_declared_lengths_are_those_of_the_published_networks(name: str) -> None:
    made = stage(name, preset="full")
    made.setup()  # compares the network that it builds with what was declared
    assert (
        made.schema.arrays[name].shape
        == {"clip": (512,), "slowfast": (2304,), "i3d": (1024,)}[name]
    )


def test_another_declared_length_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STAGES.get("clip"), "dims", {"tiny": 5})
    with pytest.raises(ValueError, match="128-d features, the stage declares 5"):
        stage().setup()


def test_options_of_the_backbone_are_passed_on_and_change_the_recipe() -> None:
    same = stage(options={"model": "tiny"})
    assert same.schema == stage().schema
    assert same.recipe({}).id != stage().recipe({}).id
    with pytest.raises(UsageError, match="widht"):
        _ = stage(options={"widht": 3}).schema


@pytest.mark.parametrize(("encoder", "preset"), [key for key in KNOWN_DIMS if key[1] == "tiny"])
def test_declared_lengths_of_text_encoders_are_those_of_the_networks(
    encoder: str, preset: Any
) -> None:
    built = build_encoder(TextOptions(encoder=encoder, preset=preset))
    assert (built.dim, built.pooled_dim) == KNOWN_DIMS[encoder, preset]


def test_an_unusual_text_encoder_is_built_to_know_its_lengths() -> None:
    assert text_dims(TextOptions(encoder="hash", options={"dim": 12})) == (12, 12)


def test_weights_are_known_by_the_bytes_of_their_files_not_by_their_names(tmp_path: Path) -> None:
    for name, content in (("a.pt", b"one"), ("b.pt", b"one"), ("c.pt", b"two")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (weights_params(tmp_path / f"{name}.pt", 0) for name in "abc")
    assert a == b != c
    folder = weights_params(tmp_path, 0)
    (tmp_path / "c.pt").write_bytes(b"three")
    assert weights_params(tmp_path, 0) != folder
    assert weights_params(None, 3) == {"kind": "random", "seed": 3}
    with pytest.raises(UsageError, match="does not exist"):
        weights_params(tmp_path / "d.pt", 0)
