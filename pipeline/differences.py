"""The differences of two stores in words, for `pipeline diff`."""

from __future__ import annotations

from collections.abc import Iterator

from data.errors import some
from data.store.diff import StageDifference, VideoDifference

__all__ = ["differences_text"]


def differences_text(found: StageDifference, most: int) -> str:
    """One stage.

    Args:
        found: how it differs.
        most: how many inputs are named in each line.
    """
    return "\n".join(_lines(found, most))


def _lines(found: StageDifference, most: int) -> Iterator[str]:
    counts = [
        (found.equal, "equal bit for bit"),
        (found.within, "within the tolerance"),
        (found.differ, "differing"),
        (len(found.only_a), "only in A"),
        (len(found.only_b), "only in B"),
        (len(found.other_content), "of other content"),
    ]
    told = [f"{count:,} {what}" for count, what in counts if count]
    yield f"{found.stage}: {', '.join(told) or 'no rows'}"
    recipes = " and ".join(each or "none" for each in found.recipes)
    if found.recipe:
        yield f"  recipes {recipes}: {found.recipe}"
    elif found.recipes[0] != found.recipes[1]:
        yield f"  recipes {recipes}"
    for name, stream in found.streams.items():
        cosine = ""
        if stream.cosine_median is not None:
            cosine = f"cosine median {stream.cosine_median:.6f}, least {stream.cosine_min:.6f}; "
        worst = f"; worst: {', '.join(stream.worst)}" if stream.worst else ""
        yield f"  {name}: differs in {stream.items:,}: {cosine}up to {stream.max_abs:.3g}{worst}"
    if found.texts:
        yield f"  texts differ in {found.texts:,}"
        yield from (f"    {example}" for example in found.text_examples)
    named = [each for each in found.differing if each.told]
    yield from (f"  {_told(each)}" for each in named[:most])
    lists = (("A", found.only_a), ("B", found.only_b))
    for side, ids in lists:
        if ids and most:
            yield f"  only in {side}: {some(ids, most)}"
    if found.other_content and most:
        yield f"  of other content: {some(found.other_content, most)}"
    yield from (f"  cannot be read: {problem}" for problem in found.problems)


def _told(difference: VideoDifference) -> str:
    return f"{difference.id}: {'; '.join(difference.told)}"
