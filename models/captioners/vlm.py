"""`vlm`: any vision-language model that transformers reads as AutoModelForImageTextToText.

Qwen-VL, InternVL, LLaVA-NeXT and -OneVision, Idefics, Gemma and others: the model, its processor
of pictures, its tokenizer and its chat template all come from the checkpoint's folder. Several
frames are several pictures, not a video: the video half of processors needs torchvision, and what
a timestamp saw would not be told. docs/captioners.md names the families that are tested.

Parts: `vlm_files` (a folder, strictly), `vlm_rows` (generation), `vlm_cost` (what it takes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from data.errors import UsageError
from models.captioners.base import CAPTIONERS, CaptionRequest, Sight
from models.captioners.generating import (
    Decoding,
    GeneratingCaptioner,
    Written,
    check_decoding,
)
from models.captioners.limits import Work
from models.captioners.loop.types import Generated
from models.captioners.thoughts import after_thinking, thinks
from models.captioners.vlm_files import (
    dtype_of,
    end_tokens,
    folder_of,
    load_config,
    load_model,
    load_processor,
    process_empty,
    transformers,
)
from models.checkpoints import Checkpoint

if TYPE_CHECKING:
    from models.captioners.vlm_rows import Asked

__all__ = ["Talk", "VlmCaptioner"]

_MOST_FRAMES = 64


@dataclass(frozen=True)
class Talk:
    """How a request becomes a text with places for pictures.

    Args:
        system: system message; "" for none.
        template: text with `{images}` and `{prompt}`, instead of the checkpoint's chat template.
        template_options: variables of the chat template (`enable_thinking: false`).
        say_times: write the time of each frame before it, as `<1.5 seconds>`.

    Raises:
        UsageError: a template without those two places, or settings that do not go together.
    """

    system: str = ""
    template: str | None = None
    template_options: Mapping[str, Any] | None = None
    say_times: bool = False

    def __post_init__(self) -> None:
        if self.template is None:
            return
        for place in ("{images}", "{prompt}"):
            if self.template.count(place) != 1:
                raise UsageError(
                    f"captioner vlm: option template has to hold {place} once, got "
                    f"{self.template!r}; for example 'USER: {{images}}\\n{{prompt}} ASSISTANT:'"
                )
        if self.system or self.template_options:
            raise UsageError(
                "captioner vlm: options system and template_options are for the checkpoint's chat "
                "template; with option template write everything into it"
            )

    def text(self, processor: Any, request: CaptionRequest) -> str:
        """The whole prompt, with one mark of the processor for each picture."""
        if self.template is not None:
            marks = "".join(
                part.get("text", processor.image_token) for part in self._pictures(request)
            )
            # The prompt last: it may hold braces.
            return self.template.replace("{images}", marks).replace("{prompt}", request.prompt)
        asked = [*self._pictures(request), {"type": "text", "text": request.prompt}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": asked}]
        if self.system:
            said = [{"type": "text", "text": self.system}]
            messages.insert(0, {"role": "system", "content": said})
        try:
            made: str = processor.apply_chat_template(
                messages,
                add_generation_prompt=True,
                tokenize=False,
                **(self.template_options or {}),
            )
        except Exception as error:  # a program of a stranger, in Jinja's sandbox: anything
            reason = (str(error).strip().splitlines() or ["no reason given"])[0][:300]
            raise UsageError(
                "the chat template of this checkpoint does not take a request ("
                f"{type(error).__name__}: {reason}); mend options system and template_options, or "
                "write option template, for example 'USER: {images}\\n{prompt} ASSISTANT:'"
            ) from None
        return made

    def check(self, processor: Any, folder: Path, frames: int) -> None:
        """UsageError if the processor of a folder has no template, or one that takes no request:
        it would take none of a hundred thousand.
        """
        if self.template is None and processor.chat_template is None:
            raise UsageError(
                f"'{folder}' has no chat template, so it is not known how this model is asked; "
                "write option template, for example 'USER: {images}\\n{prompt} ASSISTANT:'"
            )
        blind = np.zeros((frames, 1, 1, 3), dtype=np.uint8)
        self.text(processor, CaptionRequest(blind, "?", 0.0, "", times_s=(0.0,) * frames))

    def _pictures(self, request: CaptionRequest) -> list[dict[str, Any]]:
        count = len(request.frames)
        if not self.say_times:
            return [{"type": "image"}] * count
        if len(request.times_s) != count:
            raise ValueError(f"{count} frames have {len(request.times_s)} times to be said")
        return [
            part
            for time_s in request.times_s
            for part in ({"type": "text", "text": f"<{time_s:.1f} seconds>"}, {"type": "image"})
        ]


@CAPTIONERS.register("vlm")
class VlmCaptioner(GeneratingCaptioner):
    """A vision-language model of Hugging Face.

    Args:
        checkpoint: folder of the model, or `hf:ORG/NAME` of the local cache; needed.
        seed: of sampling.
        device: torch device.
        dtype: of the weights: "auto" (float32 on a CPU, bfloat16 on a GPU that has it), or one of
            float32, bfloat16, float16.
        frames: pictures of one request.
        side: a frame is made smaller until its long side is at most so many pixels; the model's
            own processor does the rest. For models that read a picture at its size (Qwen-VL) this
            decides how many tokens it takes.
        system, template, template_options, say_times: see `Talk`.
        processor: options of the checkpoint's image processor that are to differ
            (`{do_image_splitting: false}`, `{max_pixels: 200704}`).
        ignore_tensors: patterns (`mtp.*`) of tensors in the files that the model may do without.
        attention: implementation of attention, by transformers' name; None: its own choice.
        max_rows: most captions at once; None: as free memory allows.
        max_new_tokens, temperature, top_p, top_k, repetition_penalty: see `Decoding`. What the
            checkpoint's generation_config.json says of sampling is not used, its end tokens are.
        retries: see `GeneratingCaptioner`.

    Raises:
        UsageError: no such folder, weights that do not fit, unknown options, a model of another
            kind, a library that its processor needs is not installed.
    """

    name = "vlm"
    machine_options: ClassVar[frozenset[str]] = frozenset(
        {"device", "dtype", "attention", "max_rows"}
    )

    def __init__(
        self,
        checkpoint: Checkpoint | None = None,
        *,
        seed: int = 0,
        device: str = "cpu",
        dtype: str = "auto",
        frames: int = 1,
        side: int = 672,
        system: str = "",
        template: str | None = None,
        template_options: Mapping[str, Any] | None = None,
        say_times: bool = False,
        processor: Mapping[str, Any] | None = None,
        ignore_tensors: Sequence[str] = (),
        attention: str | None = None,
        max_rows: int | None = None,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        retries: int = 2,
    ) -> None:
        _check(frames, side)
        self._talk = Talk(system, template, template_options, say_times)
        folder = folder_of(checkpoint, self.name)
        config = load_config(folder)
        self._processor = load_processor(folder, config)
        self._pictures = dict(processor or {})
        process_empty(self._processor, self._pictures, side=side, frames=frames)
        self._talk.check(self._processor, folder, frames)
        model = load_model(
            folder,
            config,
            device=device,
            dtype=dtype_of(dtype, device, self.name),
            attention=attention,
            ignored=ignore_tensors,
        )
        from models.captioners.vlm_rows import RowEngine  # imports transformers

        self._model, self._device = model, torch.device(device)
        self._engine = RowEngine(
            model, eos=end_tokens(model, self._processor.tokenizer), max_rows=max_rows
        )
        self._most_tokens = getattr(config.get_text_config(), "max_position_embeddings", None)
        self.sight = Sight(frames, side, "within")
        self.decoding = Decoding(
            max_new_tokens, temperature, top_p, repetition_penalty, seed, top_k
        )
        self.retries = retries

    @classmethod
    def check(cls, checkpoint: Checkpoint | None, options: Mapping[str, Any]) -> None:
        """The folder, its kind of model, its processor and the options; no weights are read."""
        frames, side = options.get("frames", 1), options.get("side", 672)
        _check(frames, side)
        check_decoding(options)
        names = ("system", "template", "template_options", "say_times")
        talk = Talk(**{name: options[name] for name in names if name in options})
        folder = folder_of(checkpoint, cls.name)
        processor = load_processor(folder, load_config(folder))
        process_empty(processor, options.get("processor") or {}, side=side, frames=frames)
        talk.check(processor, folder, frames)

    @classmethod
    def work(cls, checkpoint: Checkpoint | None, options: Mapping[str, Any]) -> Work | None:
        """Counted on an empty picture of 16:9, without weights; None for sizes not understood."""
        from models.captioners.vlm_cost import work_of

        return work_of(folder_of(checkpoint, cls.name), options)

    def params(self) -> dict[str, Any]:
        """See `Captioner.params`."""
        return super().params() | {
            "model": type(self._model).__name__,
            "processor": type(self._processor).__name__,
            "image_processor": type(self._processor.image_processor).__name__,
            "attention": self._model.config._attn_implementation,
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "device": str(self._device),
            "max_rows": self._engine.budget.rows,
            "transformers": transformers().__version__,
            "torch": torch.__version__,
        }

    def write(self, requests: Sequence[CaptionRequest], decoding: Decoding) -> list[Written]:
        """See `GeneratingCaptioner.write`."""
        made = [self._asked(request, decoding) for request in requests]
        asked = [each for each in made if not isinstance(each, Written)]
        written = iter(self._engine.generate([each for _, each in asked], decoding))
        return [
            each if isinstance(each, Written) else self._written(next(written), each[0])
            for each in made
        ]

    def close(self) -> None:
        """Forget the network."""
        del self._engine, self._model
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _asked(self, request: CaptionRequest, decoding: Decoding) -> tuple[str, Asked] | Written:
        """The text and the inputs of one request, or why there are none."""
        from models.captioners.vlm_rows import Asked

        try:
            text = self._talk.text(self._processor, request)
            made = self._processed(text, request.frames)
        except (ValueError, TypeError, RuntimeError) as error:  # the processor's, of this request
            reason = f"the processor refused it ({type(error).__name__}: {error})"
            return Written("", "error", reason=reason)
        ids = made.pop("input_ids")
        made.pop("attention_mask", None)  # nothing is padded
        tokens = ids.shape[1]
        if self._most_tokens is not None and tokens + decoding.max_new_tokens > self._most_tokens:
            raise UsageError(
                f"a prompt of {tokens} tokens and max_new_tokens {decoding.max_new_tokens} are "
                f"more than the {self._most_tokens} positions of this model; make side or frames "
                "smaller, or let its processor cut a picture into fewer tiles"
            )
        return text, Asked(ids, made, request.key)

    def _processed(self, text: str, frames: NDArray[np.uint8]) -> dict[str, Any]:
        from PIL import Image

        bos = self._processor.tokenizer.bos_token
        # A template that writes the first token itself must not get it twice.
        special = {"add_special_tokens": False} if bos and text.startswith(bos) else {}
        return dict(
            self._processor(
                text=text,
                images=[Image.fromarray(frame) for frame in frames],
                return_tensors="pt",
                text_kwargs=special,
                images_kwargs=self._pictures,
            )
        )

    def _written(self, made: Generated, asked: str) -> Written:
        said = self._processor.tokenizer.decode(list(made.ids), skip_special_tokens=True)
        text = after_thinking(said, thinking=thinks(asked))
        return Written(text, made.finish_reason, made.prompt_tokens, len(made.ids), made.reason)


def _check(frames: int, side: int) -> None:
    if not 1 <= frames <= _MOST_FRAMES:
        raise UsageError(f"captioner vlm: option frames is {frames}; allowed: 1 to {_MOST_FRAMES}")
    if side < 1:
        raise UsageError(f"captioner vlm: option side is {side} pixels; allowed: 1 and more")
