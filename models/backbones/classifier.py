"""The classifier of a checkpoint: features do not use it, but it tells which file this is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from data.errors import UsageError

__all__ = ["fit_classes"]


def fit_classes(
    backbone: str,
    weight: str,
    classes: int | None,
    published: Sequence[int],
    resize: Callable[[int], None] = lambda _: None,
) -> Callable[[Mapping[str, Tensor]], None]:
    """How a network takes the number of classes of its checkpoint (`load_strictly(adapt=...)`).

    Args:
        backbone: its name, for messages.
        weight: name of the classifier's weight, (classes, ...).
        classes: what the user said; None accepts any of `published`.
        published: numbers of classes of the published checkpoints; the first is what the network
            was built with if the user said nothing.
        resize: gives the network a classifier of another size; needed where several are published.

    Returns:
        A function of the checkpoint's tensors; UsageError if its number of classes is another.
    """
    allowed = tuple(published) if classes is None else (classes,)
    built = allowed[0]

    def adapt(state: Mapping[str, Tensor]) -> None:
        # A classifier that is missing is reported by the strict check, with the tensor's name.
        given = state.get(weight)
        found = built if given is None or given.ndim == 0 else int(given.shape[0])
        if found not in allowed:
            shape = tuple(state[weight].shape)
            expected = " or ".join(str(each) for each in allowed) if built else "no classifier"
            raise UsageError(
                f"backbone {backbone}: {weight} is {shape}, expected {expected}"
                f"{' classes' if built else ''}: the checkpoint's classifier has {found} classes. "
                f"Give the checkpoint of this network, or classes={found} (in pipeline.yaml "
                f"`options: {{classes: {found}}}`) if this is the file you mean"
            )
        if found != built:
            resize(found)

    return adapt
