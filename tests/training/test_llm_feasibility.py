from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from data.errors import UsageError
from models.llama_files import LlamaLayers, LlamaSpec, layers_bytes
from models.retrieval.parts.llama_layers import random_layers
from training.cli import app
from training.feasibility.commands import points
from training.feasibility.inputs import Lift, Triplets, lifted, read_embeddings, read_triplets
from training.feasibility.refining import (
    Context,
    Control,
    Identity,
    MeanShift,
    refined,
    refiner_of,
)
from training.feasibility.study import (
    Setting,
    Study,
    fused,
    is_reasonable,
    mcnemar,
    similarities,
)

SPEC = LlamaSpec(width=32, heads=4, kv_heads=2, hidden=48)
NAMES = [(f"a{i}", f"b{i}", f"c{i}") for i in range(40)]


def layers() -> LlamaLayers:
    numbers = [3, 4]
    tensors = random_layers(SPEC, numbers, seed=1, dtype=torch.float32)
    held = dict(zip(numbers, tensors, strict=True))
    return LlamaLayers(SPEC, held, torch.ones(32), "made up", dict.fromkeys(numbers, ""))


def vectors(seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Pairs share half of what they are, so most triplets are reasonable and some are not."""
    rng = np.random.default_rng(seed)
    shared = np.repeat(rng.normal(size=(40, 8)), 3, axis=0)
    shared[2::3] = rng.normal(size=(40, 8))
    return (0.5 * shared + rng.normal(size=(120, 8))).astype(np.float32)


def study(**options: Any) -> Study:
    return Study(Triplets.of(NAMES), vectors(), layers(), resamples=200, **options)


def cell(**changes: Any) -> Setting:
    return Setting(
        **{"layers": (3, 4), "control": "none", "alpha": 0.0, "p": 0.0, "seed": 0} | changes
    )


@pytest.mark.parametrize("how", ["pad", "orth", "tile"])
def test_lifting_changes_no_similarity(how: Lift) -> None:
    x = vectors()
    wide = lifted(x, 36, how)
    assert wide.shape == (120, 36)
    np.testing.assert_allclose(wide @ wide.T, x @ x.T, atol=1e-4)


def test_vectors_wider_than_the_network_are_refused() -> None:
    with pytest.raises(UsageError, match="8 features do not fit an LLM of width 4"):
        lifted(vectors(), 4, "pad")


def test_a_triplet_is_reasonable_if_its_pair_is_at_least_as_alike_as_any_other() -> None:
    pairs = np.array([[0.5, 0.5, 0.1], [0.5, 0.6, 0.1], [0.5, 0.1, 0.6], [0.9, 0.1, 0.2]])
    assert is_reasonable(pairs).tolist() == [True, False, False, True]


def test_similarities_are_those_of_the_three_pairs() -> None:
    x = np.array([[[1, 0], [3, 4], [0, 2]]], np.float32)
    np.testing.assert_allclose(similarities(x, "dot"), [[3, 0, 8]])
    np.testing.assert_allclose(similarities(x, "cos"), [[0.6, 0, 0.8]])


def test_fusing_mixes_in_a_random_vector_of_the_concepts_own_length() -> None:
    x = vectors()
    assert np.array_equal(fused(x, 0.0, 0.5, 0), x)
    only = fused(x, 1.0, 0.0, 0)
    np.testing.assert_allclose(np.linalg.norm(only, axis=1), np.linalg.norm(x, axis=1), rtol=1e-5)
    np.testing.assert_allclose(fused(x, 0.3, 0.0, 0), 0.7 * x + 0.3 * only, atol=1e-6)
    assert np.array_equal(fused(x, 0.3, 0.2, 5), fused(x, 0.3, 0.2, 5))
    assert 0.3 < (fused(x, 1.0, 0.4, 0) == 0).mean() < 0.5
    assert not fused(x, 1.0, 1.0, 0).any()


@pytest.mark.parametrize(
    ("improved", "deteriorated", "p"), [(0, 0, 1.0), (5, 0, 0.0625), (3, 3, 1.0), (1, 8, 0.0390625)]
)
def test_mcnemar_is_the_exact_test_of_a_fair_coin(
    improved: int, deteriorated: int, p: float
) -> None:
    # scipy.stats.binomtest(min, n, 0.5).pvalue gives the same numbers.
    assert mcnemar(improved, deteriorated) == pytest.approx(p)


def test_the_identity_changes_nothing_and_the_layers_something() -> None:
    still = study().outcome(cell(control="identity"))
    assert (still.improved, still.deteriorated, still.p_value) == (0, 0, 1.0)
    assert still.unreasonable > 0
    assert still.unreasonable + still.reasonable == 40
    assert still.cosine_before == pytest.approx(still.cosine_after, abs=1e-6)
    moved = study().outcome(cell())
    assert moved.cosine_after != pytest.approx(moved.cosine_before, abs=1e-3)
    assert moved.difference == pytest.approx((moved.improved - moved.deteriorated) / 40)
    low, high = moved.difference_ci
    assert low <= moved.difference <= high


def test_judged_by_the_fused_vectors_only_the_refinement_counts() -> None:
    mixed = cell(control="identity", alpha=0.9)
    by_text, by_fused = study().outcome(mixed), study(before="fused").outcome(mixed)
    assert by_fused.improved == by_fused.deteriorated == 0
    assert by_text.deteriorated > 0


def test_roles_drawn_by_lot_make_a_third_reasonable() -> None:
    many = Triplets.of([(f"a{i}", f"b{i}", f"c{i}") for i in range(2000)])
    x = np.random.default_rng(0).normal(size=(6000, 8)).astype(np.float32)
    found = Study(many, x, layers(), resamples=2).outcome(cell(control="permuted"))
    assert found.reasonable / 2000 == pytest.approx(1 / 3, abs=0.04)


def test_context_decides_which_tokens_see_each_other() -> None:
    rows, wide = Triplets.of(NAMES).rows, lifted(vectors(), 32, "pad")
    for refiner in (Identity(), MeanShift()):
        alone = refined(refiner, wide, rows, "single")
        scale = 2.0 if isinstance(refiner, MeanShift) else 1.0
        np.testing.assert_allclose(alone, scale * wide[rows], rtol=1e-6)
    in_threes = refined(MeanShift(), wide, rows, "triplet")
    np.testing.assert_allclose(in_threes, wide[rows] + wide[rows].mean(1, keepdims=True), atol=1e-5)
    together = refined(MeanShift(), wide, rows, "all")
    np.testing.assert_allclose(together, wide[rows] + wide.mean(0), atol=1e-5)


@pytest.mark.parametrize("context", ["triplet", "single"])
def test_concepts_that_go_through_in_pieces_are_as_if_they_went_alone(context: Context) -> None:
    """More sequences than go through at once: 600 triplets, and 1800 concepts by themselves."""
    triplets = Triplets.of([(f"a{i}", f"b{i}", f"c{i}") for i in range(600)])
    wide = np.random.default_rng(0).normal(size=(1800, 32)).astype(np.float32)
    layer = refiner_of(
        "none", layers(), [3, 4], final_norm="ones", rope=False, causal=False, seed=0
    )
    together = refined(layer, wide, triplets.rows, context)
    for i in (0, 300, 599):
        by_itself = refined(layer, wide, triplets.rows[i : i + 1], context)
        np.testing.assert_allclose(together[i : i + 1], by_itself, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.gpu
@pytest.mark.parametrize("control", ["none", "random-weights", "mean-shift"])
def test_a_gpu_finds_what_the_cpu_finds(control: Control) -> None:
    here, there = (
        study(device=device).outcome(cell(control=control)) for device in ("cpu", "cuda")
    )
    assert (here.improved, here.deteriorated) == (there.improved, there.deteriorated)
    assert here.cosine_after == pytest.approx(there.cosine_after, abs=1e-5)


def test_points_are_ranges_with_both_ends_or_lists() -> None:
    assert points("--alpha", "0:1:0.25") == [0, 0.25, 0.5, 0.75, 1]
    assert points("--alpha", "0.3,0.9") == [0.3, 0.9]
    for wrong in ("0:2:0.5", "a", "0:1", "1:0:0.1", "0:1:0"):
        with pytest.raises(UsageError, match="--alpha takes values from 0 to 1"):
            points("--alpha", wrong)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [json.dumps(dict(zip("abc", names, strict=True))) for names in NAMES]
    (tmp_path / "triplets.jsonl").write_text("\n".join(rows))
    names = [name for row in NAMES for name in row]
    np.savez(tmp_path / "clip.npz", **dict(zip(names, vectors(), strict=True)))
    held = layers()
    from models.llama_files import _sum

    sums = {number: _sum(tensors) for number, tensors in held.layers.items()}
    whole = LlamaLayers(held.spec, held.layers, held.norm, held.source, sums)
    (tmp_path / "layers.safetensors").write_bytes(layers_bytes(whole))
    return tmp_path


def call(folder: Path, *words: str, code: int = 0) -> str:
    args = ["llm-feasibility", "--triplets", str(folder / "triplets.jsonl")]
    args += ["--embeddings", str(folder / "clip.npz")]
    args += ["--llama-layers", str(folder / "layers.safetensors")]
    found = CliRunner().invoke(app, [*args, *words])
    assert found.exit_code == code, found.output
    return found.output


def test_the_command_prints_a_table_and_writes_json_and_figure(folder: Path) -> None:
    out, picture = folder / "out.json", folder / "out.svg"
    words = ["--alpha", "0,0.5", "--p", "0,1", "--seeds", "2", "--layers", "3", "--layers", "3-4"]
    text = call(folder, *words, "--json", str(out), "--figure", str(picture), "--ci-samples", "50")
    assert "mean-shift" in text
    found = json.loads(out.read_text())
    # two sets of layers x five kinds x (alpha 0: no p; alpha 0.5: two p) x two seeds
    assert len(found["outcomes"]) == 2 * 5 * 3 * 2
    assert {each["control"] for each in found["outcomes"]} == {
        "none", "identity", "random-weights", "mean-shift", "permuted",
    }  # fmt: skip
    drawn = ElementTree.fromstring(picture.read_text())
    assert len(drawn.findall(".//{http://www.w3.org/2000/svg}polyline")) > 0


def test_concepts_of_a_small_study_get_their_matrices(folder: Path) -> None:
    few = "\n".join((folder / "triplets.jsonl").read_text().splitlines()[:4])
    (folder / "triplets.jsonl").write_text(few)
    out = folder / "out.json"
    call(folder, "--alpha", "0", "--p", "0", "--seeds", "1", "--json", str(out))
    cosines = json.loads(out.read_text())["cosines"]
    for name in ("before", "after"):
        matrix = np.array(cosines[name])
        assert matrix.shape == (12, 12)
        np.testing.assert_allclose(np.diag(matrix), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--layers", "9"], "asks for layer 9, and"),
        (["--control", "magic"], "no control 'magic'; allowed: identity"),
        (["--ci-level", "2"], "--ci-level is a share"),
        (["--embeddings", "absent.npz"], "no embeddings at absent.npz"),
        (["--device", "tpu"], "--device='tpu' is no device; allowed: auto, cpu, cuda"),
        (["--device", "mps"], "--device='mps' is not supported; allowed: auto, cpu, cuda"),
        (["--triplets", "absent.jsonl"], "cannot read the triplets 'absent.jsonl'"),
    ],
)
def test_the_command_refuses_what_it_cannot_use(
    folder: Path, words: list[str], problem: str
) -> None:
    assert problem in " ".join(call(folder, *words, code=2).split())


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_refused_and_auto_does_without(
    folder: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    said = " ".join(call(folder, "--device", device, code=2).split())
    assert f"--device={device}, but torch sees no GPU here; use cpu or auto" in said
    out = folder / "out.json"
    few = ["--alpha", "0", "--p", "0", "--seeds", "1", "--control", "identity", "--json", str(out)]
    call(folder, "--device", "auto", *few)
    assert json.loads(out.read_text())["options"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds no triplets"),
        ("{", "line 1 is not JSON"),
        ('{"a": "x", "b": "y"}', "line 1: a triplet is"),
        ('{"a": "x", "b": "x", "c": "z"}', "line 1: the concepts of a triplet must differ"),
        ("[1, 2]", "line 1: expected a JSON object"),
    ],
)
def test_a_row_that_is_no_triplet_is_named(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(UsageError, match=problem):
        read_triplets(tmp_path / "t.jsonl")


def test_embeddings_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.npz"
    np.savez(path, sock=np.ones(3), shoe=np.ones(4))
    with pytest.raises(UsageError, match=r"no vector for 1 of 2 concepts, first 'shoes'.*'shoe'"):
        read_embeddings(path, ["sock", "shoes"])
    with pytest.raises(UsageError, match="must be of one shape"):
        read_embeddings(path, ["sock", "shoe"])
    np.savez(path, sock=np.zeros(3))
    with pytest.raises(UsageError, match=r"'sock' in .* is zero or not finite"):
        read_embeddings(path, ["sock"])
    np.savez(path, sock=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UsageError, match=r"not an \.npz of plain arrays"):
        read_embeddings(path, ["sock"])
