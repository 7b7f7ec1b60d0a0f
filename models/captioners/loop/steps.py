"""One step of all rows: a token of each goes in, the logits of the next come out.

ExactSteps    attention sees as many tokens as the longest row has; no mask for equal rows
StaticSteps   few different shapes: rows and tokens are rounded up and what is too much is masked
GraphSteps    StaticSteps as CUDA graphs: one launch per step instead of a thousand

Small numbers of kernels matter: on a large GPU a step of LLaVA-13B takes some 10 ms, and Python
needs as long to start its kernels one by one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.captioners.loop.cache import Memory, Reading
from models.captioners.loop.memory import ran_out

__all__ = ["CudaGraphs", "ExactSteps", "GraphSteps", "Recorder", "StaticSteps", "Steps"]

_LOG = logging.getLogger(__name__)

_TOKENS = 64
"""Lengths are rounded up to these: reading on average 32 tokens too much costs 5 % of the keys and
values of a LLaVA caption, and each multiple is one more graph."""


class Steps(Protocol):
    """How a step is computed."""

    def bucket(self, rows: int) -> int:
        """How many rows are computed where `rows` are wanted; never fewer."""

    def length(self, tokens: int) -> int:
        """How many tokens attention sees where rows have `tokens`; never fewer."""

    def __call__(self, memory: Memory, rows: int, longest: int, equal: bool) -> Tensor:
        """Logits (rows, V) after `memory.ids` at `memory.positions`.

        Args:
            memory: keys and values; the step adds those of one token per row.
            rows: a bucket.
            longest: tokens of the longest row, the one that is fed included.
            equal: whether all rows that matter have as many.
        """

    def forget(self) -> None:
        """The memory is given up, and what was made for it."""


class ExactSteps:
    """As few numbers as possible; shapes change all the time."""

    def __init__(self, lm: nn.Module) -> None:
        self._lm: Any = lm

    def bucket(self, rows: int) -> int:
        """See `Steps.bucket`."""
        return rows

    def length(self, tokens: int) -> int:
        """See `Steps.length`."""
        return tokens

    def __call__(self, memory: Memory, rows: int, longest: int, equal: bool) -> Tensor:
        """See `Steps`."""
        return self._run(memory, rows, self.length(longest), masked=not equal)

    def forget(self) -> None:
        """See `Steps.forget`."""

    def _run(self, memory: Memory, rows: int, length: int, *, masked: bool) -> Tensor:
        positions = memory.positions[:rows]
        embeds = self._lm.get_input_embeddings()(memory.ids[:rows])
        made: Tensor = self._lm(
            inputs_embeds=embeds.unsqueeze(1),
            attention_mask=_mask(positions, length, embeds.dtype) if masked else None,
            position_ids=positions.unsqueeze(1),
            past_key_values=Reading(memory, rows, length),
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return made[:, -1]


class StaticSteps(ExactSteps):
    """Rows in powers of two and the middles between them, tokens in multiples of 64."""

    def bucket(self, rows: int) -> int:
        """1, 2, 3, 4, 6, 8, 12, 16, 24, …: never 50 % more than wanted."""
        power = 1 << (max(rows, 1) - 1).bit_length()
        return power * 3 // 4 if power >= 4 and rows <= power * 3 // 4 else power

    def length(self, tokens: int) -> int:
        """The next multiple of 64; what SDPA needs of a mask is a multiple of 16."""
        return -(-tokens // _TOKENS) * _TOKENS

    def __call__(self, memory: Memory, rows: int, longest: int, equal: bool) -> Tensor:
        """See `Steps`; masked whether rows are equal or not."""
        del equal
        return self._run(memory, rows, self.length(longest), masked=True)


class Recorder(Protocol):
    """Records work of a GPU once, to be done again with one launch."""

    def __call__(
        self, device: torch.device, compute: Callable[[], Tensor]
    ) -> tuple[Callable[[], object], Tensor]:
        """What does `compute` again, and the tensor that its result is in afterwards.

        Raises:
            RuntimeError: it cannot be recorded.
        """


class CudaGraphs:
    """Records CUDA graphs, which share their memory: only one of them runs at a time.

    All are recorded on one stream of their own, the same on which their step ran before: cuBLAS
    keeps 32 MB for each stream that it ever met, and recording must not be when it takes them.
    """

    def __init__(self) -> None:
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._stream: torch.cuda.Stream | None = None

    def __call__(
        self, device: torch.device, compute: Callable[[], Tensor]
    ) -> tuple[Callable[[], object], Tensor]:
        """See `Recorder`."""
        with torch.cuda.device(device):
            if self._stream is None:
                self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's
            before = torch.cuda.current_stream()
            graph = torch.cuda.CUDAGraph()
            self._stream.wait_stream(before)
            try:
                # Left also where recording fails; `torch.cuda.graph` then stays on its stream.
                with torch.cuda.stream(self._stream):
                    compute()
                    # Other threads (that decode video) may use the GPU meanwhile.
                    with torch.cuda.graph(
                        graph,
                        pool=self._pool,
                        stream=self._stream,
                        capture_error_mode="thread_local",
                    ):
                        made = compute()
            finally:
                # What ran there wrote to memory that goes on to be used, or is given back.
                before.wait_stream(self._stream)
        return graph.replay, made


class GraphSteps(StaticSteps):
    """Each shape is recorded once and then replayed.

    Args:
        lm: causal language model.
        recorder: makes what records; anew whenever memory is given up.

    Attributes:
        failure: why steps are computed one kernel at a time, where recording one failed.
    """

    def __init__(self, lm: nn.Module, recorder: Callable[[], Recorder] = CudaGraphs) -> None:
        super().__init__(lm)
        self.failure = ""
        self._recorder = recorder
        self._record: Recorder | None = None
        self._made: dict[tuple[int, int], tuple[Callable[[], object], Tensor]] = {}

    def __call__(self, memory: Memory, rows: int, longest: int, equal: bool) -> Tensor:
        """See `Steps`. The result is overwritten by the next call."""
        shape = (rows, self.length(longest))
        if shape in self._made:
            replay, logits = self._made[shape]
            replay()
            return logits
        # A step may run twice: it writes the same numbers to the same places. This one is computed
        # as usual, so that memory runs out, if it does, where that can be mended.
        logits = super().__call__(memory, rows, longest, equal)
        if not self.failure:
            self._add(memory, shape)
        return logits

    def forget(self) -> None:
        """See `Steps.forget`."""
        self._made.clear()
        self._record = None

    def _add(self, memory: Memory, shape: tuple[int, int]) -> None:
        self._record = self._record or self._recorder()
        try:
            self._made[shape] = self._record(
                memory.ids.device, lambda: self._run(memory, *shape, masked=True)
            )
        except RuntimeError as error:
            if ran_out(error):
                raise
            self.failure = str(error).splitlines()[0]
            _LOG.warning("no CUDA graphs, captions come slower: %s", self.failure)


def _mask(positions: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """What to add to scores, (n, 1, 1, length): nothing up to a row's position, else -inf."""
    seen = torch.arange(length, device=positions.device) <= positions.unsqueeze(1)
    mask = torch.zeros(seen.shape, device=positions.device, dtype=dtype)
    return mask.masked_fill(~seen, -torch.inf)[:, None, None, :]
