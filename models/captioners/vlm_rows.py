"""Generation with any vision-language model of transformers, for rows that need no padding.

The loop of `models.captioners.loop` runs a language model on embeddings. That is not enough here:
families number positions in three dimensions (Qwen-VL), add features of the picture to deeper
layers (Qwen3-VL), or attend in both directions within a picture (Gemma). So this loop calls the
whole model as `generate()` of transformers 5 does (its own hooks prepare the inputs of each step),
and does itself what `generate()` does not:

- rows of equal length and equally shaped pictures run together, so nothing is padded or masked
- prompts are read a few rows at a time, and captions are written by all of them together
- keys and values have room for the whole caption, instead of being copied for each new token
- rows that have ended leave the batch when less than three quarters of it is alive
- sampling is by (seed, key, step), whatever else is in the batch
- a batch for which memory does not suffice is halved, without losing a row

transformers is imported at the top of `vlm_cache`: import this module only where a model runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.captioners.generating import Decoding
from models.captioners.loop.memory import Budget, ran_out
from models.captioners.loop.rows import COMPACT_BELOW, Ending, Row
from models.captioners.loop.sampling import Chooser
from models.captioners.loop.types import Generated
from models.captioners.vlm_cache import join, new_cache, separable, token_bytes

__all__ = ["Asked", "RowEngine"]


@dataclass(frozen=True)
class Asked:
    """One caption that is to be written.

    Args:
        ids: tokens of the prompt (1, T), those of pictures included.
        inputs: what else the processor made of this request alone, by the names of the model's
            `forward`; several rows are joined along the first dimension.
        key: seeds its sampling.
    """

    ids: Tensor
    inputs: Mapping[str, Tensor]
    key: str

    @property
    def shape(self) -> tuple[Any, ...]:
        """Rows of equal shape can run together."""
        return self.ids.shape[1], *(
            (name, *self.inputs[name].shape) for name in sorted(self.inputs)
        )


@dataclass
class _Flight:
    """Captions that are being written together: what the next step of the model needs.

    Args:
        ids: prompts and what was written (rows, tokens).
        kwargs: of the model's hooks, the cache among them.
        logits: of the next token (rows, vocabulary), float32.
        chooser: picks the next tokens.
        rows: what became of each so far.
    """

    ids: Tensor
    kwargs: dict[str, Any]
    logits: Tensor
    chooser: Chooser
    rows: list[Row]

    def choose(self, step: int, ending: Ending) -> None:
        """Take the next token of every row that has not ended."""
        chosen = self.chooser(self.logits, step)
        for row, token in zip(self.rows, chosen.tolist(), strict=True):
            if row.finish is None:
                row.add(token, ending)
        self.ids = torch.cat([self.ids, chosen.clamp(min=0)[:, None]], dim=1)

    @property
    def at_work(self) -> list[int]:
        """Places of the rows that have not ended."""
        return [place for place, row in enumerate(self.rows) if row.finish is None]

    def keep(self, places: Sequence[int]) -> None:
        """Let all other rows leave."""
        taken, before = torch.tensor(places, device=self.ids.device), len(self.rows)
        self.ids, self.logits = self.ids[taken], self.logits[taken]
        self.chooser.select(taken)
        self.rows = [self.rows[place] for place in places]
        self.kwargs["past_key_values"].batch_select_indices(taken)
        for name, value in self.kwargs.items():
            if isinstance(value, Tensor):
                self.kwargs[name] = value.index_select(_rows_of(name, value, before), taken)


def _rows_of(name: str, value: Tensor, rows: int) -> int:
    """Which dimension of an input of the model counts the rows."""
    # Positions are (rows, tokens) or, of several kinds, (kinds, rows, tokens).
    dim = value.dim() - 2 if name == "position_ids" else 0
    if value.shape[dim] != rows:
        raise ValueError(f"input '{name}' {tuple(value.shape)} has no dimension of {rows} rows")
    return dim


class RowEngine:
    """Runs a model of AutoModelForImageTextToText.

    Args:
        model: on its device, in evaluation mode.
        eos: tokens that end a caption.
        max_rows: most captions at once; None: as free memory allows.
        compact: whether rows that have ended leave the batch before its end.

    Attributes:
        budget: rows and prompt tokens at once; smaller once memory ran out.
        row_steps: rows times steps of the model, prompts not counted; for reports and tests.
    """

    def __init__(
        self,
        model: Any,
        *,
        eos: Collection[int],
        max_rows: int | None = None,
        compact: bool = True,
    ) -> None:
        self.budget = Budget(model.device, max_rows)
        self.row_steps = 0
        self._model, self._eos, self._compact = model, frozenset(eos), compact
        accepted = inspect.signature(model.forward).parameters
        self._positions = "position_ids" in accepted
        self._always = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        # A model that is not told the positions may remember those of the whole batch by itself.
        self._separable = self._positions and separable(new_cache(model))

    @torch.inference_mode()
    def generate(self, asked: Sequence[Asked], decoding: Decoding) -> list[Generated]:
        """One generation per request, in order, whatever else is in the call.

        Raises:
            torch.OutOfMemoryError: not even one row fits.
        """
        made: dict[int, Generated] = {}
        for group in _groups(asked):
            while group:
                taken = group[: self._at_once(asked[group[0]], decoding)]
                written = self._attempt([asked[i] for i in taken], decoding)
                if written is not None:
                    made |= dict(zip(taken, written, strict=True))
                    group = group[len(taken) :]
        return [made[i] for i in range(len(asked))]

    def _at_once(self, one: Asked, decoding: Decoding) -> int:
        tokens = one.ids.shape[1]
        if not self._separable:
            return min(self.budget.rows, self.budget.prefill_rows(tokens))
        longest = tokens + decoding.max_new_tokens
        return self.budget.affordable(token_bytes(self._model), longest, 0)

    def _attempt(self, asked: Sequence[Asked], decoding: Decoding) -> list[Generated] | None:
        """None if memory did not suffice for so many rows; then the next attempt has fewer."""
        reading: list[int] = []
        try:
            return self._write(asked, decoding, reading)
        except RuntimeError as error:  # of which torch.OutOfMemoryError is one
            at_once = (reading[-1], asked[0].ids.shape[1]) if reading else None
            if not ran_out(error) or not self.budget.shrink(len(asked), at_once):
                raise
        # Only here the exception is gone, and with it the frames that hold on to the memory.
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _write(
        self, asked: Sequence[Asked], decoding: Decoding, reading: list[int]
    ) -> list[Generated]:
        ending = Ending.of(self._eos, (), decoding.max_new_tokens)
        flight = self._read(asked, decoding, reading)
        rows = flight.rows
        for step in range(decoding.max_new_tokens):
            flight.choose(step, ending)
            left = flight.at_work
            if not left:
                break
            if self._separable and self._compact and len(left) < COMPACT_BELOW * len(flight.rows):
                flight.keep(left)
            self._step(flight)
        return [row.result() for row in rows]

    def _read(self, asked: Sequence[Asked], decoding: Decoding, reading: list[int]) -> _Flight:
        """The prompts of all rows, a few at a time, to a batch that can be written.

        `reading` tells, while prompts are read, how many of them at once.
        """
        length = asked[0].ids.shape[1]
        size = self.budget.prefill_rows(length) if self._separable else len(asked)
        reading.append(min(size, len(asked)))
        pieces = [self._prefill(asked[i : i + size]) for i in range(0, len(asked), size)]
        reading.clear()
        ids, every, logits = zip(*pieces, strict=True)
        kwargs = dict(every[0])
        if self._separable:
            caches = [each["past_key_values"] for each in every]
            kwargs["past_key_values"] = join(caches, decoding.max_new_tokens)
            for name, value in kwargs.items():
                if isinstance(value, Tensor):
                    dim = _rows_of(name, value, len(ids[0]))
                    kwargs[name] = torch.cat([each[name] for each in every], dim)
        chooser = Chooser(decoding, [each.key for each in asked], self._model.device)
        rows = [Row(index, length) for index in range(len(asked))]
        return _Flight(torch.cat(ids), kwargs, torch.cat(logits), chooser, rows)

    def _prefill(self, asked: Sequence[Asked]) -> tuple[Tensor, dict[str, Any], Tensor]:
        model, device = self._model, self._model.device
        ids = torch.cat([each.ids for each in asked]).to(device)
        inputs = {name: self._input(name, asked) for name in asked[0].inputs}
        kwargs: dict[str, Any] = {"use_cache": True, **self._always, **inputs}
        if (cache := new_cache(model)) is not None:
            kwargs["past_key_values"] = cache
        if self._positions:
            whole = kwargs | {"attention_mask": torch.ones_like(ids)}
            kwargs["position_ids"] = model._prepare_position_ids_for_generation(ids, whole)
        # No row is padded, so there is no mask, and attention is causal by itself: faster.
        prepared = model.prepare_inputs_for_generation(
            ids, is_first_iteration=True, attention_mask=None, **kwargs
        )
        output = model(**prepared, return_dict=True)
        # Only what tells something of every token is needed after the prompt: no pixels.
        spent = [name for name in inputs if inputs[name].shape[:2] != ids.shape]
        rest = {name: value for name, value in kwargs.items() if name not in spent}
        return ids, model._update_model_kwargs_for_generation(output, rest), _last(output)

    def _input(self, name: str, asked: Sequence[Asked]) -> Tensor:
        joined = torch.cat([each.inputs[name] for each in asked]).to(self._model.device)
        return joined.to(self._model.dtype) if joined.is_floating_point() else joined

    def _step(self, flight: _Flight) -> None:
        model = self._model
        prepared = model.prepare_inputs_for_generation(
            flight.ids, next_sequence_length=1, attention_mask=None, **flight.kwargs
        )
        output = model(**prepared, return_dict=True)
        flight.kwargs = model._update_model_kwargs_for_generation(output, flight.kwargs)
        flight.logits = _last(output)
        self.row_steps += len(flight.ids)


def _groups(asked: Sequence[Asked]) -> list[list[int]]:
    """Requests that can run together, by index; the longest prompts first: they may not fit."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, each in enumerate(asked):
        groups.setdefault(each.shape, []).append(index)
    return sorted(groups.values(), key=lambda group: -asked[group[0]].ids.shape[1])


def _last(output: Any) -> Tensor:
    logits: Tensor = output.logits[:, -1].float()
    return logits
