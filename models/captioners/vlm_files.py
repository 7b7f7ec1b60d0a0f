"""A folder of Hugging Face with a vision-language model to its network and its processor, strictly.

Three traps of transformers 5.23 are closed here (specs/captioners.md §1.3, §2.4):

- a configuration that does not fit the weights gives a network with random weights and only logs
  it: here a tensor that is missing, left over or of another shape is an error that names it;
- processors of families that can also see videos need torchvision for that half of them: here they
  are built without it, and pictures are always made by PIL, so that the same checkpoint sees the
  same numbers on every machine;
- code that lies in the folder of a checkpoint is never run, and nothing is ever downloaded:
  `trust_remote_code` is False in every call, for left out it asks on the terminal whether to.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import torch

from data.errors import UsageError, how_to_install, nearest, some
from data.foreign import DIGITS_OF_SETTINGS, brief, json_object, read_limited
from models.compat import ensure_torchvision
from models.zoo import resolve

__all__ = [
    "DTYPES",
    "dtype_of",
    "end_tokens",
    "folder_of",
    "load_config",
    "load_model",
    "load_processor",
    "load_tokenizer",
    "process_empty",
    "transformers",
]

_NAMED_IN = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
"""Where a folder says which processor it wants, in the order of AutoProcessor."""

_MOST_SETTINGS = 16 << 20
"""Bytes; a tokenizer_config.json with thousands of added tokens has one MiB."""


def folder_of(checkpoint: Any, what: str) -> Path:
    """The folder that a checkpoint names.

    Args:
        checkpoint: a path, or `hf:ORG/NAME` of the local cache (`models.zoo.resolve`).
        what: the captioner, for the message.

    Raises:
        UsageError: no checkpoint, not found, or no folder with a `config.json`.
    """
    if not isinstance(checkpoint, str | Path):
        given = "none" if checkpoint is None else f"a {type(checkpoint).__name__}"
        raise UsageError(
            f"captioner {what} needs a checkpoint, got {given}; give the folder of a model of "
            "Hugging Face (config.json, tokenizer, processor, *.safetensors) or hf:ORG/NAME of the "
            "local cache"
        )
    folder = resolve(checkpoint)
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"'{folder}' is no folder of a model for captioner {what}: it has no config.json"
        )
    return folder


def transformers() -> Any:
    """The library; UsageError with the command if it is not installed."""
    ensure_torchvision()
    try:
        import transformers as library
    except ImportError as error:
        raise UsageError(
            f"this captioner needs transformers ({error}); install it: {how_to_install('pipeline')}"
        ) from error
    parts = (
        (library.GenerationMixin, "_prepare_position_ids_for_generation"),  # of vlm
        (library.Cache, "get_query_offset"),  # asked by masks; before it they asked in another way
    )
    if not all(hasattr(kind, name) for kind, name in parts):
        raise UsageError(
            f"this captioner uses parts of transformers that {library.__version__} does not have "
            f"(it is tested with 5.23); install it: {how_to_install('pipeline')}"
        )
    library.logging.disable_progress_bar()  # one bar for each worker, through the progress table
    return library


def load_config(folder: Path, what: str = "vlm") -> Any:
    """The configuration of a decoder-only model that turns pictures and text into text.

    Args:
        folder: see `folder_of`.
        what: the captioner, for messages.

    Raises:
        UsageError: unknown to this version of transformers, needs code of its own, or of another
            kind; the message names the known kinds that are spelled most alike.
    """
    library = transformers()
    from transformers.models.auto import modeling_auto

    known = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    kind = str(_json(folder / "config.json").get("model_type", ""))
    if kind not in known:
        raise UsageError(
            f"'{folder}' is a model of kind '{kind}', which transformers {library.__version__} "
            f"cannot caption pictures with; {nearest(kind, known)}. Code in a checkpoint's folder "
            "is never run; a server (captioner openai) may know this model"
        )
    _check_kernels(folder / "config.json")
    with _told(folder, "configuration"):
        config = library.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    if getattr(config, "is_encoder_decoder", False):
        raise UsageError(
            f"'{folder}' ({kind}) has an encoder and a decoder of text; captioner {what} runs "
            "models whose one language model reads the pictures (Qwen-VL, BLIP-2 with OPT, …)"
        )
    return config


def _check_kernels(file: Path) -> None:
    """UsageError for a config.json that names an implementation of attention `ORG/NAME`: where the
    package `kernels` is installed, transformers downloads that and runs it.
    """
    told = _json(file)
    for name in ("attn_implementation", "_attn_implementation"):
        named = told.get(name)
        if "/" in str(named):
            raise UsageError(
                f"'{file}' asks for the attention {brief(named, 60)}, which is code to be "
                f"downloaded; take {name} out of the file (option attention of captioner vlm "
                "chooses one that transformers has)"
            )


def load_model(
    folder: Path,
    config: Any,
    *,
    device: str,
    dtype: torch.dtype,
    attention: str | None = None,
    ignored: Collection[str] = (),
) -> Any:
    """The network in evaluation mode, with every weight from the folder.

    Args:
        folder: see `folder_of`.
        config: of `load_config`.
        device: where it runs.
        dtype: of all its weights.
        attention: "sdpa", "eager", "flash_attention_2", …; None: what transformers takes.
        ignored: patterns (`mtp.*`) of tensors in the files that the network may leave out.

    Raises:
        UsageError: damaged files; tensors missing, left over or of another shape.
    """
    library = transformers()
    kind = library.AutoModelForImageTextToText
    with _told(folder, "weights"):
        model, found = kind.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **({} if attention is None else {"attn_implementation": attention}),
        )
    _check(folder, type(model).__name__, found, ignored)
    model = model.to(device).eval()
    _check_finite(folder, model)
    return model


def _check(folder: Path, what: str, found: Mapping[str, Any], ignored: Collection[str]) -> None:
    left = [
        name
        for name in found["unexpected_keys"]
        if not any(fnmatchcase(name, pattern) for pattern in ignored)
    ]
    shapes = [
        f"{name} is {tuple(a)}, expected {tuple(b)}" for name, a, b in found["mismatched_keys"]
    ]
    problems = [
        f"{label} {len(names)} tensors: {some(sorted(names), 4)}"
        for label, names in (
            ("missing", found["missing_keys"]),
            ("unexpected", left),
            ("wrong shape of", shapes),
        )
        if names
    ]
    if problems:
        raise UsageError(
            f"the weights in '{folder}' do not fit {what}: {'; '.join(problems)}. The config.json "
            "belongs to other weights, or shards are missing; tensors that this model may do "
            "without are named by option ignore_tensors"
        )


def _check_finite(folder: Path, model: Any) -> None:
    # On the device, where this takes no time.
    bad = [name for name, each in model.named_parameters() if not bool(each.isfinite().all())]
    if bad:
        raise UsageError(
            f"the weights in '{folder}' are not finite (NaN or infinity) as {model.dtype}: "
            f"{some(bad, 4)}; the files are damaged, or need another dtype (bfloat16, float32)"
        )


def load_processor(folder: Path, config: Any) -> Any:
    """The processor of a checkpoint, for pictures only: PIL's image processor, tokenizer, template.

    Raises:
        UsageError: files are missing or damaged, or a library that this processor wants is.
    """
    kind = _processor_class(folder, config)
    with _told(folder, "processor"):
        return _images_only(kind).from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )


def _processor_class(folder: Path, config: Any) -> Any:
    from transformers.models.auto.processing_auto import (
        PROCESSOR_MAPPING,
        processor_class_from_name,
    )

    for file in _NAMED_IN:
        name = _json(folder / file).get("processor_class") if (folder / file).is_file() else None
        if name is not None and (kind := processor_class_from_name(name)) is not None:
            return kind
    if type(config) in PROCESSOR_MAPPING:
        return PROCESSOR_MAPPING[type(config)]
    raise UsageError(
        f"'{folder}' ({config.model_type}) has no processor of pictures and text that transformers "
        f"knows; expected one of {', '.join(_NAMED_IN)} that names its processor_class"
    )


@cache
def _images_only(kind: type[Any]) -> type[Any]:
    """A processor class whose half for videos and sound is None: that half needs torchvision."""

    class ImagesOnly(kind):  # type: ignore[misc]  # the class is found at run time
        @classmethod
        def _get_arguments_from_pretrained(
            cls, folder: str, processor_dict: Any = None, **more: Any
        ) -> list[Any]:
            return [_part(cls, name, folder) for name in cls.get_attributes()]

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument is None:
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    ImagesOnly.__name__ = kind.__name__
    return ImagesOnly


def _part(kind: Any, name: str, folder: str) -> Any:
    from transformers import AutoImageProcessor

    if "tokenizer" in name:
        return kind._load_tokenizer_from_pretrained(
            name, folder, local_files_only=True, trust_remote_code=False
        )
    if name == "image_processor":
        return AutoImageProcessor.from_pretrained(
            folder, backend="pil", local_files_only=True, trust_remote_code=False
        )
    return None


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint; UsageError for missing or damaged files."""
    library = transformers()
    with _told(folder, "tokenizer"):
        return library.AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )


