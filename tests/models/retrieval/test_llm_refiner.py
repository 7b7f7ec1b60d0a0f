from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import UsageError
from models.llama_files import extract_layers, layers_bytes, layers_file_sha256, read_layers
from models.retrieval import RetrievalModel, create_model
from models.retrieval.flow import Memory
from models.retrieval.plugins.llm_refiner import LLMRefiner, memory_of, rows_of
from models.retrieval.testing import alone, random_batch
from models.retrieval.types import StepContext
from tests.models.tiny_llama import hugging_face_folder

SMALL: dict[str, Any] = {
    "video_dim": 18,
    "text_dim": 12,
    "hidden": 16,
    "heads": 4,
    "feedforward": 24,
    "dropout": 0.0,
    "input_dropout": 0.0,
}
LLM: dict[str, Any] = {
    "weights": "random",
    "layers": (0, 1),
    "numbers": "float32",
    "llm_width": 32,
    "llm_heads": 4,
}
BATCH = random_batch([7, 5, 6], [3, 4, 2])


def model(base: str = "qd_detr", **options: Any) -> RetrievalModel:
    torch.manual_seed(0)
    return create_model(base, **SMALL, plugins={"llm_refiner": LLM | options}).eval()


def refiner_of(built: RetrievalModel) -> LLMRefiner:
    found = built.refiners[0]
    assert isinstance(found, LLMRefiner)
    return found


@pytest.fixture(scope="module")
def layers_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    path = folder / "layers.safetensors"
    layers = extract_layers(hugging_face_folder(folder / "hf"), [1, 2, 3], dtype="float32")
    path.write_bytes(layers_bytes(layers))
    return path


def from_file(path: Path, **options: Any) -> RetrievalModel:
    chosen = {"weights": "file", "layers_file": str(path), "layers": (1, 3)}
    return model(**(chosen | options))


def test_gradients_reach_the_two_matrices_and_no_frozen_weight() -> None:
    built = model().train()
    torch.stack(list(built.losses(BATCH, StepContext()).values())).sum().backward()
    refiner = refiner_of(built)
    for matrix in (refiner.lift, refiner.lower):
        assert matrix.weight.grad is not None
        assert matrix.weight.grad.abs().max() > 0
    assert refiner.layers is not None
    assert not list(refiner.layers.parameters())
    assert all(each.grad is None and not each.requires_grad for each in refiner.layers.buffers())


def test_frozen_weights_are_in_no_state_dict(layers_file: Path) -> None:
    for built in (model(), from_file(layers_file)):
        names = {key for key in built.state_dict() if key.startswith("refiners")}
        assert names == {"refiners.0.lift.weight", "refiners.0.lower.weight"}


@torch.no_grad()
def test_layers_come_from_the_file_by_their_number_in_the_whole_network(layers_file: Path) -> None:
    built = from_file(layers_file, final_norm="loaded")
    frozen = refiner_of(built).layers
    assert frozen is not None
    held = extract_layers(layers_file.parent / "hf", [1, 3], dtype="float32")
    assert torch.equal(frozen.layers[1].get_buffer("q"), held.layers[3]["q"])
    assert torch.equal(frozen.get_buffer("norm"), held.norm)
    assert refiner_of(built).lift.weight.shape == (64, 16)
    with pytest.raises(UsageError, match=r"holds layers 1-3, and asked for are 3-4"):
        from_file(layers_file, layers=(3, 4))


def test_the_recipe_holds_the_hash_of_the_file(layers_file: Path, tmp_path: Path) -> None:
    built = from_file(layers_file)
    options = built.recipe["plugins"]["llm_refiner"]
    assert options["layers_sha256"] == layers_file_sha256(layers_file)
    again = create_model(**built.recipe)
    assert again.recipe == built.recipe
    other = extract_layers(layers_file.parent / "hf", [1, 3], dtype="bfloat16")
    (tmp_path / "other.safetensors").write_bytes(layers_bytes(other))
    moved = options | {"layers_file": str(tmp_path / "other.safetensors")}
    with pytest.raises(UsageError, match=r"was built with layers .* holds"):
        create_model(**(built.recipe | {"plugins": {"llm_refiner": moved}}))


def test_rotary_positions_that_are_scaled_are_refused(layers_file: Path, tmp_path: Path) -> None:
    """As those of Llama 3.1, whose `rope_type` is `llama3`."""
    held = read_layers(layers_file)
    scaled, path = replace(held, spec=replace(held.spec, rope_kind="llama3")), tmp_path / "scaled"
    path.write_bytes(layers_bytes(scaled))
    with pytest.raises(UsageError, match=r"scales its rotary positions \(llama3\).*rope to false"):
        from_file(path, rope=True)
    assert refiner_of(from_file(path)).layers is not None


def test_without_a_file_the_error_says_how_to_make_one() -> None:
    with pytest.raises(UsageError, match=r"trainer llm-layers.*random, identity, mlp"):
        model(weights="file")


