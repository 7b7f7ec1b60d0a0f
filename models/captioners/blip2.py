"""`blip2`: BLIP-2 with an OPT language model, which continues a picture with words, unasked.

BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image Encoders and Large Language
Models, https://arxiv.org/abs/2301.12597; TEA's ablation captions with `blip2-opt-6.7b` and no
prompt. The networks are those of transformers (Blip2ForConditionalGeneration), the loop is
`models.captioners.loop`. What differs from the public code (LAVIS, `blip2_opt.py`): it searches
with five beams, this takes the likeliest token; both end at a line's end. Checkpoints with T5
(`blip2-flan-t5-*`) are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.errors import UsageError
from models.captioners.base import CAPTIONERS, CaptionRequest, Sight
from models.captioners.colours import CLIP_MEAN, CLIP_STD, colours_of
from models.captioners.generating import Decoding, check_decoding
from models.captioners.limits import Transformer, Work
from models.captioners.loop import Engine
from models.captioners.looped import Asked, LoopedCaptioner
from models.captioners.vlm_files import (
    dtype_of,
    folder_of,
    load_config,
    load_tokenizer,
    transformers,
)
from models.checkpoints import Checkpoint
from models.large import build_empty, fill_from, fill_uniform, spread
from models.shards import read_folder
from models.tokens import ByteTokens, Tokens

__all__ = ["Blip2Captioner"]

_PICTURES_AT_ONCE = 64
"""In one call of the ViT: 0.2 GB for its widest layer in half precision."""


@dataclass(frozen=True)
class Parts:
    """A BLIP-2.

    Args:
        net: Blip2ForConditionalGeneration.
        words: its tokenizer; a text begins with its `bos`.
        ends: tokens that end a text.
        mean: of pixels in 0..1, per colour.
        std: of pixels in 0..1, per colour.
        kind: "file" or "random".
    """

    net: Any
    words: Tokens
    ends: frozenset[int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    kind: str


@CAPTIONERS.register("blip2")
class Blip2Captioner(LoopedCaptioner):
    """BLIP-2 with OPT.

    What it computes on the way can be asked for: `prompt_ids`, `features`, `embed` and `logits`,
    each for requests as `caption` takes them.

    Args:
        checkpoint: folder of the model in the layout of Hugging Face, or `hf:ORG/NAME` of the
            local cache (`hf:Salesforce/blip2-opt-6.7b`); None: a tiny one that was never trained.
        seed: of sampling, and of random weights.
        device: torch device.
        dtype: of ViT and language model: "auto" (float32 on a CPU, bfloat16 on a GPU that has it),
            float32, bfloat16, float16. The Q-Former stays in float32.
        prefix: beginning of the caption that the model continues ("a photo of"); "" for none, as
            TEA has it. It is no part of the caption. The prompt of the stage is not used.
        max_new_tokens, temperature, top_p, top_k, repetition_penalty: see `Decoding`.
        retries: see `GeneratingCaptioner`.
        ignore_tensors: patterns of tensors in the files that the model may do without.
        max_rows: most captions at once; None: as free memory allows.
        graphs: on a GPU, replay steps as CUDA graphs.

    Raises:
        UsageError: an option that is not allowed, or a checkpoint that is no BLIP-2 with OPT.
    """

    name = "blip2"
    follows_prompt = False
    _networks = ("_engine", "lm", "net")

    def __init__(
        self,
        checkpoint: Checkpoint | None = None,
        *,
        seed: int = 0,
        device: str = "cpu",
        dtype: str = "auto",
        prefix: str = "",
        max_new_tokens: int = 30,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        retries: int = 2,
        ignore_tensors: Sequence[str] = (),
        max_rows: int | None = None,
        graphs: bool = True,
    ) -> None:
        kind = dtype_of(dtype, device, self.name)
        parts = (
            _random(seed, kind, device)
            if checkpoint is None
            else _loaded(checkpoint, kind, device, ignore_tensors)
        )
        self.net, self.tokens, self._kind = parts.net, parts.words, parts.kind
        self.lm = self.net.language_model
        self._device = torch.device(device)
        self._begin = (self.tokens.bos, *self.tokens.encode(prefix))
        self._colours = [
            torch.tensor(each, device=device)[:, None, None] for each in (parts.mean, parts.std)
        ]
        self._engine = Engine(
            self.lm,
            device=device,
            dtype=kind,
            eos=parts.ends,
            max_rows=max_rows,
            graphs=graphs,
        )
        self.sight = _sight(self.net.config)
        self.decoding = Decoding(
            max_new_tokens, temperature, top_p, repetition_penalty, seed, top_k
        )
        self.retries = retries

    @classmethod
    def check(cls, checkpoint: Checkpoint | None, options: Mapping[str, Any]) -> None:
        """Options, the folder and its kind of model; no weights are read."""
        check_decoding(options)
        if checkpoint is not None:
            colours_of(_config(checkpoint)[0])

    @classmethod
    def work(cls, checkpoint: Checkpoint | None, options: Mapping[str, Any]) -> Work | None:
        """By the sizes in config.json; the Q-Former, a hundredth of it, is left out."""
        if checkpoint is None:
            return None
        config = _config(checkpoint)[1]
        eyes, text = config.vision_config, config.text_config
        tower = Transformer(
            eyes.num_hidden_layers, eyes.hidden_size, eyes.intermediate_size, causal=False
        )
        language = Transformer(
            text.num_hidden_layers, text.hidden_size, text.ffn_dim, vocab=text.vocab_size
        )
        patches = (eyes.image_size // eyes.patch_size) ** 2 + 1
        return Work.of(
            language,
            tower.flops(patches),
            tower.layer_weights,
            config.num_query_tokens + 1,
            int(options.get("max_new_tokens", 30)),
        )

    def params(self) -> dict[str, Any]:
        """See `Captioner.params`."""
        return super().params() | {
            "weights": self._kind,
            "language": type(self.lm).__name__,
            "device": str(self._device),
            "engine": self._engine.params(),
            "transformers": transformers().__version__,
            "torch": torch.__version__,
        }

    @property
    def soft_tokens(self) -> int:
        """See `LoopedCaptioner`."""
        queries: int = self.net.config.num_query_tokens
        return queries

    def _asked(self, request: CaptionRequest) -> Asked:
        """The beginning of a text stands behind the picture (LAVIS `Blip2OPT.generate`)."""
        self._check_picture(request)
        return Asked((), self._begin)

    @torch.inference_mode()
    def features(self, requests: Sequence[CaptionRequest]) -> Tensor:
        """See `LoopedCaptioner`."""
        pictures = np.concatenate([each.frames for each in requests])
        return torch.cat(
            [
                self._seen(torch.from_numpy(pictures[i : i + _PICTURES_AT_ONCE]).to(self._device))
                for i in range(0, len(pictures), _PICTURES_AT_ONCE)
            ]
        )

    def _seen(self, pictures: Tensor) -> Tensor:
        """(n, side, side, 3) to soft tokens (n, queries, D)."""
        net = self.net
        mean, std = self._colours
        pixels = (pictures.permute(0, 3, 1, 2).float() / 255 - mean) / std
        states = net.vision_model(pixels).last_hidden_state
        queries = net.qformer(
            query_embeds=net.query_tokens.expand(len(pictures), -1, -1),
            encoder_hidden_states=states.to(net.query_tokens.dtype),
        ).last_hidden_state
        soft: Tensor = net.language_projection(queries.to(net.language_projection.weight.dtype))
        return soft


def _sight(config: Any) -> Sight:
    return Sight(1, config.vision_config.image_size, "stretched")


def _config(checkpoint: Checkpoint) -> tuple[Path, Any]:
    """The folder and its configuration, checked."""
    folder = folder_of(checkpoint, "blip2")
    config = load_config(folder, "blip2")
    if config.model_type != "blip-2" or config.text_config.model_type != "opt":
        text = getattr(getattr(config, "text_config", None), "model_type", "")
        raise UsageError(
            f"'{folder}' is a model of kind '{config.model_type}' {f'with {text}' if text else ''}"
            ", and captioner blip2 reads kind 'blip-2' with opt (Salesforce/blip2-opt-2.7b, "
            "blip2-opt-6.7b); captioner vlm reads other kinds"
        )
    return folder, config


class _HubTokens(Tokens):
    """A tokenizer of transformers.

    Args:
        tokenizer: of transformers.
        config: of the model, which knows its tokens.
    """

    def __init__(self, tokenizer: Any, config: Any) -> None:
        self._tokenizer = tokenizer
        self.bos, self.eos = config.text_config.bos_token_id, tokenizer.eos_token_id
        # Ids from that of the picture on are no words, and the table is longer than the words.
        self.count = config.image_token_index or config.text_config.vocab_size

    def encode(self, text: str) -> list[int]:
        """See `Tokens`."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokens`."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def piece(self, index: int) -> str:
        """See `Tokens`."""
        spelt: str = self._tokenizer.convert_ids_to_tokens(index)
        return spelt


