"""Frozen layers against transformers' and against a literal block in Meta's way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.llama_files import LlamaLayers, LlamaSpec, extract_layers
from models.retrieval.parts.llama_layers import FrozenLlama, random_layers, rotated
from tests.models.tiny_llama import (
    HEADS,
    LAYERS,
    WIDTH,
    hugging_face_folder,
    interleaved,
    meta_folder,
    transformers_llama,
)

SPEC = LlamaSpec(32, 4, 2, 48)


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> LlamaLayers:
    folder = hugging_face_folder(tmp_path_factory.mktemp("hf"))
    return extract_layers(folder, range(LAYERS), dtype="float32")


def frozen(layers: LlamaLayers, **options: bool) -> FrozenLlama:
    return FrozenLlama(layers.spec, list(layers.layers.values()), layers.norm, **options)


def rows(count: int = 7, samples: int = 2) -> Tensor:
    return torch.randn(samples, count, WIDTH, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_with_rotary_positions_and_causal_it_is_the_language_model(layers: LlamaLayers) -> None:
    x = rows()
    expected = transformers_llama()(inputs_embeds=x).last_hidden_state
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    found = frozen(layers, rope=True, causal=True)(x, mask)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_without_positions_every_row_reads_every_row(layers: LlamaLayers) -> None:
    x, model = rows(), transformers_llama()
    head, open_mask = WIDTH // HEADS, torch.zeros(2, 1, 7, 7)
    still = torch.ones(2, 7, head), torch.zeros(2, 7, head)
    expected = x
    for layer in model.layers:
        found = layer(expected, attention_mask=open_mask, position_embeddings=still)
        expected = found[0] if isinstance(found, tuple) else found
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    torch.testing.assert_close(frozen(layers)(x, mask), model.norm(expected), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        frozen(layers, final_norm=False)(x, mask), expected, atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_rotary_positions_are_metas_complex_numbers_in_another_order() -> None:
    head, half = WIDTH // HEADS, WIDTH // HEADS // 2
    weight, x = torch.randn(WIDTH, WIDTH), rows()
    place = torch.arange(7).expand(2, 7)
    ours = rotated(x @ weight.T, place, HEADS, 10000.0).view(2, 7, HEADS, head)
    theirs = torch.view_as_complex((x @ interleaved(weight).T).view(2, 7, HEADS, half, 2))
    frequency = 10000.0 ** -(torch.arange(0, head, 2) / head)
    angle = torch.outer(torch.arange(7).float(), frequency)
    theirs = theirs * torch.polar(torch.ones_like(angle), angle)[None, :, None]
    ours_scores = torch.einsum("bnhd,bmhd->bhnm", ours, ours)
    flat = torch.view_as_real(theirs).flatten(-2)
    torch.testing.assert_close(
        ours_scores, torch.einsum("bnhd,bmhd->bhnm", flat, flat), atol=1e-3, rtol=1e-4
    )


@torch.no_grad()
def test_metas_layout_computes_the_same(
    layers: LlamaLayers, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder: Path = meta_folder(tmp_path_factory.mktemp("meta"))
    meta = extract_layers(folder, range(LAYERS), dtype="float32")
    mask = torch.ones(2, 7, dtype=torch.bool)
    for rope in (False, True):
        a, b = frozen(layers, rope=rope)(rows(), mask), frozen(meta, rope=rope)(rows(), mask)
        assert torch.equal(a, b)


@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@torch.no_grad()
def test_padding_and_other_samples_change_nothing(
    layers: LlamaLayers, rope: bool, causal: bool
) -> None:
    net, x = frozen(layers, rope=rope, causal=causal), rows(9, 3)
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[1, 3:5] = False  # clips that end before the words behind them
    mask[2, 6:] = False
    found = net(x, mask)
    noisy = net(torch.where(mask.unsqueeze(-1), x, 9.0), mask)
    torch.testing.assert_close(noisy[mask], found[mask], atol=1e-5, rtol=1e-5)
    for row in range(3):
        kept = x[row : row + 1, mask[row]]
        alone = net(kept, torch.ones(1, kept.shape[1], dtype=torch.bool))
        torch.testing.assert_close(alone[0], found[row, mask[row]], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_bfloat16_stays_near_float32(layers: LlamaLayers) -> None:
    half = [{k: x.bfloat16() for k, x in each.items()} for each in layers.layers.values()]
    mask = torch.ones(2, 7, dtype=torch.bool)
    exact = frozen(layers)(rows(), mask)
    near = FrozenLlama(layers.spec, half, layers.norm)(rows(), mask)
    assert near.dtype == torch.float32
    assert (near - exact).norm() < 0.03 * exact.norm()


def test_checkpointing_gives_the_same_gradient(layers: LlamaLayers) -> None:
    mask, found = torch.ones(2, 7, dtype=torch.bool), []
    for checkpointing in (False, True):
        x = rows().requires_grad_()
        frozen(layers, checkpointing=checkpointing)(x, mask).square().sum().backward()
        found.append(x.grad)
    assert found[0] is not None
    torch.testing.assert_close(found[1], found[0])


def test_random_layers_leave_the_random_state_and_do_not_depend_on_the_others() -> None:
    before = torch.random.get_rng_state()
    both = random_layers(SPEC, [3, 5], seed=1, dtype=torch.float32)
    assert torch.equal(torch.random.get_rng_state(), before)
    one = random_layers(SPEC, [5], seed=1, dtype=torch.float32)
    assert all(torch.equal(both[1][key], x) for key, x in one[0].items())
    other = random_layers(SPEC, [5], seed=2, dtype=torch.float32)
    assert not torch.equal(other[0]["q"], one[0]["q"])
    assert not torch.equal(both[0]["q"], both[1]["q"])
