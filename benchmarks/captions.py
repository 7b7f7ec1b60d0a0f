"""How many captions per second: ours beside the public way, and beside what the GPU can do at most.

The public way is what papers and notebooks do: one frame after the other through transformers'
processor and `generate()`. Ours is the `llava` captioner. Both use the same network in this
process, on the same frames, with the same words; on a CPU in float32 they must write the same.

On a CPU, making the pictures counts for both; on a GPU it is left out of ours, since processes that
decode do it meanwhile (its cost is printed). Weights are random: what they say is noise, what they
cost is not. The token of the end is made impossible, so that every caption has `--new-tokens`.

    python benchmarks/captions.py                      # two cores, the tiny model
    python benchmarks/captions.py --size 13b           # a GPU of 80 GB or more
    python benchmarks/captions.py --size 13b --layers 2 --captions 2 --public 1 --new-tokens 3

The last one tries the way of the large model where there is none of its memory: its widths, with
two layers (6 GB in float32); it has no target of speed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from harness import Benchmark
from numpy.typing import NDArray

from data.video.fits import fit_picture
from data.video.types import View
from models.captioners import CaptionRequest, llava
from models.captioners.limits import Work, bound, gpu_called
from models.captioners.llava import Llava
from models.captioners.llava_layouts import SIZES, LlavaPlan
from models.tokens import ByteTokens

TEMPLATE = "<image>\n{question} ASSISTANT:"
QUESTION = "Please caption this frame in one or two phrases"
"""With the template and the token of the beginning 60 tokens of one byte: about as many as TEA's
prompt has in LLaVA's template and tokenizer (specs/captioners.md §3.2: 576 + 60)."""

TOKENS = ByteTokens()
"""Of random weights."""

CPU_TIMES, GPU_CAPTIONS_HZ = 3.0, 14.0
"""What issue 6 asks for: on two cores with the tiny model, on an H200 with LLaVA-1.5-13B."""

TEA_SECONDS = 0.706
"""Of one caption with LLaVA-1.5-13B on an A100 80 GB, as TEA reports it."""


def frames(count: int) -> NDArray[np.uint8]:
    """Frames of a video (count, 360, 640, 3): smooth colours that move."""
    grid = np.stack(np.meshgrid(np.arange(360), np.arange(640), indexing="ij"), -1)
    times = np.arange(count)[:, None, None]
    waves = [
        np.sin(grid[..., 0] / (23 + 7 * c) + times * 0.7) * np.cos(grid[..., 1] / 41 + c + times)
        for c in range(3)
    ]
    return ((np.stack(waves, -1) + 1) * 127.5).astype(np.uint8)


def without_end(captioner: Llava) -> None:
    """Make every caption as long as it may be, and say nothing that no tokenizer knows."""
    rows = captioner.net.lm_head.weight.data
    rows[TOKENS.eos] = 0.0
    rows[TOKENS.count :] = 0.0


class PublicWay:
    """transformers' processor and `generate()`, one frame at a time.

    Args:
        captioner: whose network is used.
    """

    def __init__(self, captioner: Llava) -> None:
        from transformers import LlavaImageProcessorPil, LlavaProcessor

        side = captioner.sight.side
        self.net = captioner.net
        self.net.config.image_token_id = self.net.config.text_config.vocab_size - 1
        self.device = self.net.device
        self.settings = {
            "max_new_tokens": captioner.decoding.max_new_tokens,
            "do_sample": False,
            "eos_token_id": TOKENS.eos,
            "pad_token_id": 0,
        }
        self.processor = LlavaProcessor(
            LlavaImageProcessorPil(
                do_pad=True,
                size={"shortest_edge": side},
                crop_size={"height": side, "width": side},
            ),
            byte_tokenizer(self.net.config.image_token_id),
            patch_size=self.net.config.vision_config.patch_size,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )

    @torch.inference_mode()
    def __call__(self, pictures: NDArray[np.uint8]) -> list[tuple[int, ...]]:
        """The ids of each caption."""
        return [self._one(picture) for picture in pictures]

    def _one(self, picture: NDArray[np.uint8]) -> tuple[int, ...]:
        from PIL import Image

        asked = self.processor(
            images=Image.fromarray(picture),
            text=TEMPLATE.replace("{question}", QUESTION),
            return_tensors="pt",
        ).to(self.device, self.net.dtype)
        made = self.net.generate(**asked, **self.settings)
        return tuple(made[0, asked["input_ids"].shape[1] :].tolist())


def byte_tokenizer(image_id: int) -> Any:
    """transformers' tokenizer with the ids of `models.tokens.ByteTokens`, and one for a picture."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    # The byte-level alphabet: printable bytes stand for themselves, the others follow from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + place) for place, byte in enumerate(others)}
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {letters[byte]: byte + 3 for byte in range(256)}
    vocabulary["<image>"] = image_id
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )


def requests(captioner: Llava, shown: NDArray[np.uint8]) -> list[CaptionRequest]:
    """What the stage would ask for these frames."""
    sight = captioner.sight
    view = View(sight.side, fit="padded", background=sight.background)
    return [
        CaptionRequest(fit_picture(each, view)[None], QUESTION, float(i), f"frame/{i}")
        for i, each in enumerate(shown)
    ]


def seconds(work: Callable[[], object]) -> float:
    """Wall seconds; on a GPU all work has an end in numbers that are read."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def work_of(size: str, prompt_tokens: int, new_tokens: int) -> Work:
    """Cost of one caption, with as many prompt tokens as there really were."""
    told = Llava.work(None, {"size": size, "max_new_tokens": new_tokens, "template": TEMPLATE})
    assert told is not None  # for the type checker: LLaVA's sizes are known
    scale = prompt_tokens / told.prompt_tokens
    return replace(told, prompt_tokens=prompt_tokens, prompt_flops=told.prompt_flops * scale)