def _loaded(
    checkpoint: Checkpoint, dtype: torch.dtype, device: str, ignored: Sequence[str]
) -> Parts:
    folder, config = _config(checkpoint)
    mean, std = colours_of(folder)
    tokenizer = load_tokenizer(folder)
    words = _HubTokens(tokenizer, config)
    net: Any = build_empty(lambda: transformers().Blip2ForConditionalGeneration(config))
    files = read_folder(folder).renamed(
        lambda name: None if any(fnmatchcase(name, each) for each in ignored) else name
    )
    fill_from(net, files, "BLIP-2 with OPT", dtype=_dtypes(dtype), device=device)
    told = config.text_config.eos_token_id
    ends = {*(told if isinstance(told, list) else [told]), tokenizer.eos_token_id}
    line = words.encode("\n")
    if len(line) == 1:  # LAVIS ends there, whatever the configuration says
        ends.add(line[0])
    return Parts(net, words, frozenset(ends - {None}), mean, std, "file")


def _dtypes(dtype: torch.dtype) -> Callable[[str], torch.dtype]:
    """The Q-Former in float32, as BLIP-2 was trained (specs/captioners.md §2.2)."""
    return lambda name: torch.float32 if name.startswith(("qformer.", "query_tokens")) else dtype


_TINY = 64


def _random(seed: int, dtype: torch.dtype, device: str) -> Parts:
    """A tiny BLIP-2 that was never trained: the whole way runs, and it says nonsense."""
    library = transformers()
    words = ByteTokens()
    config = library.Blip2Config(
        vision_config={**_sizes("num_attention_heads", 3), "image_size": 56},
        qformer_config={**_sizes("num_attention_heads", 2), "vocab_size": 8},
        text_config={
            "model_type": "opt",
            "hidden_size": _TINY,
            "word_embed_proj_dim": _TINY,
            "ffn_dim": 2 * _TINY,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": words.count,
        },
        num_query_tokens=8,
    )
    net: Any = build_empty(lambda: library.Blip2ForConditionalGeneration(config))
    fill_uniform(
        net,
        seed,
        spread,
        dtype=_dtypes(dtype),
        device=device,
    )
    ends = frozenset({words.eos, *words.encode("\n")})
    return Parts(net, words, ends, CLIP_MEAN, CLIP_STD, "random")


def _sizes(heads: str, layers: int) -> dict[str, int]:
    return {
        "hidden_size": _TINY,
        "intermediate_size": 2 * _TINY,
        "num_hidden_layers": layers,
        heads: 4,
    }
