"""Makes folders of files as VideoChat, BLIP-2 and LLaMA were published, at tiny sizes.

Names and shapes are spelt out from the public code (eva_vit.py, Qformer.py and videochat.py in
video_chat/models), not taken from what reads them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DIM, DEPTH, HIDDEN, GATHERS = 48, 4, 209, 2
Q_DIM, Q_DEPTH, Q_FFN = 48, 4, 96

Shapes = dict[str, tuple[int, ...]]
State = dict[str, Tensor]


def _linear(name: str, out: int, into: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out, into)
    yield f"{name}.bias", (out,)


def _norm(name: str, dim: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (dim,)
    yield f"{name}.bias", (dim,)


def vit_shapes(depth: int = DEPTH) -> Shapes:
    """eva_vit_g.pth, whose patches are those of a picture."""

    def every() -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "cls_token", (1, 1, DIM)
        yield "pos_embed", (1, 17, DIM)
        yield "patch_embed.proj.weight", (DIM, 3, 14, 14)
        yield "patch_embed.proj.bias", (DIM,)
        for i in range(depth):
            block = f"blocks.{i}"
            yield from _norm(f"{block}.norm1", DIM)
            yield f"{block}.attn.q_bias", (DIM,)
            yield f"{block}.attn.v_bias", (DIM,)
            yield f"{block}.attn.qkv.weight", (3 * DIM, DIM)
            yield from _linear(f"{block}.attn.proj", DIM, DIM)
            yield from _norm(f"{block}.norm2", DIM)
            yield from _linear(f"{block}.mlp.fc1", HIDDEN, DIM)
            yield from _linear(f"{block}.mlp.fc2", DIM, HIDDEN)

    return dict(every())


def qformer_shapes() -> Shapes:
    """blip2_pretrained_flant5xxl.pth without its way to Flan-T5."""

    def every() -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "query_tokens", (1, 6, Q_DIM)
        yield from _norm("ln_vision", DIM)
        yield from _norm("Qformer.bert.embeddings.LayerNorm", Q_DIM)
        for i in range(Q_DEPTH):
            layer = f"Qformer.bert.encoder.layer.{i}"
            kinds = {"attention": Q_DIM} | ({"crossattention": DIM} if i % 2 == 0 else {})
            for kind, width in kinds.items():
                yield from _linear(f"{layer}.{kind}.self.query", Q_DIM, Q_DIM)
                yield from _linear(f"{layer}.{kind}.self.key", Q_DIM, width)
                yield from _linear(f"{layer}.{kind}.self.value", Q_DIM, width)
                yield from _linear(f"{layer}.{kind}.output.dense", Q_DIM, Q_DIM)
                yield from _norm(f"{layer}.{kind}.output.LayerNorm", Q_DIM)
            yield from _linear(f"{layer}.intermediate_query.dense", Q_FFN, Q_DIM)
            yield from _linear(f"{layer}.output_query.dense", Q_DIM, Q_FFN)
            yield from _norm(f"{layer}.output_query.LayerNorm", Q_DIM)

    return dict(every())


def own_shapes(llm_dim: int) -> Shapes:
    """videochat_*.pth: what was trained."""

    def every() -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "visual_encoder.gmhra_cls_token", (1, 1, DIM)
        for i in range(GATHERS):
            step = f"visual_encoder.gmhra.{i}"
            yield f"{step}.dpe.weight", (DIM, 1, 3, 3, 3)
            yield f"{step}.dpe.bias", (DIM,)
            yield f"{step}.attn.in_proj_weight", (3 * DIM, DIM)
            yield f"{step}.attn.in_proj_bias", (3 * DIM,)
            yield from _linear(f"{step}.attn.out_proj", DIM, DIM)
            for norm in ("ln_1", "ln_2", "ln_3"):
                yield from _norm(f"{step}.{norm}", DIM)
            yield from _linear(f"{step}.mlp.c_fc", HIDDEN, DIM)
            yield from _linear(f"{step}.mlp.c_proj", DIM, HIDDEN)
        yield from _norm("ln_vision", DIM)
        yield "extra_query_tokens", (1, 3, Q_DIM)
        yield from _linear("llama_proj", llm_dim, Q_DIM)

    return dict(every())


def drawn(shapes: Shapes, seed: int = 0) -> State:
    """Numbers that keep the size of what goes through."""
    random = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=random) * (0.1 if len(shape) < 2 else shape[-1] ** -0.5)
        + float(len(shape) < 2 and name.endswith("weight"))
        for name, shape in shapes.items()
    }


def write_official(folder: Path, vit: State, qformer: State, own: State, llm_dim: int) -> Path:
    """The three files, with all that they hold beside what is read."""
    folder.mkdir(parents=True, exist_ok=True)
    head = {
        "norm.weight": (DIM,),
        "norm.bias": (DIM,),
        "head.weight": (10, DIM),
        "head.bias": (10,),
    }
    beyond = {
        name.replace("blocks.0", f"blocks.{DEPTH}"): shape
        for name, shape in vit_shapes(1).items()
        if name.startswith("blocks.")
    }
    torch.save({**vit, **drawn(beyond | head, 1)}, folder / "eva_vit_g.pth")
    beside = {**drawn({"t5_proj.weight": (32, Q_DIM), "t5_proj.bias": (32,)}, 2)}
    position = {"Qformer.bert.embeddings.position_ids": torch.arange(32)[None]}
    torch.save(
        {"model": {**qformer, **beside, **position}}, folder / "blip2_pretrained_flant5xxl.pth"
    )
    angles = {"llama_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    torch.save(
        {"model": {**own, **position, **angles}, "epoch": 2},
        folder / f"videochat_{'13b' if llm_dim == 5120 else '7b'}.pth",
    )
    return folder


def write_llm(folder: Path, vocab: int, dim: int = 64, **changed: Any) -> Any:
    """A tiny LLaMA in the way of transformers, with a tokenizer of its own; the network."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    lm = LlamaForCausalLM(
        LlamaConfig(vocab_size=vocab, hidden_size=dim, max_position_embeddings=1024, **sizes)
    )
    with torch.no_grad():  # the default spread of 0.02 says the same whatever it sees
        for weight in lm.parameters():
            if weight.ndim == 2:
                weight.mul_(8)
    lm.save_pretrained(folder)
    if changed:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changed))
    return lm


TEXTS = [
    "###Human: <Video></Video> The video contains 8 frames sampled at 0.1, 0.3, 1.9 seconds.",
    "###Human: Describe the following video concisely.\n###Assistant: A man opens a door.###",
    "A woman in a red coat walks a small dog along the river, and a boat passes behind her.",
    "Provide a brief description of the given video clip, what happens in it and who is there.",
]


def sentencepiece_bytes() -> bytes:
    """A `tokenizer.model` as LLaMA's: pairs of pieces, bytes for what it does not know."""
    from sentencepiece import SentencePieceTrainer

    file = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 4),
        model_writer=file,
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
    )
    return file.getvalue()