def compare(bench: Benchmark, captioner: Llava, shown: NDArray[np.uint8]) -> float:
    """Both ways, alternating; ours in captions per second."""
    args, on_gpu = bench.args, captioner.net.device.type == "cuda"
    public, few = PublicWay(captioner), shown[: args.public]
    made = requests(captioner, shown)
    theirs, start = public(few), time.perf_counter()
    ours = captioner.caption(made)  # also warms up, and records graphs
    first_s = time.perf_counter() - start
    before = captioner._engine.counts.row_steps, captioner._engine.counts.tokens
    slow, fast, pictures = [], [], []
    for _ in range(args.repeats):
        slow.append(seconds(lambda: public(few)) / len(few))
        pictures.append(seconds(lambda: requests(captioner, shown)) / len(shown))
        fast.append(seconds(lambda: captioner.caption(made)) / len(shown))
    each, theirs_s = statistics.median(fast), statistics.median(slow)
    picture_s = statistics.median(pictures)
    ours_s = each if on_gpu else each + picture_s
    bench.figure("prompt", ours[0].prompt_tokens, "tokens")
    bench.figure("caption", statistics.mean(one.new_tokens for one in ours), "tokens")
    bench.figure("public way, one frame at a time", 1 / theirs_s, "captions/s")
    bench.figure("making a picture, one core", 1e3 * picture_s, "ms")
    bench.figure(
        "ours", 1 / ours_s, "captions/s", at_least=GPU_CAPTIONS_HZ if large(args) else None
    )
    if on_gpu:
        alone = 1 / (each + picture_s)
        bench.figure("ours, pictures made before on one core", alone, "captions/s")
    bench.figure("ours, the first call of all", len(shown) / first_s, "captions/s")
    faster = CPU_TIMES if args.size == "tiny" or large(args) else None
    bench.figure("ours, times as fast", theirs_s / ours_s, "x", at_least=faster)
    bench.figure("ours, new tokens", statistics.mean(o.new_tokens for o in ours) / ours_s, "/s")
    after = captioner._engine.counts.row_steps, captioner._engine.counts.tokens
    steps = len(shown) * args.repeats  # the first token of a row comes from its prompt, no step
    bench.figure(
        "row steps that gave a token",
        100 * (after[1] - before[1] - steps) / (after[0] - before[0]),
        "%",
    )
    same = [TOKENS.decode(a) == (b.raw or b.text) for a, b in zip(theirs, ours, strict=False)]
    bench.figure(
        "same captions", 100 * statistics.mean(same), "%", at_least=None if on_gpu else 100
    )
    return 1 / ours_s


def fewer_layers(plan: LlavaPlan, layers: int) -> LlavaPlan:
    """The same widths with so many layers in both networks."""
    return replace(
        plan,
        text={**plan.text, "num_hidden_layers": layers},
        vision={**plan.vision, "num_hidden_layers": layers},
    )


def large(args: argparse.Namespace) -> bool:
    """Whether the target of the large model applies."""
    return args.size == "13b" and args.device.startswith("cuda")


def limit(bench: Benchmark, captioner: Llava, rate: float) -> None:
    """The share of what this GPU can do at most."""
    args = bench.args
    gpu = gpu_called(torch.cuda.get_device_name(captioner.net.device))
    if gpu is None:
        return
    (prompt,) = (figure.value for figure in bench.figures if figure.name == "prompt")
    work = work_of(args.size, int(prompt), args.new_tokens)
    most = bound(work, gpu, min(args.captions, captioner._engine.max_rows), args.new_tokens)
    bench.figure(f"limit of one {gpu.name}", most.captions_hz, "captions/s")
    bench.figure("share of the limit", 100 * rate / most.captions_hz, "%")
    peak = torch.cuda.max_memory_allocated(captioner.net.device)
    bench.figure("memory at most", peak / 2**30, "GiB")
    bench.figure("as fast as TEA says", rate * TEA_SECONDS, "x")


def main() -> None:
    """Print the table."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", default="tiny", help="tiny, 7b or 13b")
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--new-tokens", type=int, default=60)
    parser.add_argument("--captions", type=int, default=128 if on_gpu else 64, help="in one call")
    parser.add_argument("--public", type=int, default=8, help="frames of the public way")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-graphs", action="store_true", help="without CUDA graphs")
    parser.add_argument("--max-rows", type=int, help="most captions at once")
    parser.add_argument("--layers", type=int, help="fewer than the size has: a trial of the way")
    bench = Benchmark("Captions per second", parser)
    args = bench.args
    if args.layers is not None:
        name = f"{args.size} with {args.layers} layers"
        llava.SIZES = {**SIZES, name: fewer_layers(SIZES[args.size], args.layers)}
        args.size = name
    start = time.perf_counter()
    captioner = Llava(
        None,
        size=args.size,
        device=args.device,
        template=TEMPLATE,
        max_new_tokens=args.new_tokens,
        retries=0,
        max_rows=args.max_rows,
        graphs=not args.no_graphs,
    )
    without_end(captioner)
    bench.figure("making the weights", time.perf_counter() - start, "s")
    bench.question = (
        f"LLaVA {args.size}, random weights, {captioner.net.dtype} on {args.device}, "
        f"{torch.get_num_threads()} threads"
    )
    rate = compare(bench, captioner, frames(args.captions))
    if captioner.net.device.type == "cuda":
        limit(bench, captioner, rate)
    bench.finish()


if __name__ == "__main__":
    main()
