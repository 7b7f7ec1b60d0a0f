"""`blip2`: BLIP-2 with an OPT language model, which continues a picture with words, unasked.

BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image Encoders and Large Language
Models, https://arxiv.org/abs/2301.12597; TEA's ablation captions with `blip2-opt-6.7b` and no
prompt. The networks are those of transformers (Blip2ForConditionalGeneration), the loop is
`models.captioners.loop`. What differs from the public code (LAVIS, `blip2_opt.py`): it searches
with five beams, this takes the likeliest token; both end at a line's end. Checkpoints with T5
(`blip2-flan-t5-*`) are not read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from data.errors import UsageError
from data.foreign import json_object, read_limited
from models.captioners.base import CAPTIONERS, CaptionRequest, Sight
from models.captioners.generating import Decoding, GeneratingCaptioner, Written
from models.captioners.limits import Transformer, Work
from models.captioners.loop import Engine, Prompts
from models.captioners.loop.types import Generated
from models.captioners.vlm_files import (
    check_decoding,
    dtype_of,
    folder_of,
    load_config,
    load_tokenizer,
    transformers,
)
from models.checkpoints import Checkpoint
from models.large import build_empty, fill_from, fill_uniform
from models.shards import read_folder
from models.tokens import ByteTokens

__all__ = ["Blip2Captioner"]

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP, where preprocessor_config.json says nothing else."""

_PICTURES_AT_ONCE = 64
"""In one call of the ViT: 0.2 GB for its widest layer in half precision."""

_MAX_CONFIG_BYTES = 1 << 20


class Words(Protocol):
    """The tokenizer, as far as it is needed."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, no markers."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without markers."""


