"""LLaVA 1.5: a CLIP that looks, two linear layers, and a LLaMA that writes.

Liu et al., "Improved Baselines with Visual Instruction Tuning", CVPR 2024,
https://arxiv.org/abs/2310.03744; code https://github.com/haotian-liu/LLaVA at c121f043. The network
is transformers' `LlavaForConditionalGeneration`; what surrounds it is that of LLaVA's own code and
not of llava-hf's processor, which crops the picture, leaves the system prompt out and has no
beginning-of-text token in its chat template (specs/captioners.md §1.1, §1.2):

- pictures on a square of the mean colour, resized by PIL in the decoder's process
- the text before and after the picture is tokenised alone, as `tokenizer_image_token` does
- the picture's features go between the embeddings of the two: no id stands for a picture, and no
  id above those of the tokenizer can be written

What differs from LLaVA's code: captions are written together (`models.captioners.loop`), and the
default is greedy decoding, as in its evaluation, of up to 128 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from data.errors import UsageError, nearest
from models.captioners.base import CAPTIONERS, CaptionRequest, Sight
from models.captioners.generating import Decoding, check_decoding
from models.captioners.limits import Transformer, Work
from models.captioners.llava_layouts import SIZES, LlavaPlan, plan_of
from models.captioners.llava_network import language_model, network_of, tower_of
from models.captioners.loop import Engine
from models.captioners.looped import Asked, LoopedCaptioner
from models.captioners.templates import chunks_of, template_text
from models.captioners.vlm_files import DTYPES, dtype_of, transformers
from models.file_hashes import files_sha256
from models.shards import weights_files
from models.tokens import ByteTokens, Tokens, read_tokens
from models.weights import Checkpoint

__all__ = ["Llava"]

LAYOUT_VERSION = 1
"""In recipes: tokens or pixels put together otherwise are other captions."""

Picture = Literal["auto", "pad", "crop"]

_QUESTION_TOKENS = 25
"""Of a prompt of one sentence, for plans: TEA's has 22 with LLaMA's tokenizer."""


@CAPTIONERS.register("llava")
class Llava(LoopedCaptioner):
    """Describes one picture.

    What it computes on the way can be asked for: `prompt_ids`, `pixels`, `features`, `embed` and
    `logits`, each for requests as `caption` takes them.

    Args:
        checkpoint: folder of a LLaVA 1.5, in the layout of llava-hf or of liuhaotian, or
            `hf:ORG/NAME`; None: random weights, which write noise.
        seed: of sampling, and of random weights.
        device: "cpu", "cuda", "cuda:1", …
        size: of random weights, one of `tiny`, `7b`, `13b`; None: tiny.
        vision: folder of the CLIP that looks, for a checkpoint in liuhaotian's layout whose files
            hold none; None: what its config names, if that is on this machine. For one whose files
            hold a tower of unknown sizes, a folder with the config.json of that tower alone.
        template: what stands around the prompt: a name of `templates.TEMPLATES` or a text.
        picture: "pad" shows the whole picture on a square, "crop" its centre; "auto": as the model
            was trained.
        max_new_tokens: see `Decoding`.
        temperature: see `Decoding`.
        top_p: see `Decoding`.
        top_k: see `Decoding`; 50 is what transformers takes where LLaVA's code says nothing.
        repetition_penalty: see `Decoding`.
        retries: how often a caption that the guards object to is generated again.
        dtype: float32, bfloat16, float16; "auto": float32 on the CPU, else what the checkpoint
            says, else bfloat16.
        max_rows: most captions at once; None: as many as fit into memory.
        graphs: use CUDA graphs where there are any.

    Raises:
        UsageError: an option that is not allowed, or a checkpoint that is no LLaVA 1.5.
    """

    name = "llava"
    _networks = ("_engine", "lm", "net")

    def __init__(
        self,
        checkpoint: Checkpoint | None = None,
        *,
        seed: int = 0,
        device: str = "cpu",
        size: str | None = None,
        vision: str | None = None,
        template: str = "vicuna_v1",
        picture: Picture = "auto",
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 50,
        repetition_penalty: float = 1.0,
        retries: int = 2,
        dtype: str = "auto",
        max_rows: int | None = None,
        graphs: bool = True,
    ) -> None:
        self.plan = _plan(checkpoint, {"size": size, "vision": vision})
        self.sight = _sight(self.plan, picture)
        self.decoding = Decoding(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        self.retries = retries
        self._template_name, self._template = template, template_text(template)
        self.tokens = _tokens_of(self.plan)
        self._dtype = _dtype(dtype, self.plan, device)
        net, self.weights = network_of(self.plan, seed, self._dtype, device)
        self.net: Any = net
        self.lm = language_model(self.net)
        self._colours = _colours(self.plan, device)
        self._device = torch.device(device)
        self._engine = Engine(
            self.lm,
            device=self._device,
            dtype=self._dtype,
            eos={self.tokens.eos},
            max_rows=max_rows,
            graphs=graphs,
        )

    # --- known without building anything

    @classmethod
    def recipe(
        cls, options: Mapping[str, Any], checkpoint: Checkpoint | None = None
    ) -> dict[str, Any]:
        """Also the words of the template, and instead of the place of a vision tower its files,
        also where only the checkpoint's config.json names it.
        """
        made = {**super().recipe(options, checkpoint), "layout": LAYOUT_VERSION}
        made["template"] = template_text(str(made["template"]))
        tower = made["vision"] if checkpoint is None else tower_of(_plan(checkpoint, options))
        made["vision"] = None if tower is None else files_sha256(tower)
        return made

    @classmethod
    def check(cls, checkpoint: Checkpoint | None, options: Mapping[str, Any]) -> None:
        """Options, configuration, tokenizer and files of weights; see `Captioner.check`."""
        plan = _plan(checkpoint, options)
        _sight(plan, options.get("picture", "auto"))
        _dtype(options.get("dtype", "auto"), plan, "cpu")
        template_text(options.get("template", "vicuna_v1"))
        check_decoding(options)
        transformers()
        _tokens_of(plan)
        if plan.folder is not None:
            weights_files(plan.folder)
            tower_of(plan)

    @classmethod
    def work(cls, checkpoint: Checkpoint | None, options: Mapping[str, Any]) -> Work | None:
        """See `Captioner.work`; with a prompt of one sentence."""
        plan = _plan(checkpoint, options)
        seen, text = plan.vision, plan.text
        eyes = Transformer(
            seen["num_hidden_layers"], seen["hidden_size"], seen["intermediate_size"], causal=False
        )
        heads = text.get("num_key_value_heads") or text["num_attention_heads"]
        head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        language = Transformer(
            text["num_hidden_layers"],
            text["hidden_size"],
            text["intermediate_size"],
            gated=True,
            kv_dim=heads * head_dim,
            vocab=text["vocab_size"],
        )
        between = seen["hidden_size"] * text["hidden_size"] + text["hidden_size"] ** 2
        words = len(template_text(options.get("template", "vicuna_v1"))) // 5 + _QUESTION_TOKENS
        return Work.of(
            language,
            eyes.flops(plan.picture_tokens + 1) + 2.0 * between * plan.picture_tokens,
            eyes.layer_weights + between,
            plan.picture_tokens + words,
            int(options.get("max_new_tokens", 128)),
        )

    def params(self) -> dict[str, Any]:
        """See `Captioner.params`."""
        return {
            **super().params(),
            "layout": self.plan.layout,
            "model": {"text": dict(self.plan.text), "vision": dict(self.plan.vision)},
            "weights": {
                "kind": self.weights.kind,
                "source": self.weights.source,
                "stored": self.weights.stored,
                "trained": self.weights.kind == "file",
            },
            "template": self._template_name,
            "fit": self.sight.fit,
            "engine": self._engine.params(),
            "dtype": str(self._dtype).removeprefix("torch."),
            "device": _device_name(self._device),
            "torch": torch.__version__,
            "transformers": transformers().__version__,
        }

    # --- captions

    @property
    def soft_tokens(self) -> int:
        """See `LoopedCaptioner`."""
        return self.plan.picture_tokens

    def _asked(self, request: CaptionRequest) -> Asked:
        self._check_picture(request)
        asked = Asked.of(self.tokens, *chunks_of(self._template, request.prompt))
        total = len(asked.before) + self.soft_tokens + len(asked.after)
        most = int(self.plan.text["max_position_embeddings"])
        if total > most - self.decoding.max_new_tokens:
            raise UsageError(
                f"a prompt of {total:,} tokens, {self.soft_tokens} of them the picture, "
                f"and {self.decoding.max_new_tokens} new ones are more than the model's "
                f"{most:,}; shorten the prompt, or max_new_tokens"
            )
        return asked

    def pixels(self, pictures: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
        """Pictures, uint8 RGB (n, side, side, 3), as the vision tower wants them: float32
        (n, 3, side, side), `CLIPImageProcessor`'s numbers.
        """
        values = torch.from_numpy(np.array(pictures)).to(self._device)
        mean, std = self._colours
        return ((values.float() / 255 - mean) / std).movedim(-1, 1).contiguous()

    @torch.inference_mode()
    def features(self, requests: Sequence[CaptionRequest]) -> Tensor:
        """See `LoopedCaptioner`: what `encode_images` of LLaVA's code gives."""
        pixels = self.pixels(np.concatenate([each.frames for each in requests])).to(self._dtype)
        return torch.stack(list(self.net.get_image_features(pixels).pooler_output))