def process_empty(
    processor: Any, options: Mapping[str, Any], *, side: int, frames: int
) -> Mapping[str, Any]:
    """What a processor makes of empty pictures of 16:9, and of no words: its options are tried.

    Args:
        processor: of `load_processor`.
        options: that its image processor is to take instead of its own.
        side: the long side of the pictures.
        frames: how many.

    Raises:
        UsageError: an option that it does not take, or a value that it does not stand.
    """
    from PIL import Image

    eyes = type(processor.image_processor)
    allowed: set[str] = set()
    for kind in eyes.__mro__:
        allowed |= set(getattr(getattr(kind, "valid_kwargs", None), "__annotations__", {}))
    for name in options:
        if name not in allowed:
            raise UsageError(
                f"option processor of captioner vlm: {eyes.__name__} takes no '{name}'; "
                f"{nearest(name, allowed)}"
            )
    pictures = [Image.new("RGB", (side, max(side * 9 // 16, 1)))] * frames
    try:
        made: Mapping[str, Any] = processor(
            text=str(processor.image_token) * frames,
            images=pictures,
            return_tensors="pt",
            images_kwargs=dict(options),
        )
    except Exception as error:  # every image processor has its own errors
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise UsageError(
            f"{eyes.__name__} of this checkpoint makes nothing of {frames} pictures with a long "
            f"side of {side} and option processor {dict(options)} ({type(error).__name__}: "
            f"{reason})"
        ) from error
    return made


@contextmanager
def _told(folder: Path, what: str) -> Iterator[None]:
    """Whatever the library raises for a folder of the user, as a UsageError with its reason."""
    try:
        yield
    except (torch.OutOfMemoryError, UsageError):
        raise
    except Exception as error:  # every part of the library has its own errors for a bad file
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise UsageError(
            f"the {what} in '{folder}' cannot be loaded ({type(error).__name__}: {reason})"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    content = read_limited(path, _MOST_SETTINGS, "the settings of a model")
    return json_object(content, str(path), digits=DIGITS_OF_SETTINGS)


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Values of option dtype, beside `auto`."""


def dtype_of(name: str, device: str, what: str) -> torch.dtype:
    """Option dtype of captioner `what`: "auto" is float32 on a CPU, else bfloat16 if there is it.

    Raises:
        UsageError: another name.
    """
    if name in DTYPES:
        return DTYPES[name]
    if name != "auto":
        raise UsageError(
            f"captioner {what}: option dtype is '{name}'; {nearest(name, ['auto', *DTYPES])}"
        )
    if torch.device(device).type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a text: those of generation_config.json and the tokenizer's own.

    Raises:
        UsageError: there is none, so no caption would ever end.
    """
    named = model.generation_config.eos_token_id
    found = {*(named if isinstance(named, list | tuple) else [named]), tokenizer.eos_token_id}
    ends = frozenset(int(each) for each in found if each is not None)
    if not ends:
        raise UsageError(
            "neither generation_config.json nor the tokenizer of this checkpoint names a token "
            "that ends a text (eos_token_id)"
        )
    return ends