@dataclass(frozen=True)
class Parts:
    """A BLIP-2.

    Args:
        net: Blip2ForConditionalGeneration.
        words: its tokenizer.
        begin: token that a text begins with.
        ends: tokens that end a text.
        mean: of pixels in 0..1, per colour.
        std: of pixels in 0..1, per colour.
        kind: "file" or "random".
    """

    net: Any
    words: Words
    begin: int
    ends: frozenset[int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    kind: str


@CAPTIONERS.register("blip2")
class Blip2Captioner(GeneratingCaptioner):
    """BLIP-2 with OPT.

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
    machine_options: ClassVar[frozenset[str]] = frozenset({"device", "dtype", "max_rows", "graphs"})

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
        self._parts = (
            _random(seed, kind, device)
            if checkpoint is None
            else _loaded(checkpoint, kind, device, ignore_tensors)
        )
        self._net = self._parts.net
        self._device = torch.device(device)
        self._begin = (self._parts.begin, *self._parts.words.encode(prefix))
        self._colours = [
            torch.tensor(each, device=device)[:, None, None]
            for each in (self._parts.mean, self._parts.std)
        ]
        self._engine = Engine(
            self._net.language_model,
            device=device,
            dtype=kind,
            eos=self._parts.ends,
            max_rows=max_rows,
            graphs=graphs,
        )
        self.sight = _sight(self._net.config)
        self.decoding = Decoding(
            max_new_tokens, temperature, top_p, repetition_penalty, seed, top_k
        )
        self.retries = retries

    @classmethod
    def check(cls, checkpoint: Checkpoint | None, options: Mapping[str, Any]) -> None:
        """The folder and its kind of model; no weights are read."""
        check_decoding(options)
        if checkpoint is not None:
            _colours(_config(checkpoint)[0])

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
            "weights": self._parts.kind,
            "language": type(self._net.language_model).__name__,
            "device": str(self._device),
            "engine": self._engine.params(),
            "transformers": transformers().__version__,
            "torch": torch.__version__,
        }

    def write(self, requests: Sequence[CaptionRequest], decoding: Decoding) -> list[Written]:
        """See `GeneratingCaptioner.write`."""
        side = self.sight.side
        for each in requests:
            if each.frames.shape != (1, side, side, 3) or each.frames.dtype != np.uint8:
                raise ValueError(
                    f"captioner blip2 sees one uint8 picture of {side} x {side}, got "
                    f"{each.frames.dtype} {each.frames.shape}"
                )
        length = self._net.config.num_query_tokens + len(self._begin)

        def embed(rows: Sequence[int]) -> Tensor:
            return self._embedded(np.concatenate([requests[i].frames for i in rows]))

        prompts = Prompts([length] * len(requests), embed)
        keys = [each.key for each in requests]
        # Ids from that of the picture on are no words, and the table is longer than the words.
        allowed = self._net.config.image_token_index
        made = self._engine.generate(prompts, keys, decoding, allowed=allowed)
        return [self._written(each) for each in made]

    def close(self) -> None:
        """Forget the networks."""
        del self._engine, self._net, self._parts
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _embedded(self, pictures: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
        """uint8 (n, side, side, 3) to what the language model reads, (n, T, D): soft tokens, and
        behind them the beginning of a text (LAVIS `Blip2OPT.generate`).
        """
        soft = torch.cat(
            [
                self._seen(torch.from_numpy(pictures[i : i + _PICTURES_AT_ONCE]).to(self._device))
                for i in range(0, len(pictures), _PICTURES_AT_ONCE)
            ]
        )
        ids = torch.tensor(self._begin, device=self._device)
        words = self._net.get_input_embeddings()(ids).expand(len(soft), -1, -1)
        return torch.cat([soft.to(words.dtype), words], dim=1)

    def _seen(self, pictures: Tensor) -> Tensor:
        """(n, side, side, 3) to soft tokens (n, queries, D)."""
        net = self._net
        mean, std = self._colours
        pixels = (pictures.permute(0, 3, 1, 2).float() / 255 - mean) / std
        states = net.vision_model(pixels).last_hidden_state
        queries = net.qformer(
            query_embeds=net.query_tokens.expand(len(pictures), -1, -1),
            encoder_hidden_states=states.to(net.query_tokens.dtype),
        ).last_hidden_state
        soft: Tensor = net.language_projection(queries.to(net.language_projection.weight.dtype))
        return soft

    def _written(self, made: Generated) -> Written:
        text = self._parts.words.decode(made.ids)
        return Written(text, made.finish_reason, made.prompt_tokens, len(made.ids), made.reason)


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


def _colours(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of preprocessor_config.json; CLIP's where there is none."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        read = json_object(read_limited(path, _MAX_CONFIG_BYTES, name), str(path))
        told = read.get("image_processor", read)
        if isinstance(told, dict) and "image_mean" in told:
            return _three(path, told, "image_mean"), _three(path, told, "image_std")
    return _MEAN, _STD


def _three(path: Path, told: Mapping[str, Any], name: str) -> tuple[float, ...]:
    value = told.get(name)
    plain = isinstance(value, list) and all(isinstance(each, int | float) for each in value)
    if not isinstance(value, list) or not plain or len(value) != len(_MEAN):
        raise UsageError(f"'{path}': {name} has to be three numbers, got {value}")
    return tuple(value)


class _HubWords:
    """A tokenizer of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """Ids of a text, no markers."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without markers."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


def _loaded(
    checkpoint: Checkpoint, dtype: torch.dtype, device: str, ignored: Sequence[str]
) -> Parts:
    folder, config = _config(checkpoint)
    mean, std = _colours(folder)
    tokenizer = load_tokenizer(folder)
    words = _HubWords(tokenizer)
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
    begin = config.text_config.bos_token_id
    return Parts(net, words, begin, frozenset(ends - {None}), mean, std, "file")


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
        _spread,
        dtype=_dtypes(dtype),
        device=device,
    )
    ends = frozenset({words.eos, *words.encode("\n")})
    return Parts(net, words, words.bos, ends, _MEAN, _STD, "random")


def _sizes(heads: str, layers: int) -> dict[str, int]:
    return {
        "hidden_size": _TINY,
        "intermediate_size": 2 * _TINY,
        "num_hidden_layers": layers,
        heads: 4,
    }


def _spread(name: str, tensor: Tensor) -> tuple[float, float]:
    """Norms about 1, biases small, matrices that keep the size of what goes through."""
    if tensor.ndim < 2:
        return (1.0, 0.1) if name.endswith("weight") else (0.0, 0.1)
    if "embed" in name or "query" in name:
        return 0.0, 1.0
    return 0.0, math.sqrt(3 / math.prod(tensor.shape[1:]))
