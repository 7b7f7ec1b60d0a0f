"""What generates for captioner `vllm`: vLLM's offline engine, behind a small interface.

Not proven on this project's machines, none of which has run vLLM: everything in `VllmLibrary`,
which was written against the sources of vLLM 0.29.0, and read beside those of 0.27.1 and 0.30.0.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import EngineDiedError, UsageError, how_to_install
from models.captioners.generating import Decoding, Written

__all__ = [
    "Asked",
    "Engine",
    "EngineDiedError",
    "RefusedError",
    "VllmLibrary",
    "require_vllm",
    "vllm_version",
]


class RefusedError(Exception):
    """One of the requests cannot be done (too long); none of them was."""


@dataclass(frozen=True)
class Asked:
    """One request, ready for an engine.

    Args:
        ids: token ids, one for each picture where it belongs.
        pictures: uint8 RGB (k, H, W, 3).
        seed: of sampling; not used by greedy decoding.
        thinking: whether the prompt ends where the model begins to think.
    """

    ids: tuple[int, ...]
    pictures: NDArray[np.uint8]
    seed: int
    thinking: bool = False


class Engine(ABC):
    """What generates. One that has died is thrown away."""

    @abstractmethod
    def generate(self, asked: Sequence[Asked], decoding: Decoding) -> list[Written]:
        """One generation per request, in order.

        Raises:
            EngineDiedError: none of them has a result.
            RefusedError: one cannot be done, none was.
        """

    @abstractmethod
    def close(self) -> None:
        """Give the memory back; also for one that has died."""


class VllmLibrary(Engine):
    """vLLM itself.

    Args:
        arguments: of `vllm.LLM`.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        require_vllm()
        for name, value in (
            ("VLLM_NO_USAGE_STATS", "1"),  # it reports to its makers otherwise
            ("HF_HUB_OFFLINE", "1"),
            ("VLLM_LOGGING_LEVEL", "WARNING"),
            ("VLLM_WORKER_MULTIPROC_METHOD", "spawn"),  # CUDA may be in use here already
        ):
            os.environ.setdefault(name, value)
        import vllm
        import vllm.exceptions
        from vllm.v1.engine.exceptions import EngineDeadError

        self._died = EngineDeadError
        # Parts of it that come before the engine (processors of pictures) raise ValueErrors.
        self._refused = (vllm.exceptions.VLLMClientError, ValueError)
        self._params = vllm.SamplingParams
        self._llm = vllm.LLM(**arguments)

    def generate(self, asked: Sequence[Asked], decoding: Decoding) -> list[Written]:
        """See `Engine`."""
        from PIL import Image

        prompts = [
            {
                "prompt_token_ids": list(each.ids),
                "multi_modal_data": {"image": [Image.fromarray(one) for one in each.pictures]},
            }
            for each in asked
        ]
        params = [self._params(**_sampling(decoding, each.seed)) for each in asked]
        try:
            made = self._llm.generate(prompts, params, use_tqdm=False)
        except self._died as error:
            raise EngineDiedError(str(error)) from error
        except self._refused as error:
            raise RefusedError(str(error)) from error
        return [_written(each) for each in made]

    def close(self) -> None:
        """See `Engine`."""
        self._llm.llm_engine.engine_core.shutdown()


def _sampling(decoding: Decoding, seed: int) -> dict[str, Any]:
    """Arguments of `SamplingParams`; what the checkpoint says of sampling is not used."""
    return {
        "max_tokens": decoding.max_new_tokens,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "top_k": decoding.top_k,
        "repetition_penalty": decoding.repetition_penalty,
        "seed": seed if decoding.temperature > 0 else None,
    }


def _written(output: Any) -> Written:
    """A `RequestOutput` of vLLM. It may also end with "abort" or "error", a text that is not whole
    (`vllm.v1.engine.FinishReason`).
    """
    one = output.outputs[0]
    prompt_tokens, new_tokens = len(output.prompt_token_ids or ()), len(one.token_ids)
    if one.finish_reason == "length":
        return Written(one.text, "length", prompt_tokens, new_tokens)
    if one.finish_reason in ("stop", "repetition"):
        return Written(one.text, "stop", prompt_tokens, new_tokens)
    reason = f"vLLM ended it with '{one.finish_reason}'"
    return Written("", "error", prompt_tokens, new_tokens, reason)


def require_vllm() -> None:
    """UsageError with the command if vLLM is not installed."""
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise UsageError(
            f"captioner vllm needs the package `vllm`: {how_to_install('vllm')}; or start its "
            "server in an environment of its own and use captioner openai"
        )


def vllm_version() -> str:
    """Of the package; "" if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("vllm")
    except PackageNotFoundError:
        return ""
