"""What the converters share between the tensors of an official file and one of our models around them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel

from .checkpoint_reading import ConversionError, model_state_dict
from .key_mapping import KeyMap, check_identical, check_keys

Config = TypeVar("Config", bound=PreTrainedConfig)
Model = TypeVar("Model", bound=PreTrainedModel)


def find_state_dict(
    checkpoint: Mapping[str, Any], keys: Sequence[str], free_types: Sequence[str] = ()
) -> dict[str, torch.Tensor]:
    """Take the named tensors of a model out of a checkpoint that may itself be the state dict.

    Args:
        checkpoint: what `read_checkpoint` returned.
        keys: top-level keys that may hold the state dict; the first that is there counts.
        free_types: as in `model_state_dict`.

    Returns:
        As `model_state_dict`.

    Raises:
        ConversionError: as `model_state_dict`.
    """
    key = next((key for key in keys if isinstance(checkpoint.get(key), Mapping)), keys[0])
    if key not in checkpoint and any(isinstance(value, torch.Tensor) for value in checkpoint.values()):
        checkpoint = {key: checkpoint}
    return model_state_dict(checkpoint, key, free_types)


def shape_of(official: Mapping[str, Any], name: str, axes: str) -> tuple[int, ...]:
    """The shape of a tensor from which a size is read.

    Args:
        official: tensors, or anything that has a `shape`, by official name.
        name: which one.
        axes: its axes for the message, separated by commas: "classes, D".

    Returns:
        As many positive sizes as there are axes.

    Raises:
        ConversionError: there is no such tensor, or it has another number of axes, or no values.
    """
    if name not in official:
        raise ConversionError(f"missing keys: {name}")
    shape = tuple(official[name].shape)
    if len(shape) != axes.count(",") + 1 or 0 in shape:
        raise ConversionError(f"{name} must have shape [{axes}], found {list(shape)}")
    return shape


def check_positive(**options: int | Sequence[int] | None) -> None:
    """Check options that are sizes or counts, or several of them.

    Raises:
        ConversionError: names the first that is given and not positive.
    """
    for name, value in options.items():
        if value is not None and min([value] if isinstance(value, int) else value, default=0) < 1:
            raise ConversionError(f"{name} must be positive, got {value}")


def attention_heads(
    option: str, given: int | Sequence[int] | None, widths: Sequence[int], published: Mapping[int, Sequence[int]]
) -> list[int]:
    """The numbers of attention heads, which no tensor shows.

    Args:
        option: name of the option that gives them.
        given: its value: one number per stage, or the number of a single stage.
        widths: width of every stage.
        published: heads of every stage of the published models, by the width of their first stage.

    Returns:
        The heads of every stage.

    Raises:
        ConversionError: they are needed and not given, are not one per stage, or do not divide the widths.
    """
    if given is None and widths[0] not in published:
        sizes = ", ".join(f"{width}: {_listed(heads)}" for width, heads in published.items())
        example = ",".join(f"HEADS{number}" for number in range(1, len(widths) + 1)) if len(widths) > 1 else "HEADS"
        raise ConversionError(
            f"{option} not given: tensors do not show the number of attention heads, and width {widths[0]} is not a "
            f"published one (width: heads are {sizes}). Pass {option} (--{option.replace('_', '-')} {example})"
        )
    chosen = published[widths[0]][: len(widths)] if given is None else given
    heads = [chosen] if isinstance(chosen, int) else list(chosen)
    if len(heads) != len(widths):
        wanted = "one number" if len(widths) == 1 else f"{len(widths)} numbers, one per stage"
        raise ConversionError(f"{option} must be {wanted}, got {_listed(heads)}")
    if any(number < 1 or width % number for width, number in zip(widths, heads, strict=True)):
        word = "width" if len(widths) == 1 else "widths"
        raise ConversionError(f"{option} must divide the {word} {_listed(widths)}, got {_listed(heads)}")
    return heads


def label_fields(num_labels: int, *, is_released: bool) -> dict[str, Any]:
    """Config fields of a classifier.

    Args:
        num_labels: number of its classes.
        is_released: whether the authors released it: then 1000 classes are those of ImageNet and get their names, as
            one's own classifier may have any 1000.

    Returns:
        `num_labels`, or the two tables of names.
    """
    if num_labels != 1000 or not is_released:
        return {"num_labels": num_labels}
    from timm.data import ImageNetInfo  # imported here: loading all of timm.data takes seconds

    imagenet = ImageNetInfo()
    names = {index: imagenet.index_to_description(index) for index in range(num_labels)}
    return {"id2label": names, "label2id": {name: index for index, name in names.items()}}


def build_config(config_class: type[Config], fields: Mapping[str, Any]) -> Config:
    """Build the configuration that a checkpoint and the options describe.

    Raises:
        ConversionError: the configuration refuses a value.
    """
    with _described():
        return config_class(**fields)


def build_skeleton(model_class: type[Model], config: PreTrainedConfig) -> Model:
    """Build a model on the meta device: names and shapes, no values.

    Raises:
        ConversionError: the model refuses the configuration.
    """
    with _described(), torch.device("meta"):
        return model_class(config)


@contextmanager
def _described() -> Iterator[None]:
    try:
        yield
    except (ValueError, StrictDataclassError) as error:
        raise ConversionError(f"the checkpoint and the options describe an impossible model: {error}") from error


def load_official(model: Model, key_map: KeyMap, official: dict[str, torch.Tensor]) -> Model:
    """Put official tensors into a model, checking every name, shape and, on the way back, every bit.

    Args:
        model: the model, whose own tensors may be on the meta device.
        key_map: between official names and ours.
        official: the tensors; the model holds them afterwards, and no copies.

    Returns:
        `model`, in evaluation mode.

    Raises:
        ConversionError: a name or a shape is another, or a tensor does not survive the way to ours and back.
    """
    check_keys(key_map.to_official(model.state_dict()), official)
    ours = key_map.to_ours(official)
    check_identical(official, key_map.to_official(ours))
    model.load_state_dict(ours, assign=True)
    return model.eval()


def in_official_order(state: Mapping[str, torch.Tensor], parts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Copy tensors in the order in which official modules register them.

    Args:
        state: tensors by official name.
        parts: all parts of the names (between their dots) but numbers, in that order.

    Returns:
        Tensors with memory of their own.
    """
    order = {part: rank for rank, part in enumerate(parts)}

    def rank(name: str) -> list[int]:
        return [int(part) if part.isdigit() else order[part] for part in name.split(".")]

    return {name: state[name].clone() for name in sorted(state, key=rank)}


def _listed(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else str(list(numbers))
