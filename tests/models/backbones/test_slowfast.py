from __future__ import annotations

import json
import math
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.errors import UsageError
from models.backbones import create
from models.backbones.machine import prepared
from models.backbones.slowfast import SlowFastNet, caffe2_name, pytorchvideo_name


@pytest.fixture(scope="module")
def official() -> SlowFastNet:
    return SlowFastNet()


def shapes_of(net: SlowFastNet) -> dict[str, Any]:
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


slow = pytest.mark.slow

GOLDENS = [("slowfast_64_cheap", 64), pytest.param("slowfast_224", 224, marks=slow)]


def close(got: Any, want: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(np.asarray(got), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("case", "size"), GOLDENS)
def test_every_stage_feature_and_logit_equals_the_public_one(
    goldens: Any, official: SlowFastNet, case: str, size: int
) -> None:
    meta, want = goldens.meta(case), goldens.outputs(case)
    backbone = create("slowfast", goldens.weights(shapes_of(official)), size=size)
    net: SlowFastNet = backbone.net  # type: ignore[assignment]  # what SlowFast builds
    for name, frames in goldens.inputs(meta).items():
        batch = backbone.preprocess(torch.from_numpy(frames))
        public = meta["stages"][name]
        for (ours, *maps), theirs in zip(net.endpoints(batch), public, strict=True):
            assert ours == theirs
            for path, out in zip(("slow", "fast"), maps, strict=True):
                facts = public[theirs][path]
                assert list(out.shape) == facts["shape"]
                statistics = [out.mean(), out.std(correction=0), out.min(), out.max()]
                close(torch.stack(statistics), np.array(facts["mean_std_min_max"]))
                if (corner := f"{name}/slice/{theirs}/{path}") in want:
                    close(out[0, :8, :2, :4, :4], want[corner])
        got = backbone.encode(frames)
        close(got, want[f"{name}/feature"])
        close(net.classify(batch).detach(), want[f"{name}/logits"])
        # What the public extractor writes: one step of float16 is 5e-4 of a value.
        np.testing.assert_allclose(
            got.astype(np.float16), want[f"{name}/feature_float16"], rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize(("case", "size"), GOLDENS)
def test_pytorchvideo_weights_load_by_name_and_give_the_public_features(
    goldens: Any, official: SlowFastNet, case: str, size: int
) -> None:
    shapes = {pytorchvideo_name(name): shape for name, shape in shapes_of(official).items()}
    backbone = create("slowfast", goldens.weights(shapes), size=size)
    assert backbone.weights.layout == "PyTorchVideo"
    frames = goldens.inputs(goldens.meta(case))["pub_a"]
    close(backbone.encode(frames), goldens.outputs(case)["pub_a/feature_pytorchvideo_names"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_prepared_for_the_machine_it_gives_the_public_features(
    goldens: Any, official: SlowFastNet, precision: str
) -> None:
    backbone = create("slowfast", goldens.weights(shapes_of(official)), size=64)
    ready = prepared(backbone, precision)
    want = goldens.outputs("slowfast_64_cheap")
    for name, frames in goldens.inputs(goldens.meta("slowfast_64_cheap")).items():
        got, public = ready.encode(frames).ravel(), want[f"{name}/feature"].ravel()
        if precision == "float32":
            close(got, public)
        cosine = got @ public / np.sqrt((got @ got) * (public @ public))
        assert cosine > (0.999999 if precision == "float32" else 0.9999)


@pytest.mark.parametrize(("batch", "size"), [(2, 96), (1, 224), (3, 64)])
def test_pictures_of_any_size_and_batches_of_any_length_are_taken(batch: int, size: int) -> None:
    backbone = create("slowfast", divisor=16, classes=0)
    clips = torch.linspace(-1, 1, batch * 3 * 32 * size * size).view(batch, 3, 32, size, size)
    out = backbone(clips)
    assert out.shape == (batch, backbone.dim)
    close(out[-1:].detach(), backbone(clips[-1:]).detach().numpy())
    with pytest.raises(ValueError, match="takes 32 frames in a clip, got 16"):
        backbone(clips[:, :, :16])


def test_the_names_of_all_three_layouts_follow_the_key_map(
    shared: Path, goldens: Any, official: SlowFastNet
) -> None:
    rows = json.loads((shared / "specs/extractor_keys/slowfast_8x8_r50_keys.json").read_text())
    golden = goldens.meta("slowfast_8x8_r50_key_map")["keys"]
    names = ("pyslowfast", "caffe2", "pytorchvideo")
    assert sorted(
        [[*(row[name] or None for name in names), row["shape"]] for row in rows]
    ) == sorted(golden)
    assert {row["pyslowfast"]: tuple(row["shape"]) for row in rows} == shapes_of(official)
    for row in rows:
        assert caffe2_name(row["pyslowfast"]) == (row["caffe2"] or "")
        assert pytorchvideo_name(row["pyslowfast"]) == row["pytorchvideo"]


def test_a_caffe2_pickle_gives_the_same_network_as_the_state_dict(tmp_path: Path) -> None:
    narrow = {"divisor": 16, "size": 64}
    made = create("slowfast", **narrow)
    state = {k: v for k, v in made.net.state_dict().items() if not k.endswith("tracked")}
    blobs = {caffe2_name(name): value.numpy() for name, value in state.items()}
    blobs["conv1_w_momentum"] = np.zeros(3)
    path = tmp_path / "SLOWFAST.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    loaded = create("slowfast", path, **narrow)
    assert loaded.weights.layout == "Caffe2"
    assert loaded.weights.sha256 == made.weights.sha256
    del blobs["t_pool1_subsample_w"]
    path.write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    with pytest.raises(UsageError, match=r"missing 1 tensors: s1_fuse\.conv_f2s\.weight"):
        create("slowfast", path, **narrow)


@slow
def test_a_full_caffe2_pickle_made_by_the_public_key_map_gives_the_public_features(
    goldens: Any, tmp_path: Path
) -> None:
    """The 552 blobs of SLOWFAST_8x8_R50.pkl, beside what training left in it."""
    rows = goldens.meta("slowfast_8x8_r50_key_map")["keys"]
    state = goldens.weights({own: shape for own, _, _, shape in rows})
    blobs = {blob: state[own].numpy() for own, blob, _, _ in rows if blob}
    assert len(blobs) == 552
    left = {f"{blob}_momentum": np.zeros(1, np.float32) for blob in blobs}
    others = {"lr": np.float32(0.1), "model_iter": np.int64(7)}
    path = tmp_path / "SLOWFAST_8x8_R50.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs | left | others}, protocol=2))
    backbone = create("slowfast", path, size=64)
    assert backbone.weights.layout == "Caffe2"
    frames = goldens.frames("pub_a", 32, 64, 64)
    close(backbone.encode(frames), goldens.outputs("slowfast_64_cheap")["pub_a/feature"])


@pytest.mark.parametrize(
    ("layout", "rename"), [("PySlowFast", str), ("PyTorchVideo", pytorchvideo_name)]
)
def test_files_of_training_code_load_with_what_else_they_hold(
    tmp_path: Path, layout: str, rename: Any
) -> None:
    made = create("slowfast", divisor=16)
    state = {rename(name): value for name, value in made.net.state_dict().items()}
    extra = {"epoch": 196, "cfg": "TRAIN: {}", "optimizer_state": {"state": {}}}
    path = tmp_path / "SLOWFAST_8x8_R50.pyth"
    torch.save({"model_state": state} | extra, path)
    loaded = create("slowfast", path, divisor=16)
    assert loaded.weights.layout == layout
    assert loaded.weights.sha256 == made.weights.sha256


def test_a_wrong_number_of_classes_is_named_with_what_to_do() -> None:
    state = create("slowfast", divisor=32, classes=7).net.state_dict()
    said = r"head\.projection\.weight is \(7, .*expected 400 classes.*has 7 classes.*classes=7"
    with pytest.raises(UsageError, match=said):
        create("slowfast", state, divisor=32)
    assert create("slowfast", state, divisor=32, classes=7).weights.kind == "file"


def test_centred_sampling_takes_every_second_frame_around_the_clip_centre() -> None:
    backbone = create("slowfast", preset="tiny", calibrated=False)
    times = backbone.clip_times(np.array([0.0, 10.0]), 2.0)
    # 64 frames at 30 fps around 11 s: output frames 298, 300, ..., 360 of the fps filter.
    np.testing.assert_allclose(times[1], (np.arange(298, 361, 2) + 0.5) / 30)
    # At the start of the video the first frame is repeated.
    assert times[0][0] == times[0][1] == 0.5 / 30
    assert times.shape == (2, 32)


def native_index(case: dict[str, Any], times: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    base = Fraction(case["time_base"])
    pts = case["pts"]
    ticks = pts.get("list") or [pts["first"] + i * pts["step"] for i in range(pts["n"])]
    start = Fraction(case["container_start_time"])
    at = np.array([float(tick * base - start) for tick in ticks])
    return np.maximum(np.searchsorted(at, times - 1e-6, side="left") - 1, 0)


def test_hero_sampling_selects_the_frames_of_the_public_extractor(goldens: Any) -> None:
    backbone = create("slowfast", preset="tiny", calibrated=False, sampling="hero")
    cases = goldens.meta("frame_sampling_slowfast")["cases"]
    for case in cases:
        base, pts = Fraction(case["time_base"]), case["pts"]
        last = pts["list"][-1] if "list" in pts else pts["first"] + pts["step"] * (pts["n"] - 1)
        end = (last + case["last_duration"]) * base - Fraction(case["container_start_time"])
        clip_len = float(Fraction(case["clip_len"]))
        times = backbone.clip_times(
            np.arange(len(case["clips"])) * clip_len,
            clip_len,
            native_fps=float(Fraction(case["avg_frame_rate"])),
            duration_s=float(end),
        )
        assert times.shape == np.shape(case["clips"]) == (len(case["clips"]), 32)
        assert native_index(case, times).tolist() == case["clips"], case["name"]
    assert len(cases) == 13
    assert sum(len(case["clips"]) for case in cases) == 57


def test_hero_sampling_without_the_native_rate_is_refused() -> None:
    backbone = create("slowfast", preset="tiny", calibrated=False, sampling="hero")
    with pytest.raises(UsageError, match="native_fps and duration_s"):
        backbone.clip_times(np.zeros(1), 2.0)


def test_an_unknown_sampling_is_refused() -> None:
    with pytest.raises(UsageError, match="allowed: centered, hero"):
        create("slowfast", sampling="random")


def test_the_full_network_has_the_published_number_of_parameters(official: SlowFastNet) -> None:
    assert sum(each.numel() for each in official.parameters()) == 34_566_488  # specs §2.2
    assert math.prod(official.head.projection.weight.shape) == 2304 * 400
