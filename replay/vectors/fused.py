"""Small parameters taken together as one vector: a call for each costs more than its work."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

import torch
from torch import Tensor

_MOST = 1 << 20  # elements of parameters that are copied to be together


def alike(
    vectors: dict[str, Tensor], kind: Callable[[str], Hashable]
) -> Iterable[tuple[list[str], list[Tensor]]]:
    """Return vectors of one kind, dtype and device in groups of few elements, with their names."""
    groups: dict[Hashable, list[str]] = {}
    found: list[list[str]] = []
    sizes: dict[int, int] = {}
    for name, vector in vectors.items():
        key = (kind(name), vector.dtype, vector.device)
        group = groups.get(key)
        if group is None or sizes[id(group)] + vector.numel() > _MOST:
            group = groups[key] = []
            found.append(group)
        group.append(name)
        sizes[id(group)] = sizes.get(id(group), 0) + vector.numel()
    return [(names, [vectors[name] for name in names]) for names in found]


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors as one flat vector: a view where they follow each other in memory."""
    first = tensors[0]
    if len(tensors) == 1:
        return first.reshape(-1)
    dtype, each, place = first.dtype, first.element_size(), first.data_ptr()
    end = place
    for tensor in tensors:
        if tensor.data_ptr() != end or tensor.dtype != dtype or not tensor.is_contiguous():
            return torch.cat([tensor.reshape(-1) for tensor in tensors])
        end += tensor.numel() * each
    offset, size = first.storage_offset(), (end - place) // each
    if (offset + size) * each > first.untyped_storage().nbytes():  # of neighbours in memory
        return torch.cat([tensor.reshape(-1) for tensor in tensors])
    return first.as_strided((size,), (1,), offset)


def apart(flat: Tensor, likes: Sequence[Tensor]) -> list[Tensor]:
    """Return a vector's parts in the shapes of those that were joined."""
    parts = torch.split(flat, [like.numel() for like in likes])
    return [part.view(like.shape) for part, like in zip(parts, likes, strict=True)]


def together(vectors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the same vectors, small ones one after the other in memory."""
    result = dict(vectors)
    for names, group in alike(vectors, lambda name: None):
        if len(names) > 1:
            result.update(zip(names, apart(joined(group), group), strict=True))
    return result
