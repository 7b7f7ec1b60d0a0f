"""How many row steps the loop computes for nothing, with captions as long as real ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.captioners.generating import Decoding
from models.captioners.loop import Engine
from models.captioners.loop.steps import ExactSteps, StaticSteps

END = 0


class Countdown(nn.Module):
    """Says the number below the last one; a row that begins with n has n - 1 tokens."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.words = nn.Embedding(most + 1, 1)
        self.words.weight.data = torch.arange(most + 1.0).unsqueeze(1)
        sizes = SimpleNamespace(num_hidden_layers=1, num_attention_heads=1, hidden_size=1)
        self.config = SimpleNamespace(get_text_config=lambda: sizes)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.words

    def forward(self, *, inputs_embeds: Tensor, **rest: Any) -> SimpleNamespace:
        said = (inputs_embeds[:, -1, 0].long() - 1).clamp(min=END)  # also of rows that are over
        logits = nn.functional.one_hot(said, len(self.words.weight)).float()
        return SimpleNamespace(logits=logits.unsqueeze(1))


def steps_per_token(lengths: list[int], steps: type[ExactSteps], **options: Any) -> float:
    """Row steps for each token, the first of each row left out: its prompt gives it."""
    most = max(lengths)
    lm = Countdown(most + 1)
    loop = Engine(lm, device="cpu", dtype=torch.float32, eos={END}, steps=steps, **options)
    given = [torch.full((1, 1), length + 1.0) for length in lengths]
    made = loop.generate(given, [""] * len(given), Decoding(max_new_tokens=most + 1))
    assert [len(row.ids) for row in made] == lengths
    assert loop.counts.tokens == sum(lengths) + len(lengths)
    return loop.counts.row_steps / sum(lengths)


def captions(count: int, mean: float, deviation: float) -> list[int]:
    drawn = np.random.default_rng(0).normal(mean, deviation, count)
    return [int(each) for each in drawn.clip(8, 127)]


@pytest.mark.parametrize("count", [64, 192])
@pytest.mark.parametrize(("mean", "deviation"), [(60, 18), (90, 30)])
def test_a_batch_costs_little_more_than_its_tokens(
    count: int, mean: float, deviation: float
) -> None:
    # specs/captioners.md §3.3 measured 1.6-1.9 for batches that wait for their longest caption and
    # 1.06-1.08 for rows that move together below 75 %; rounding rows up adds a little.
    lengths = captions(count, mean, deviation)
    waiting = steps_per_token(lengths, ExactSteps, compact_below=0.0, max_rows=count)
    exact = steps_per_token(lengths, ExactSteps, max_rows=count)
    static = steps_per_token(lengths, StaticSteps, max_rows=count)
    assert waiting > 1.4
    assert exact < 1.09
    assert static < 1.12


def test_a_long_queue_costs_as_little() -> None:
    lengths = captions(1000, 60, 18)
    queued = steps_per_token(lengths, StaticSteps, max_rows=64)
    assert queued < 1.08
