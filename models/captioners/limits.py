"""What a caption costs, and what a GPU can do at most: arithmetic only (specs/captioners.md §3.2).

Generation has two halves. Reading the picture and the prompt is bound by arithmetic: FLOPs of the
vision tower and of the prompt's tokens through the language model. Writing is bound by memory:
every step reads all weights once for the whole batch, and the keys and values of each row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["GPUS", "Bound", "Gpu", "Transformer", "Work", "bound", "gpu_called", "most_rows"]


@dataclass(frozen=True)
class Gpu:
    """What a GPU can do, by its data sheet or as measured.

    Args:
        name: as `torch.cuda.get_device_name` has it, or a part of it.
        flops: dense operations per second in bfloat16.
        bytes_s: bytes of memory per second.
        memory_bytes: of memory.
    """

    name: str
    flops: float
    bytes_s: float
    memory_bytes: float


GPUS = (
    # Rates that large multiplications and copies reach, where known, not those of the data sheet.
    Gpu("H200", 790e12, 4.3e12, 139 * 2**30),
    Gpu("H100", 790e12, 3.0e12, 79 * 2**30),
    Gpu("A100-SXM4-80GB", 270e12, 1.9e12, 79 * 2**30),
    Gpu("A100 80GB", 270e12, 1.9e12, 79 * 2**30),
    Gpu("A100", 270e12, 1.45e12, 39 * 2**30),
    Gpu("L40S", 290e12, 0.8e12, 44 * 2**30),
    Gpu("L4", 95e12, 0.28e12, 22 * 2**30),
    Gpu("A10", 100e12, 0.55e12, 22 * 2**30),
    Gpu("4090", 150e12, 0.95e12, 23 * 2**30),
    Gpu("V100", 100e12, 0.8e12, 31 * 2**30),
    Gpu("T4", 50e12, 0.27e12, 14.5 * 2**30),
)


def gpu_called(name: str) -> Gpu | None:
    """The GPU of a device name; None if it is not in the table: "GH200" is no H200, "L40" no L4."""
    return next(
        (each for each in GPUS if re.search(rf"\b{each.name}(?!\d)", name, re.IGNORECASE)), None
    )


@dataclass(frozen=True)
class Transformer:
    """Sizes of a transformer; all a cost needs.

    Args:
        layers: how many.
        dim: width of the states.
        ffn: width between the two (three if `gated`) multiplications of the feed-forward part.
        gated: whether that part has a gate (LLaMA).
        kv_dim: width of keys and of values; None: `dim`.
        vocab: rows of the output head; 0 without one.
        causal: whether a token sees only those before it.
    """

    layers: int
    dim: int
    ffn: int
    gated: bool = False
    kv_dim: int | None = None
    vocab: int = 0
    causal: bool = True

    @property
    def layer_weights(self) -> int:
        """Weights of the multiplications of all layers."""
        kv = self.dim if self.kv_dim is None else self.kv_dim
        attention = 2 * self.dim * self.dim + 2 * self.dim * kv
        return self.layers * (attention + (3 if self.gated else 2) * self.dim * self.ffn)

    def flops(self, tokens: int) -> float:
        """Of `tokens` tokens at once, attention over each other included."""
        attention = (2 if self.causal else 4) * self.layers * self.dim * tokens * tokens
        return 2.0 * self.layer_weights * tokens + attention


@dataclass(frozen=True)
class Work:
    """What one caption costs.

    Args:
        prompt_flops: everything before the first new token: vision, connector, prompt.
        token_flops: one new token.
        weight_bytes: read by every step, whatever the batch.
        kv_bytes: keys and values of one token of one row.
        prompt_tokens: tokens before the first new one, those of pictures included.
        resident_bytes: all weights, those of the vision tower included.
        new_tokens: most new tokens of a caption.
    """

    prompt_flops: float
    token_flops: float
    weight_bytes: float
    kv_bytes: float
    prompt_tokens: int
    resident_bytes: float
    new_tokens: int = 128

    @staticmethod
    def of(
        language: Transformer,
        vision_flops: float,
        vision_weights: float,
        prompt_tokens: int,
        new_tokens: int,
        bytes_each: int = 2,
    ) -> Work:
        """Of a language model behind something that sees.

        Args:
            language: sizes of the language model.
            vision_flops: of all pictures of a caption, connector included.
            vision_weights: how many weights do that.
            prompt_tokens: tokens before the first new one, those of pictures included.
            new_tokens: most new tokens of a caption.
            bytes_each: bytes of a weight and of a number in the cache.
        """
        head = language.dim * language.vocab
        kv = language.dim if language.kv_dim is None else language.kv_dim
        return Work(
            prompt_flops=vision_flops + language.flops(prompt_tokens) + 2.0 * head,
            token_flops=2.0 * (language.layer_weights + head),
            weight_bytes=float(bytes_each * (language.layer_weights + head)),
            kv_bytes=2.0 * bytes_each * language.layers * kv,
            prompt_tokens=prompt_tokens,
            resident_bytes=float(bytes_each * (language.layer_weights + 2 * head + vision_weights)),
            new_tokens=new_tokens,
        )


_RESERVE_BYTES = 6 * 2**30
"""Libraries, activations of a prefill, fragments (specs/captioners.md §4.1)."""


def most_rows(work: Work, free_bytes: float, *, reserve_bytes: float = _RESERVE_BYTES) -> int:
    """How many captions fit at once into memory that is free of everything but the weights."""
    row = work.kv_bytes * (work.prompt_tokens + work.new_tokens)
    return max(1, int((free_bytes - reserve_bytes) // max(row, 1.0)))


@dataclass(frozen=True)
class Bound:
    """What is physically possible.

    Args:
        rows: captions at once.
        prompt_s: seconds before the first new token, of one caption.
        decode_s: seconds of all new tokens, of one caption.
    """

    rows: int
    prompt_s: float
    decode_s: float

    @property
    def captions_hz(self) -> float:
        """Captions per second, the two halves one after the other."""
        return 1.0 / (self.prompt_s + self.decode_s)


def bound(work: Work, gpu: Gpu, rows: int, new_tokens: float) -> Bound:
    """The limit for captions of `new_tokens` tokens, `rows` at once.

    A step reads the weights once and, for each row, the keys and values of the prompt and of half
    of the new tokens; or it is bound by arithmetic, if that takes longer.
    """
    row_bytes = work.kv_bytes * (work.prompt_tokens + new_tokens / 2)
    step_s = max(
        (work.weight_bytes + rows * row_bytes) / gpu.bytes_s, rows * work.token_flops / gpu.flops
    )
    return Bound(rows, work.prompt_flops / gpu.flops, step_s * new_tokens / rows)
