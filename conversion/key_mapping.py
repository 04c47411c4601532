"""Declared maps between official parameter names and ours, strict in both directions.

A map is a list of transformers' own `WeightRenaming` and `WeightConverter` (with `Chunk`, `Concatenate`, ...), each of
which knows its inverse. One declaration therefore serves both directions, and transformers' documentation of these
classes applies here too.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from transformers.core_model_loading import WeightConverter, WeightRenaming, WeightTransform

from .checkpoint_reading import ConversionError, shorten


class KeyMap:
    """A reversible map of state-dict names, with tensors split or joined where a declaration says so.

    Example:

    ```python
    >>> from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming
    >>> key_map = KeyMap(
    ...     [
    ...         WeightRenaming(r"^blocks\\.", r"^vit.layers."),
    ...         WeightConverter(".qkv.", [".q_proj.", ".k_proj.", ".v_proj."], operations=[Chunk(dim=0)]),
    ...     ]
    ... )
    >>> list(key_map.to_ours({"blocks.0.qkv.bias": torch.zeros(6)}))
    ['vit.layers.0.q_proj.bias', 'vit.layers.0.k_proj.bias', 'vit.layers.0.v_proj.bias']

    ```
    """

    def __init__(self, transforms: Sequence[WeightTransform]):
        """Store the declaration.

        Args:
            transforms: official -> ours. Every renaming is tried on every key, in order; afterwards at most one
                converter applies. The reverse direction undoes the converters first.
        """
        self.transforms = list(transforms)

    def to_ours(self, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map official names to ours.

        Args:
            state_dict: tensors by official name. Names that no declaration mentions pass through unchanged, for
                `check_keys` to report.

        Returns:
            Tensors by our name; tensors that are only renamed are the same objects.

        Raises:
            ConversionError: two official names map to one of ours.
        """
        return _apply(self.transforms, state_dict, converters_first=False)

    def to_official(self, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map our names back to the official ones: the inverse of `to_ours`, with the same conventions."""
        reverse = [transform.reverse_transform() for transform in reversed(self.transforms)]
        return _apply(reverse, state_dict, converters_first=True)


def check_keys(expected: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> None:
    """Refuse a state dict whose names or shapes are not exactly the expected ones.

    Args:
        expected: tensors (also on the meta device) with the names and shapes of the architecture.
        given: the tensors that were read.

    Raises:
        ConversionError: lists unknown keys, missing keys and shape mismatches.
    """
    unknown = [key for key in given if key not in expected]
    missing = [key for key in expected if key not in given]
    mismatched = [
        f"{key} (found {list(given[key].shape)}, expected {list(tensor.shape)})"
        for key, tensor in expected.items()
        if key in given and given[key].shape != tensor.shape
    ]
    problems = [
        f"{name}: {shorten(keys)}"
        for name, keys in (("unknown keys", unknown), ("missing keys", missing), ("wrong shapes", mismatched))
        if keys
    ]
    if problems:
        raise ConversionError(
            "the checkpoint does not fit the architecture its shapes announce. " + ". ".join(problems)
        )


def check_identical(original: Mapping[str, torch.Tensor], restored: Mapping[str, torch.Tensor]) -> None:
    """Check that a round trip gave back every tensor, bit for bit.

    Raises:
        ConversionError: a key, a type, a shape or a value differs.
    """
    check_keys(original, restored)
    changed = [key for key, tensor in original.items() if not _same_bits(tensor, restored[key])]
    if changed:
        raise ConversionError(f"these tensors do not survive the way to our layout and back: {shorten(changed)}")


def _same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    # Compared as bytes, so that NaN equals itself and -0.0 differs from 0.0.
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (left, right)))


def _apply(
    transforms: Sequence[WeightTransform], state_dict: Mapping[str, torch.Tensor], converters_first: bool
) -> dict[str, torch.Tensor]:
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]

    def rename(key: str) -> str:
        for renaming in renamings:
            key, _ = renaming.rename_source_key(key)
        return key

    # Collect: a converter waits until it has all its sources; everything else is final at once.
    converted: dict[str, WeightConverter] = {}
    mapped: dict[str, torch.Tensor | WeightConverter] = {}
    for key, tensor in state_dict.items():
        start = key if converters_first else rename(key)
        for converter in converters:
            target, pattern = converter.rename_source_key(start)
            if pattern is not None:
                waiting = converted.setdefault(target, deepcopy(converter))
                waiting.add_tensor(target, key, pattern, tensor)  # type: ignore[arg-type]  # on saving, not a Future
                _put(mapped, target, waiting)
                break
        else:
            _put(mapped, rename(start) if converters_first else start, tensor)

    result: dict[str, torch.Tensor] = {}
    for target, value in mapped.items():
        if isinstance(value, torch.Tensor):
            _put(result, target, value)
            continue
        for name, part in value.convert(target).items():
            _put(result, rename(name) if converters_first else name, part)
    return result


def _put(mapped: dict, name: str, value: torch.Tensor | WeightConverter) -> None:
    """Add an entry, refusing a second one of the same name."""
    if mapped.setdefault(name, value) is not value:
        raise ConversionError(f"two keys of the checkpoint map to {name!r}")