def test_random_layers_are_said_to_be_random(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model(weights="identity")
        assert not caplog.records
        model()
    assert "random numbers" in caplog.text


@torch.no_grad()
def test_over_time_a_clip_hears_of_others_and_a_sample_of_none() -> None:
    refiner = refiner_of(model())
    x = torch.randn(3, 7, 16)
    memory = Memory(x, BATCH.video_mask, x, x, BATCH.video_mask, x)
    before = refiner(memory).clip
    changed = x.clone()
    changed[0, 2] += 1
    after = refiner(replace(memory, clip=changed, kv=changed)).clip
    assert (after[0] - before[0]).abs().amax(-1)[:7].min() > 1e-4
    torch.testing.assert_close(after[1:], before[1:])
    # the global token is a row like the clips (Eq. 8)
    told, other = (replace(memory, global_token=x[:, 0] + more) for more in (0, 1))
    assert (refiner(told).clip - refiner(other).clip)[0].abs().amax(-1).min() > 1e-4


@torch.no_grad()
def test_over_the_batch_a_clip_hears_of_the_same_row_of_other_samples_alone() -> None:
    refiner = refiner_of(model(attend="batch"))
    x = torch.randn(3, 7, 16)
    memory = Memory(x, BATCH.video_mask, x, x, BATCH.video_mask, x)
    before = refiner(memory).clip
    changed = x.clone()
    changed[0, 2] += 1
    moved = (refiner(replace(memory, clip=changed, kv=changed)).clip - before).abs().amax(-1)
    assert moved[:, 2].min() > 1e-4
    assert moved[:, [0, 1, 3, 4, 5, 6]].max() < 1e-6


@torch.no_grad()
def test_predictions_depend_on_the_batch_only_if_it_attends_over_it() -> None:
    for attend, same in (("time", True), ("batch", False)):
        built = model(attend=attend)
        together, by_itself = built(BATCH).spans[:1], built(alone(BATCH, 0)).spans
        assert torch.allclose(together, by_itself, atol=1e-5) == same, attend


@pytest.mark.parametrize("base", ["qd_detr", "moment_detr"])
@torch.no_grad()
def test_all_rows_that_the_decoder_reads_are_refined(base: str) -> None:
    built = model(base)
    memory = built.fuser(built.encoders(BATCH))
    rows = rows_of(memory)
    token = 0 if memory.global_token is None else 1
    assert rows.x.shape[1] == memory.kv.shape[1] + token
    back = memory_of(memory, rows.x)
    assert torch.equal(back.kv, memory.kv)
    assert torch.equal(back.clip, memory.clip)
    refined = refiner_of(built)(memory)
    assert refined.kv.shape == memory.kv.shape
    assert torch.equal(refined.clip, refined.kv[:, : memory.clip.shape[1]])
    assert (refined.global_token is None) == (memory.global_token is None)


@torch.no_grad()
@pytest.mark.parametrize("base", ["moment_detr", "eatr"])
def test_words_are_refined_with_the_clips_or_left_as_they_were(base: str) -> None:
    """Their memory is seven clips and four words. In either scope a changed clip is heard of by the
    other clips; a changed word is, if words are refined."""
    built = model(base, scope="clip")
    memory = built.fuser(built.encoders(BATCH))
    assert memory.kv.shape[1] == 7 + 4
    everything = model(base).refiners[0](memory)
    clips = refiner_of(built)(memory)
    assert torch.equal(clips.kv[:, 7:], memory.kv[:, 7:])
    assert (everything.kv[:, 7:] - memory.kv[:, 7:]).abs().max() > 1e-3
    for refined in (everything, clips):
        assert torch.equal(refined.clip, refined.kv[:, :7])
        assert (refined.clip - memory.clip).abs().max() > 1e-3

    other = memory.kv.clone()
    other[:, 7] += 1
    changed = replace(memory, kv=other)
    assert torch.equal(refiner_of(built)(changed).clip, clips.clip)
    assert (model(base).refiners[0](changed).clip - everything.clip).abs().max() > 1e-5


@torch.no_grad()
@pytest.mark.parametrize("scope", ["clip", "kv"])
@pytest.mark.parametrize("base", ["moment_detr", "eatr"])
def test_in_either_scope_padding_and_other_samples_change_nothing(base: str, scope: str) -> None:
    built = model(base, scope=scope)
    together, by_itself = built(BATCH), built(alone(BATCH, 1))
    for name in ("logits", "spans"):
        one, other = getattr(together, name)[1:2], getattr(by_itself, name)
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.saliency[1:2, :5], by_itself.saliency, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("base", ["qd_detr", "tr_detr"])
def test_without_words_in_the_memory_both_scopes_are_the_same(base: str) -> None:
    clips, everything = (model(base, scope=scope)(BATCH).logits for scope in ("clip", "kv"))
    assert torch.equal(clips, everything)


@torch.no_grad()
def test_the_controls_differ_from_each_other_and_from_the_layers() -> None:
    found = [
        model(weights=weights)(BATCH).logits for weights in ("random", "identity", "mlp", "none")
    ]
    for i, one in enumerate(found):
        assert all((one - other).abs().max() > 1e-4 for other in found[:i])
    assert refiner_of(model(weights="identity")).layers is None


@torch.no_grad()
def test_rope_causal_final_norm_and_residual_each_change_the_memory() -> None:
    plain = model()(BATCH).logits
    for option in (
        {"rope": True},
        {"causal": True},
        {"final_norm": "none"},
        {"refiner_residual": True},
        {"llm_seed": 1},
        {"llm_kv_heads": 2},
    ):
        assert (model(**option)(BATCH).logits - plain).abs().max() > 1e-4, option


@torch.no_grad()
def test_bfloat16_weights_stay_near_float32() -> None:
    exact, near = model()(BATCH), model(numbers="bfloat16")(BATCH)
    assert (exact.spans - near.spans).abs().max() < 0.02
    assert near.spans.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"attend": "batch", "rope": True}, "has no order"),
        ({"attend": "batch", "causal": True}, "has no order"),
        ({"final_norm": "loaded"}, "nothing to load"),
        ({"weights": "embedded"}, "set final_norm: loaded"),
        ({"weights": "embedded", "final_norm": "loaded", "rope": True}, "Meta's"),
        ({"layers": (2, 1)}, "ascending"),
        ({"layers": ()}, "ascending"),
        ({"layers": (-1, 0)}, "zero-based"),
        ({"llm_heads": 5}, "multiple"),
        ({"llm_kv_heads": 3}, "multiple"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        model(**options)
