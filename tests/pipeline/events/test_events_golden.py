"""The parser against the reference outputs of the shared folder (README there)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.events.oneshot import eatr_clips, oneshot_clips
from pipeline.events.parser import parse
from pipeline.events.recursion import recursive_nodes, relative_threshold
from pipeline.events.scores import BoundaryScorer, boundary_scores

safetensors = pytest.importorskip("safetensors.numpy")


def _load(shared: Path, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    folder = shared / "golden" / "extractors"
    meta = json.loads((folder / f"{name}.json").read_text())
    return meta, safetensors.load_file(folder / f"{name}.safetensors")


def _arguments(setting: dict[str, Any]) -> tuple[int, str, str]:
    edges = setting["edge"]
    if setting["margin"]:
        assert setting["margin"] == setting["s"]
        edges = "margin"
    return setting["s"], setting["kernel"], edges


def test_boundary_scores_equal_the_golden_scores_of_every_setting(shared: Path) -> None:
    meta, tensors = _load(shared, "event_recursion")
    tolerances = {
        t: meta["suggested_tolerance"][f"scores_atol_{t}"] for t in ("float32", "float64")
    }
    compared = 0
    for name in meta["feature_generators"]:
        for index, setting in enumerate(meta["score_settings"]):
            features, wanted = tensors[f"{name}/features"], tensors[f"{name}/scores/{index}"]
            for dtype, atol in tolerances.items():
                scores = boundary_scores(features.astype(dtype), *_arguments(setting))
                np.testing.assert_allclose(scores, wanted, rtol=0, atol=atol, err_msg=name)
            compared += 1
    assert compared == 13 * 8


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_recursion_equals_every_golden_case_split_by_split(shared: Path, dtype: str) -> None:
    meta, tensors = _load(shared, "event_recursion")
    atol = meta["suggested_tolerance"][f"scores_atol_{dtype}"]
    for case in meta["cases"]:
        features = tensors[f"{case['features']}/features"].astype(dtype)
        scorer = BoundaryScorer(
            features, *_arguments(meta["score_settings"][case["score_setting"]])
        )
        scores = scorer.segment(0, len(features))
        rule = meta["recursion_settings"][case["recursion_setting"]]
        threshold = rule["delta"]
        if rule["delta_kind"] == "relative":
            threshold = relative_threshold(scores, rule["delta"])
        nodes = recursive_nodes(scorer, scores, rule["T1"], threshold)
        found = [[n.lo, n.hi, n.clip, n.depth] for n in nodes]
        assert found == [[*node[:3], node[5]] for node in case["nodes"]], case["features"]
        assert sorted(n.clip for n in nodes) == case["boundaries"]
        for node, wanted in zip(nodes, case["nodes"], strict=True):
            assert [node.score, node.mean] == pytest.approx(wanted[3:5], rel=0, abs=atol)
    assert len(meta["cases"]) == 490


def test_oneshot_equals_the_public_detector_on_unpadded_videos(shared: Path) -> None:
    meta, tensors = _load(shared, "event_oneshot")
    compared = 0
    for case in meta["cases"]:
        for sample, length in enumerate(case["lengths"]):
            if length != case["padded_length"]:
                continue  # its threshold depends on the padding: see eatr-compat
            features = tensors[f"{case['name']}/features"][sample]
            clips = oneshot_clips(boundary_scores(features, 2))
            expected = case["boundaries_float64_own_code"][sample][1:-1]
            assert clips.tolist() == expected, (case["name"], sample)
            compared += 1
    assert compared == 8


def test_eatr_compat_equals_the_public_detector_on_every_video_of_every_batch(shared: Path) -> None:
    meta, tensors = _load(shared, "event_oneshot")
    compared = 0
    for case in meta["cases"]:
        for sample, length in enumerate(case["lengths"]):
            features = tensors[f"{case['name']}/features"][sample, :length]
            padded = case["padded_length"]
            clips = eatr_clips(features.astype(np.float64), padded).tolist()
            wanted = case["boundaries_float64_own_code"][sample]
            assert clips == wanted[1:-1], (case["name"], sample)
            np.testing.assert_array_equal(eatr_clips(features, padded), clips)

            events = parse(features, 2.0, 2.0 * length, method="eatr-compat", padded_len=padded)
            # official: (centre, width) over the valid length; a negative width is its bogus span
            centre, width = tensors[f"{case['name']}/spans/{sample}"].T
            official = np.stack([centre - width / 2, centre + width / 2], axis=1)[width > 0]
            ours = events.spans_s / (2.0 * length)
            ours[-1, 1] = (length - 1) / length  # the public code loses the last clip
            np.testing.assert_allclose(ours, official, rtol=0, atol=1e-6)
            compared += 1
    assert compared == 11
