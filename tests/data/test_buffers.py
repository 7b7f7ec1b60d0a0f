from __future__ import annotations

import pickle

import numpy as np
import torch

from data.buffers import Buffers


def test_memory_goes_back_when_the_last_view_or_tensor_on_it_is_gone() -> None:
    buffers = Buffers()
    array = buffers.array(4, 5)
    array[:] = 7.0
    view, tensor = array[1:, 2:], torch.from_numpy(array)[3]
    del array
    other = buffers.array(4, 5)
    other[:] = 0.0
    assert view.min() == tensor.min() == 7.0
    del view
    third = buffers.array(4, 5)
    third[:] = 0.0
    assert tensor.min() == 7.0
    place = tensor.data_ptr() - 3 * 5 * 4
    del tensor
    assert buffers.array(4, 5).ctypes.data == place


def test_memory_that_is_too_small_for_the_next_array_is_let_go() -> None:
    buffers = Buffers()
    small = buffers.array(2, 2)
    del small
    large = buffers.array(1000, 1000)
    large[:] = 1.0
    assert large.shape == (1000, 1000)
    assert large.dtype == np.float32
    assert buffers.array(0, 3).size == 0


def test_buffers_are_pickled_without_their_memory() -> None:
    buffers = Buffers()
    held = buffers.array(1000, 1000)
    assert held.nbytes == 4_000_000
    assert len(pickle.dumps(buffers)) < 100
    assert pickle.loads(pickle.dumps(buffers)).array(2, 3).shape == (2, 3)
