"""Keys and values of any model of transformers, with room for the tokens that are still to come.

`DynamicCache` copies all keys and values of a layer for every new token. Here a layer has room for
the whole caption, the batch is put together from prompts that were read a few rows at a time, and
rows can leave it. Layers of other kinds (states of linear attention) are left as they are.

transformers is imported at the top: import this module only where a model runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

__all__ = ["RoomyLayer", "join", "new_cache", "separable", "token_bytes"]


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """Keys and values (rows, heads, tokens, width) as a view of buffers with more tokens.

    Args:
        keys: of the prompts.
        values: of the prompts.
        room: tokens that are to come; with more of them the layer grows by copying.
    """

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor], room: int) -> None:
        super().__init__()
        self.dtype, self.device = keys[0].dtype, keys[0].device
        self._buffers = [_with_room(each, room) for each in (keys, values)]
        self._show(keys[0].shape[-2])
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the newest keys and values behind the others."""
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        if end > self._buffers[0].shape[-2]:
            self._buffers = [_with_room([each], end) for each in (self.keys, self.values)]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self._show(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only some rows, in buffers of their own."""
        length = self.keys.shape[-2]
        self._buffers = [each[indices] for each in self._buffers]
        self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = (each[:, :, :length] for each in self._buffers)


def _with_room(pieces: Sequence[Tensor], room: int) -> Tensor:
    rows = sum(len(each) for each in pieces)
    _, heads, tokens, width = pieces[0].shape
    made = pieces[0].new_empty((rows, heads, tokens + room, width))
    start = 0
    for piece in pieces:
        made[start : start + len(piece), :, :tokens] = piece
        start += len(piece)
    return made


def new_cache(model: Any) -> Any:
    """An empty cache as `generate()` makes it; None for a model that makes its own."""
    if not model._supports_default_dynamic_cache():
        return None
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def separable(cache: Any) -> bool:
    """Whether rows of such a cache can be joined and can leave: every layer is plain attention."""
    plain = (DynamicLayer, DynamicSlidingWindowLayer, RoomyLayer)
    return isinstance(cache, DynamicCache) and all(type(each) in plain for each in cache.layers)


def join(caches: Sequence[Any], room: int) -> Any:
    """One cache of the rows of several, all of equal length, with room for `room` more tokens.

    The caches that are given are used up: layer by layer their memory is released.
    """
    first = caches[0]
    for index, layer in enumerate(first.layers):
        layers = [each.layers[index] for each in caches]
        if not layer.is_initialized:  # it shares the keys and values of another layer
            continue
        keys, values = [each.keys for each in layers], [each.values for each in layers]
        for each in layers:
            each.keys = each.values = None
        if type(layer) is DynamicLayer:
            first.layers[index] = RoomyLayer(keys, values, room)
        else:  # a window that slides is short: it stays one that is copied
            layer.keys, layer.values = torch.cat(keys), torch.cat(values)
    return first


def token_bytes(model: Any) -> int:
    """Keys and values of one token of one row, all layers together."""
    text = model.config.get_text_config(decoder=True)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * width * model.dtype.itemsize)
