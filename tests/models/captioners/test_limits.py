"""Figures of specs/captioners.md §3.2: LLaVA-1.5-13B, 636 tokens in, 60 out, on an H200."""

from __future__ import annotations

import pytest

from models.captioners.limits import Transformer, Work, bound, gpu_called, most_rows

LANGUAGE = Transformer(40, 5120, 13824, gated=True, vocab=32000)
VISION = Transformer(23, 1024, 4096, causal=False)
CONNECTOR = 1024 * 5120 + 5120 * 5120


def llava_13b() -> Work:
    flops = VISION.flops(577) + 2 * 576 * CONNECTOR
    return Work.of(LANGUAGE, flops, VISION.layer_weights + CONNECTOR, 636, new_tokens=60)


def test_a_prompt_costs_16_7_teraflops_and_a_step_reads_25_7_gigabytes() -> None:
    work = llava_13b()
    assert work.prompt_flops == pytest.approx(16.7e12, rel=0.005)
    assert work.weight_bytes == pytest.approx(25.7e9, rel=0.005)
    assert work.kv_bytes == pytest.approx(0.819e6, rel=0.005)


@pytest.mark.parametrize(
    ("rows", "step_ms", "captions_hz"),
    [(1, 6.1, 2.6), (16, 8.0, 19.7), (64, 14.1, 29.3), (128, 22.2, 31.9), (204, 31.9, 32.9)],
)
def test_the_limits_are_those_of_the_table(rows: int, step_ms: float, captions_hz: float) -> None:
    gpu = gpu_called("NVIDIA H200")
    assert gpu is not None
    found = bound(llava_13b(), gpu, rows, 60)
    assert 1e3 * found.decode_s * rows / 60 == pytest.approx(step_ms, rel=0.01)
    assert found.captions_hz == pytest.approx(captions_hz, rel=0.01)


def test_two_hundred_captions_fit_beside_the_weights_of_an_h200() -> None:
    gpu, work = gpu_called("NVIDIA H200"), llava_13b()
    assert gpu is not None
    assert most_rows(work, gpu.memory_bytes - work.resident_bytes) == pytest.approx(204, abs=2)
    assert most_rows(work, 0.0) == 1


def test_grouped_keys_and_values_take_less_memory_and_fewer_weights() -> None:
    all_heads, grouped = (
        Transformer(32, 4096, 14336, True),
        Transformer(32, 4096, 14336, True, 1024),
    )
    assert grouped.layer_weights < all_heads.layer_weights
    work, less = (Work.of(each, 0.0, 0, 100, 10) for each in (all_heads, grouped))
    assert less.kv_bytes == work.kv_bytes / 4


def test_a_gpu_is_found_by_a_part_of_its_name_and_an_unknown_one_is_not_guessed() -> None:
    names = ("NVIDIA A100-SXM4-80GB", "NVIDIA A100-PCIE-40GB", "NVIDIA GeForce RTX 4090")
    found = [gpu_called(name) for name in names]
    assert [each.name for each in found if each] == ["A100-SXM4-80GB", "A100", "4090"]
    pcie = gpu_called("NVIDIA A100 80GB PCIe")
    assert pcie is not None
    assert pcie.memory_bytes == pytest.approx(79 * 2**30)
    assert gpu_called("h200") == gpu_called("NVIDIA H200")
    for other in ("GeForce GTX 1080", "NVIDIA L40", "NVIDIA GH200 480GB", "NVIDIA RTX A1000"):
        assert gpu_called(other) is None