def _plan(checkpoint: Checkpoint | None, options: Mapping[str, Any]) -> LlavaPlan:
    """What is to be built."""
    size, vision = options.get("size"), options.get("vision")
    if checkpoint is None:
        if vision is not None:
            raise UsageError(
                "captioner llava: `vision` goes with a checkpoint, and there is none; name one, or "
                "leave `vision` out"
            )
        if (size or "tiny") not in SIZES:
            raise UsageError(f"captioner llava: unknown size {size!r}; {nearest(str(size), SIZES)}")
        return SIZES[size or "tiny"]
    if isinstance(checkpoint, Mapping):
        raise UsageError(
            "captioner llava needs the folder of a model, with its config.json and tokenizer; a "
            "table of tensors was given"
        )
    if size is not None:
        raise UsageError(
            f"captioner llava: `size` is for random weights; '{checkpoint}' has its own, so leave "
            "`size` out"
        )
    return plan_of(checkpoint, vision)


def _sight(plan: LlavaPlan, picture: str) -> Sight:
    fits = {"auto": plan.fit, "pad": "padded", "crop": "cropped"}
    if picture not in fits:
        raise UsageError(
            f"captioner llava: unknown picture {picture!r}; {nearest(str(picture), fits)}"
        )
    fit: Any = fits[picture]
    red, green, blue = (int(each * 255) for each in plan.mean)  # as `process_images` rounds
    return Sight(1, plan.side, fit, (red, green, blue))


def _tokens_of(plan: LlavaPlan) -> Tokens:
    if plan.folder is None:
        return ByteTokens()
    tokens = read_tokens(plan.folder)
    if tokens.count > plan.text["vocab_size"]:
        raise UsageError(
            f"the tokenizer in '{plan.folder}' has {tokens.count:,} pieces, the model "
            f"{plan.text['vocab_size']:,}: they are of different models"
        )
    return tokens


def _dtype(name: str, plan: LlavaPlan, device: str) -> torch.dtype:
    """On a GPU `auto` is the half precision that the checkpoint is in."""
    kind = dtype_of(name, device, "llava")
    halved = name == "auto" and kind != torch.float32 and plan.dtype in ("float16", "bfloat16")
    return DTYPES[plan.dtype] if halved else kind


def _colours(plan: LlavaPlan, device: str) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(each, device=device) for each in (plan.mean, plan.std))
    return mean, std


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
