"""The training step as one graph of `torch.compile`, which is what CUDA graphs can hold.

Dynamo cannot look into recurrent cells: the models that have some (`emb`, `ld_detr`, `tr_detr`)
are compiled in pieces around them.
"""

from __future__ import annotations

import pytest
import torch
from test_every_model import narrow, ragged
from torch import Tensor, nn

from models.retrieval import MODELS, RetrievalModel
from models.retrieval.types import Batch, StepContext


def total(model: RetrievalModel, batch: Batch) -> Tensor:
    return torch.stack(list(model.losses(batch, StepContext(epoch=1, step=7)).values())).sum()


@pytest.mark.slow
# between two pieces Dynamo looks at the gradients of what goes from one to the other
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("name", list(MODELS))
def test_the_training_step_is_one_graph_where_nothing_is_recurrent(name: str) -> None:
    model, batch = narrow(name).train(), ragged()
    recurrent = any(isinstance(part, nn.RNNBase) for part in model.modules())
    assert recurrent == (name in {"emb", "ld_detr", "tr_detr"})
    torch.compiler.reset()
    compiled = torch.compile(total, backend="eager", fullgraph=not recurrent)
    torch.manual_seed(1)
    found: Tensor = compiled(model, batch)
    torch.manual_seed(1)
    torch.testing.assert_close(found, total(model, batch))
    found.backward()
    assert all(x.grad is None or x.grad.isfinite().all() for x in model.parameters())
