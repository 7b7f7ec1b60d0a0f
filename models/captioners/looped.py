"""Captioners whose words are written by `models.captioners.loop`: tokens, soft tokens, tokens.

What is seen becomes soft tokens, which stand between the tokens of a text. A subclass says which
tokens and makes the soft ones; how rows are batched and what they can be asked for is here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from models.captioners.base import CaptionRequest
from models.captioners.generating import Decoding, GeneratingCaptioner, Written
from models.captioners.loop import Engine, Generated, Prompts
from models.tokens import Tokens

__all__ = ["PICTURE_ID", "Asked", "LoopedCaptioner"]

PICTURE_ID = -200
"""In `prompt_ids`, the place of what is seen: `IMAGE_TOKEN_INDEX` of LLaVA's code."""


@dataclass(frozen=True)
class Asked:
    """The token ids of one prompt.

    Args:
        before: what is seen, with the token that a text begins with.
        after: what is seen.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, tokens: Tokens, before: str, after: str) -> Asked:
        """Each text tokenised alone, so that each begins as a text begins."""
        return cls((tokens.bos, *tokens.encode(before)), tuple(tokens.encode(after)))


class LoopedCaptioner(GeneratingCaptioner):
    """A captioner with a language model of its own, here in the process.

    Attributes:
        lm: causal language model of transformers.
        tokens: its tokenizer.
    """

    machine_options: ClassVar[frozenset[str]] = frozenset({"device", "dtype", "max_rows", "graphs"})

    lm: Any
    tokens: Tokens
    _engine: Engine
    _device: torch.device

    # --- what a subclass says

    @property
    @abstractmethod
    def soft_tokens(self) -> int:
        """Tokens that what is seen becomes."""

    @abstractmethod
    def features(self, requests: Sequence[CaptionRequest]) -> Tensor:
        """The soft tokens, (n, soft tokens, width of the language model).

        Raises:
            ValueError: frames of another shape than `sight` asks for.
        """

    @abstractmethod
    def _asked(self, request: CaptionRequest) -> Asked:
        """The tokens around what is seen."""

    def _check_picture(self, request: CaptionRequest) -> None:
        """ValueError for other frames than the one square picture that `sight` asks for."""
        side, frames = self.sight.side, request.frames
        if frames.shape != (1, side, side, 3) or frames.dtype != np.uint8:
            raise ValueError(
                f"captioner {self.name} sees one uint8 picture of {side} x {side}, got "
                f"{frames.dtype} {frames.shape} for {request.key}; `data.video.fit_picture` "
                "makes one"
            )

    def _written(self, made: Generated) -> Written:
        """What the new tokens of one row say."""
        text = self.tokens.decode(made.ids)
        return Written(text, made.finish_reason, made.prompt_tokens, len(made.ids), made.reason)

    _stop: Sequence[tuple[int, ...]] = ()
    """Sequences of new tokens that end a caption."""

    # --- what it can be asked

    def prompt_ids(self, request: CaptionRequest) -> tuple[int, ...]:
        """The tokens that go in, `PICTURE_ID` once where the soft tokens stand."""
        asked = self._asked(request)
        return (*asked.before, PICTURE_ID, *asked.after)

    @torch.inference_mode()
    def embed(self, requests: Sequence[CaptionRequest]) -> list[Tensor]:
        """What the language model reads, for each request (T, width)."""
        return self._between([self._asked(each) for each in requests], self.features(requests))

    @torch.inference_mode()
    def logits(self, requests: Sequence[CaptionRequest]) -> list[Tensor]:
        """Of the next token at each place of the prompt, for each request (T, vocabulary).

        For comparisons; captions are written by the loop, which computes what it needs only.
        """
        return [
            self.lm(inputs_embeds=each[None], use_cache=False).logits[0]
            for each in self.embed(requests)
        ]

    def write(self, requests: Sequence[CaptionRequest], decoding: Decoding) -> list[Written]:
        """See `GeneratingCaptioner.write`."""
        asked = [self._asked(each) for each in requests]

        def embed(rows: Sequence[int]) -> Tensor:
            seen = self.features([requests[i] for i in rows])
            return torch.stack(self._between([asked[i] for i in rows], seen))

        prompts = Prompts(
            [len(each.before) + self.soft_tokens + len(each.after) for each in asked], embed
        )
        made = self._engine.generate(
            prompts,
            [each.key for each in requests],
            decoding,
            stop=self._stop,
            allowed=self.tokens.writable,
        )
        return [self._written(each) for each in made]

    def _between(self, asked: Sequence[Asked], seen: Tensor) -> list[Tensor]:
        words = self.lm.get_input_embeddings()

        def told(ids: tuple[int, ...]) -> Tensor:
            embedded: Tensor = words(torch.tensor(ids, dtype=torch.long, device=self._device))
            return embedded

        around = {each: (told(each.before), told(each.after)) for each in {*asked}}
        rows = []
        for each, one in zip(asked, seen, strict=True):
            before, after = around[each]
            rows.append(torch.cat([before, one.to(before.dtype), after]))
        return rows

    def close(self) -> None:
        """Forget the networks; it cannot be used any more."""
        if "_engine" not in self.__dict__:
            return
        self._engine.release()
        for name in self._networks:
            del self.__dict__[name]
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    _networks: Sequence[str] = ("_engine", "lm")
    """Attributes that hold memory of the device."""
