"""`videochat`: VideoChat-1 on frames of a clip, as LMR uses it; or on one picture.

VideoChat: Chat-Centric Video Understanding, https://arxiv.org/abs/2305.06355; public code
OpenGVLab/Ask-Anything, `video_chat/`, commit 4dd8210b. Its parts: `videochat_network` (frames to
soft tokens), `videochat_text` (the words around them), `videochat_checkpoint` (its files),
`models.captioners.loop` (generation). docs/captioners.md says what differs from the public code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.errors import UsageError
from models.captioners.base import CAPTIONERS, CaptionRequest, Fit, Sight
from models.captioners.generating import Decoding, Written, check_decoding
from models.captioners.limits import Transformer, Work
from models.captioners.loop import Engine, Generated
from models.captioners.looped import Asked, LoopedCaptioner
from models.captioners.videochat_checkpoint import find_files, llm_config
from models.captioners.videochat_network import PUBLISHED, normalised
from models.captioners.videochat_parts import load_parts, random_parts
from models.captioners.videochat_text import (
    LAYOUT_VERSION,
    answer_of,
    clip_offsets_s,
    image_prompt,
    prompt_tokens_estimate,
    shown_s,
    stops,
    video_prompt,
    without_markers,
)
from models.captioners.vlm_files import dtype_of, transformers
from models.checkpoints import Checkpoint
from models.options import defaults_of
from models.shards import weights_files
from models.tokens import read_tokens

__all__ = ["VideoChat"]

_MOST_FRAMES = 64
"""The slider of the public demo goes from 8 to 64; the model was trained with 8."""

_FRAMES_AT_ONCE = 64
"""Frames in one call of the ViT: 0.4 GB for its widest layer in half precision."""


@CAPTIONERS.register("videochat")
class VideoChat(LoopedCaptioner):
    """VideoChat-1.

    What it computes on the way can be asked for: `prompt_ids`, `features`, `embed` and `logits`,
    each for requests as `caption` takes them; `eyes` has the steps before the language model.

    Args:
        checkpoint: folder with its files (`videochat_checkpoint`); None: a tiny one with random
            weights.
        seed: of sampling, and of random weights.
        device: torch device.
        frames: of a clip that are seen; with 1, it is asked about a picture.
        clock: the seconds that the model reads: `clip` counts from the start of each clip, as for
            the clip files that the public code opens; `video` from the start of the video.
        max_new_tokens: longest caption.
        temperature: 0 takes the likeliest token; the public code samples with 1.
        top_p: share of probability that is sampled from.
        top_k: likeliest tokens that are sampled from; the public code left it to transformers,
            which takes 50.
        repetition_penalty: 1 changes nothing.
        retries: how often a caption that the guards object to is generated again.
        dtype: of multiplications: `auto` (float32 on a CPU, float16 on a GPU, as the public code),
            or one of torch's.
        max_rows: captions in one batch at most; None: what memory allows.
        graphs: record steps of generation as CUDA graphs, on a GPU.

    Raises:
        UsageError: an option that is not allowed, or files that do not fit.
    """

    name = "videochat"
    _networks = ("_engine", "lm", "eyes")

    def __init__(
        self,
        checkpoint: Checkpoint | None = None,
        *,
        seed: int = 0,
        device: str = "cpu",
        frames: int = 8,
        clock: Literal["clip", "video"] = "clip",
        max_new_tokens: int = 200,
        temperature: float = 1.0,
        top_p: float = 0.9,
        top_k: int = 50,
        repetition_penalty: float = 1.0,
        retries: int = 2,
        dtype: str = "auto",
        max_rows: int | None = None,
        graphs: bool = True,
    ) -> None:
        _check(frames, clock)
        kind = _dtype(dtype, device)
        parts = (
            random_parts(seed, dtype=kind, device=device)
            if checkpoint is None
            else load_parts(checkpoint, dtype=kind, device=device)
        )
        self.eyes, self.lm, self.tokens = parts.eyes, parts.lm, parts.words
        self._told = {"weights": asdict(parts.weights), "language": parts.language}
        self._engine = Engine(
            self.lm,
            device=device,
            dtype=kind,
            eos={self.tokens.eos},
            max_rows=max_rows,
            graphs=graphs,
        )
        self._stop = stops(self.tokens.encode)
        self._device, self._clock = torch.device(device), clock
        # `upload_img` of the public code does not keep the shape of a picture, `load_video` does.
        fit: Fit = "cropped" if frames > 1 else "stretched"
        self.sight = Sight(frames, self.eyes.sizes.side, fit)
        self.decoding = Decoding(
            max_new_tokens, temperature, top_p, repetition_penalty, seed, top_k
        )
        self.retries = retries

    @classmethod
    def recipe(
        cls, options: Mapping[str, Any], checkpoint: Checkpoint | None = None
    ) -> dict[str, Any]:
        """Also the version of the words around an instruction."""
        return {**super().recipe(options, checkpoint), "layout": LAYOUT_VERSION}

    @classmethod
    def check(cls, checkpoint: Checkpoint | None, options: Mapping[str, Any]) -> None:
        """Options, libraries, and that all files of the checkpoint are there."""
        given = {**defaults_of(cls), **options}
        _check(given["frames"], given["clock"])
        _dtype(given["dtype"], "cpu")
        check_decoding(options)
        transformers()
        if checkpoint is not None:
            files = find_files(checkpoint)
            read_tokens(files.llm)
            weights_files(files.llm)

    @classmethod
    def work(cls, checkpoint: Checkpoint | None, options: Mapping[str, Any]) -> Work | None:
        """Of the published sizes, with the language model's from its `config.json`."""
        if checkpoint is None:
            return None
        files = find_files(checkpoint)
        frames, config = int(options.get("frames", 8)), llm_config(files.llm)
        sizes = files.sizes or PUBLISHED
        dim, heads = config["hidden_size"], config["num_attention_heads"]
        kv_dim = dim * config.get("num_key_value_heads", heads) // heads
        language = Transformer(
            config["num_hidden_layers"],
            dim,
            config["intermediate_size"],
            gated=True,
            kv_dim=kv_dim,
            vocab=config["vocab_size"],
        )
        return Work.of(
            language,
            sizes.flops(frames, dim),
            sizes.weights(dim),
            prompt_tokens_estimate(sizes.soft_tokens, frames),
            int(options.get("max_new_tokens", 200)),
        )

    def offsets_s(
        self, *, clip_len_s: float | None, gap_s: float, fps: float
    ) -> NDArray[np.float64]:
        """Frames of a clip as the public code picks them (`get_index`); see `Captioner`."""
        if clip_len_s is None:
            return super().offsets_s(clip_len_s=None, gap_s=gap_s, fps=fps)
        return np.array(clip_offsets_s(clip_len_s, fps, self.sight.frames))

    def params(self) -> dict[str, Any]:
        """See `Captioner.params`."""
        return super().params() | {
            **self._told,
            "device": str(self._device),
            "engine": self._engine.params(),
            "torch": torch.__version__,
            "transformers": transformers().__version__,
        }

    @property
    def soft_tokens(self) -> int:
        """See `LoopedCaptioner`."""
        return self.eyes.sizes.soft_tokens

    def _asked(self, request: CaptionRequest) -> Asked:
        return Asked.of(self.tokens, *self._words(request))

    def _words(self, request: CaptionRequest) -> tuple[str, str]:
        wanted = (self.sight.frames, self.sight.side, self.sight.side, 3)
        if request.frames.shape != wanted:
            raise ValueError(
                f"captioner videochat wants frames of shape {wanted}, got {request.frames.shape}"
            )
        if self.sight.frames == 1:
            return image_prompt(request.prompt)
        if len(request.times_s) != self.sight.frames:
            raise ValueError(
                f"captioner videochat tells the model the time of each of {self.sight.frames} "
                f"frames, got {len(request.times_s)} times (CaptionRequest.times_s)"
            )
        start_s = request.time_s if self._clock == "video" else None
        return video_prompt(request.prompt, shown_s(request.times_s, start_s))

    def pixels(self, clips: NDArray[np.uint8]) -> Tensor:
        """Frames of clips, uint8 RGB (n, T, side, side, 3), as `eyes.look` wants them: float32
        (n, T, 3, side, side).
        """
        return normalised(torch.from_numpy(np.array(clips)).to(self._device))

    @torch.inference_mode()
    def features(self, requests: Sequence[CaptionRequest]) -> Tensor:
        """See `LoopedCaptioner`: what `encode_img` of the public code gives."""
        at_once = max(1, _FRAMES_AT_ONCE // self.sight.frames)
        clips = [each.frames for each in requests]
        seen = [
            self.eyes(torch.from_numpy(np.stack(clips[i : i + at_once])).to(self._device))
            for i in range(0, len(clips), at_once)
        ]
        return torch.cat(seen)

    def _written(self, made: Generated) -> Written:
        said = self.tokens.decode(without_markers(made.ids))
        text, ended = answer_of(said)
        cut = ended and made.finish_reason == "length"  # the separator was spelt in another way
        reason = "stop" if cut else made.finish_reason
        return Written(text, reason, made.prompt_tokens, len(made.ids), made.reason)


def _check(frames: int, clock: str) -> None:
    if not 1 <= frames <= _MOST_FRAMES:
        raise UsageError(
            f"captioner videochat: option 'frames' is {frames}; allowed: 1 (a picture) to "
            f"{_MOST_FRAMES}, trained with 8"
        )
    if clock not in ("clip", "video"):
        raise UsageError(f"captioner videochat: option 'clock' is '{clock}'; allowed: clip, video")


def _dtype(name: str, device: str) -> torch.dtype:
    """On a GPU `auto` is float16, as in the public code."""
    kind = dtype_of(name, device, "videochat")
    return torch.float16 if name == "auto" and kind != torch.float32 else kind
