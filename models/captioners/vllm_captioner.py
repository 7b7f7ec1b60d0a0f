"""`vllm`: the offline engine of vLLM, in this process; an optional extra (`storyline[vllm]`).

vLLM is given token ids that are made here and pictures that are ready, so that it cannot put its
own in between (specs/captioners.md §1.2, §1.4): LLaVA's square with the colour of the mean and its
whole template, of which llava-hf's processor knows nothing; the chat template of all others through
the same code as captioner `vlm`. It places pictures, batches, samples and holds the cache.

What is not proven is said in `vllm_engine`; all else is tested with another engine in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, ClassVar

from data.errors import UsageError
from models.captioners.base import CAPTIONERS, CaptionRequest
from models.captioners.generating import Decoding, GeneratingCaptioner, Written
from models.captioners.limits import Work
from models.captioners.templates import template_text
from models.captioners.thoughts import after_thinking
from models.captioners.vllm_engine import (
    Asked,
    Engine,
    EngineDiedError,
    RefusedError,
    VllmLibrary,
    require_vllm,
    vllm_version,
)
from models.captioners.vllm_words import LLAVA_TEMPLATE, config_of, is_llava, words_of
from models.captioners.vlm import Talk
from models.captioners.vlm_files import folder_of

if TYPE_CHECKING:
    from models.weights import Checkpoint

__all__ = ["VllmCaptioner"]

PROMPT_VERSION = 1
"""In recipes: tokens put together otherwise are other captions."""


@CAPTIONERS.register("vllm")
class VllmCaptioner(GeneratingCaptioner):
    """Captions by vLLM's offline engine.

    Args:
        checkpoint: folder of a model that vLLM and transformers know, or `hf:ORG/NAME`.
        seed: of sampling, with the key of each request.
        device: taken and not used: vLLM takes the GPUs that the process sees.
        template: LLaVA: a name of `templates.TEMPLATES` or a text with `<image>` and `{question}`;
            others: a text with `{images}` and `{prompt}`. None: `vicuna_v1`; the chat template.
        system, template_options, say_times: see `vlm.Talk`; not for LLaVA.
        frames: pictures of a request; LLaVA sees one.
        side: longest side of a picture in pixels; LLaVA decides itself.
        processor: options of vLLM's `mm_processor_kwargs`.
        quantization: vLLM's name of a method that changes the weights on loading; None: as stored.
        max_new_tokens, temperature, top_p, top_k, repetition_penalty: see `Decoding`.
        retries: how often a caption that the guards object to is generated again.
        dtype: of the weights, "auto" as vLLM has it.
        max_num_seqs: most captions at once; vLLM's own default ran out of memory with pictures.
        max_model_len: most tokens of a caption, pictures, prompt and answer.
        gpu_memory_utilization: share of the GPU's memory that vLLM takes.
        tensor_parallel: GPUs that share one model; the stage gives a worker so many.
        enforce_eager: without CUDA graphs.

    Raises:
        UsageError: vLLM is not installed, options or a checkpoint that cannot be.

    Attributes:
        restarts: engines that died and were started again.
    """

    name = "vllm"
    machine_options: ClassVar[frozenset[str]] = frozenset(
        {
            "device",
            "dtype",
            "max_num_seqs",
            "max_model_len",
            "gpu_memory_utilization",
            "tensor_parallel",
            "enforce_eager",
        }
    )

    def __init__(
        self,
        checkpoint: Checkpoint | None = None,
        *,
        seed: int = 0,
        device: str = "cuda",
        template: str | None = None,
        system: str = "",
        template_options: Mapping[str, Any] | None = None,
        say_times: bool = False,
        frames: int = 1,
        side: int = 672,
        processor: Mapping[str, Any] | None = None,
        quantization: str | None = None,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        retries: int = 2,
        dtype: str = "auto",
        max_num_seqs: int = 128,
        max_model_len: int = 2048,
        gpu_memory_utilization: float = 0.9,
        tensor_parallel: int = 1,
        enforce_eager: bool = False,
    ) -> None:
        del device
        _check_numbers(max_num_seqs, max_model_len, gpu_memory_utilization, tensor_parallel)
        talk = Talk(system, None, template_options, say_times)
        folder = folder_of(checkpoint, self.name)
        self._words = words_of(folder, template, talk, frames, side)
        self.sight = self._words.sight
        self.decoding = Decoding(
            max_new_tokens, temperature, top_p, repetition_penalty, seed, top_k
        )
        self.retries = retries
        self.arguments: dict[str, Any] = {
            "model": str(folder),
            "seed": seed,
            "dtype": dtype,
            "quantization": quantization,
            "max_num_seqs": max_num_seqs,
            "max_model_len": max_model_len,
            "gpu_memory_utilization": gpu_memory_utilization,
            "tensor_parallel_size": tensor_parallel,
            "enforce_eager": enforce_eager,
            "mm_processor_kwargs": dict(processor or {}) or None,
            # Of videos it takes 999 otherwise, and keeps room for one.
            "limit_mm_per_prompt": {"image": self.sight.frames, "video": 0, "audio": 0},
            "mm_processor_cache_gb": 0,  # each frame is seen once
            "enable_prefix_caching": False,  # what is before the picture is short
            "trust_remote_code": False,
            "disable_log_stats": True,
        }
        if tensor_parallel > 1:
            # Within a Ray actor vLLM would ask Ray for more GPUs than the worker has.
            self.arguments["distributed_executor_backend"] = "mp"
        self._engine: Engine | None = self.start()
        self.restarts = 0

    def start(self) -> Engine:
        """Another engine with the same arguments."""
        return VllmLibrary(self.arguments)

    @classmethod
    def gpus(cls, options: Mapping[str, Any]) -> float:
        """As many as share the model."""
        return float(options.get("tensor_parallel", 1))

    @classmethod
    def recipe(
        cls, options: Mapping[str, Any], checkpoint: Checkpoint | None = None
    ) -> dict[str, Any]:
        """Also the version of the prompt, and the words of a template that ships."""
        made = {**super().recipe(options, checkpoint), "prompt": PROMPT_VERSION}
        named = made["template"]
        if named is not None and "{images}" not in named:
            made["template"] = template_text(named)
        return made

    @classmethod
    def check(cls, checkpoint: Checkpoint | None, options: Mapping[str, Any]) -> None:
        """vLLM is installed; folder, tokenizer and template go together; no weights are read."""
        require_vllm()
        names = ("system", "template_options", "say_times")
        talk = Talk(**{name: options[name] for name in names if name in options})
        folder = folder_of(checkpoint, cls.name)
        words_of(
            folder,
            options.get("template"),
            talk,
            options.get("frames", 1),
            options.get("side", 672),
        )

    @classmethod
    def work(cls, checkpoint: Checkpoint | None, options: Mapping[str, Any]) -> Work | None:
        """As captioners `llava` and `vlm` count it; None for weights that are quantised, whose cost
        is vLLM's secret.
        """
        from models.captioners.llava import Llava
        from models.captioners.vlm import VlmCaptioner

        folder = folder_of(checkpoint, cls.name)
        config = config_of(folder)
        if config.get("quantization_config") or options.get("quantization"):
            return None
        kind = Llava if is_llava(config) else VlmCaptioner
        return kind.work(folder, {**options, "template": options.get("template") or LLAVA_TEMPLATE})

    def params(self) -> dict[str, Any]:
        """See `Captioner.params`."""
        own = {key: value for key, value in self.arguments.items() if key != "model"}
        return super().params() | {"engine": own, "vllm": vllm_version()}

    def write(self, requests: Sequence[CaptionRequest], decoding: Decoding) -> list[Written]:
        """See `GeneratingCaptioner.write`. An engine that dies is started again, and what it had is
        done again, once: the second death in a call is the caller's, who knows other batches.
        """
        asked = [self._asked(each, decoding) for each in requests]
        try:
            return self._generate(asked, decoding)
        except EngineDiedError:
            self._throw_away()
            self.restarts += 1
            return self._generate(asked, decoding)

    def close(self) -> None:
        """Give the GPU's memory back."""
        self._throw_away()

    def _throw_away(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _generate(self, asked: Sequence[Asked], decoding: Decoding) -> list[Written]:
        if self._engine is None:
            self._engine = self.start()
        engine = self._engine
        try:
            made = engine.generate(asked, decoding) if asked else []
        except EngineDiedError:
            self._throw_away()
            raise
        except RefusedError as error:
            if len(asked) == 1:
                return [Written("", "error", reason=f"vLLM refused it ({_short(error)})")]
        else:
            pairs = zip(made, asked, strict=True)
            return [
                replace(one, text=after_thinking(one.text, thinking=each.thinking))
                for one, each in pairs
            ]
        # One of them cannot be done: the others can.
        return [one for each in asked for one in self._generate([each], decoding)]

    def _asked(self, request: CaptionRequest, decoding: Decoding) -> Asked:
        mixed = blake2b(f"{decoding.seed}|{request.key}".encode(), digest_size=8).digest()
        seed = int.from_bytes(mixed, "big") >> 1
        ids, thinking = self._words.ids(request)
        return Asked(ids, request.frames, seed, thinking)


def _check_numbers(rows: int, tokens: int, share: float, gpus: int) -> None:
    for name, value, least, most in (
        ("max_num_seqs", rows, 1, 4096),
        ("max_model_len", tokens, 16, 1 << 20),
        ("gpu_memory_utilization", share, 0.05, 1),
        ("tensor_parallel", gpus, 1, 64),
    ):
        if not least <= value <= most:
            raise UsageError(f"captioner vllm: {name} is {value}; allowed: {least:g} to {most:g}")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
