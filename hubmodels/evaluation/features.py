"""Features of frozen models."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from hubmodels.data.collators import BatchTransform, ImageCollator
from hubmodels.evaluation_mode import evaluation_mode
from hubmodels.feature_maps import channels_first

POOLINGS = ("mean", "cls")


def pooled_features(model: nn.Module, pixel_values: torch.Tensor, pooling: str = "mean") -> torch.Tensor:
    """One feature vector per image.

    Args:
        model: A transformers model (the encoder inside a model with a head is used; masking is switched off), or a
            timm model.
        pixel_values: Floats [B, C, H, W].
        pooling: "mean" of the patch tokens, or the "cls" token. Feature maps are averaged over space for either.

    Returns:
        float32 [B, D].

    Raises:
        ValueError: Unknown pooling, "cls" of a model whose output has no class token, or a model whose output is
            neither tokens nor a feature map.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
    encode: Callable[[torch.Tensor], Any] | None = getattr(model, "encode", None)
    encoder = _encoder(model)
    if encode is not None:
        states, prefix_tokens = getattr(encode(pixel_values), "last_hidden_state", None), 0
    elif hasattr(encoder, "forward_features"):
        states, prefix_tokens = _timm_states(encoder, pixel_values)
    else:
        states, prefix_tokens = _encoder_states(encoder, pixel_values)
    if not isinstance(states, torch.Tensor) or states.ndim not in (3, 4):
        given = tuple(states.shape) if isinstance(states, torch.Tensor) else type(states).__name__
        raise ValueError(
            f"{type(model).__name__} must give tokens [B, N, D] or feature maps [B, D, h, w] of its images, got {given}"
        )
    if states.ndim == 4:
        return states.float().mean(dim=(2, 3))
    if pooling == "mean":
        return states[:, prefix_tokens:].float().mean(dim=1)
    if not prefix_tokens:
        raise ValueError(f"pooling 'cls' needs a class token, which the output of {type(model).__name__} has not")
    return states[:, 0].float()


def _encoder(model: nn.Module) -> Any:
    """The encoder inside of a model with a head; in a TimmWrapper the network of timm."""
    inner: Any = getattr(model, "base_model", model)
    # What DINOv3 calls its base model takes tokens.
    takes_images = hasattr(inner, "forward_features") or "pixel_values" in inspect.signature(inner.forward).parameters
    return inner if takes_images else model


def _timm_states(network: Any, pixel_values: torch.Tensor) -> tuple[Any, int]:
    """Last tokens or last map [B, D, h, w] of a timm network, and its number of non-patch tokens."""
    states = network.forward_features(pixel_values)
    if getattr(states, "ndim", None) == 4:
        return channels_first(states, network.num_features), 0
    prefix_tokens = getattr(network, "num_prefix_tokens", None)
    if prefix_tokens is None:
        stages = getattr(network, "feature_info", None)
        prefix_tokens = _tokens_beside_grid(states, pixel_values, stages[-1]["reduction"] if stages else None)
    return states, prefix_tokens


def _encoder_states(encoder: Any, pixel_values: torch.Tensor) -> tuple[Any, int]:
    """Last hidden state (or last feature map) of a transformers model, and its number of non-patch tokens."""
    masking_off = {"mask_ratio": 0.0} if "mask_ratio" in inspect.signature(encoder.forward).parameters else {}
    outputs = encoder(pixel_values, **masking_off)
    feature_maps = getattr(outputs, "feature_maps", None)
    if feature_maps:
        return channels_first(feature_maps[-1], encoder.channels[-1]), 0
    states, config = getattr(outputs, "last_hidden_state", None), encoder.config
    patch = getattr(config, "patch_stride", None) or getattr(config, "patch_size", None)
    if isinstance(patch, list | tuple):
        patch = patch[0]
    # The tokens of a pyramid are patches that were merged by two and two between its stages.
    merged = 2 ** (len(getattr(config, "depths", None) or [1]) - 1)
    return states, _tokens_beside_grid(states, pixel_values, patch * merged if isinstance(patch, int) else None)


def _tokens_beside_grid(states: Any, pixel_values: torch.Tensor, stride: int | None) -> int:
    """How many of the tokens [B, N, D] of images are more than the cells of their grid; 0 where that is not known."""
    if stride is None or getattr(states, "ndim", None) != 3:
        return 0
    height, width = pixel_values.shape[-2:]
    return max(states.shape[1] - math.ceil(height / stride) * math.ceil(width / stride), 0)


def input_placement(model: nn.Module) -> dict[str, Any]:
    """Where the images of a model belong, as arguments of `Tensor.to`.

    Args:
        model: The model.

    Returns:
        "device" and "dtype", those of its first weights of floating point.
    """
    first = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    return {"device": first.device, "dtype": first.dtype}


def batches(
    model: nn.Module,
    dataset: Dataset,
    transform: BatchTransform,
    batch_size: int,
    num_workers: int,
    description: str | None,
) -> Any:
    """Iterate over a data set in evaluation mode, with the model's device and precision and a progress bar.

    Args:
        model: Where the batches go.
        dataset: Items as in [`hubmodels.data.ImageDataset`].
        transform: An evaluation transform.
        batch_size: Images per batch.
        num_workers: Worker processes that load the images.
        description: Text of the progress bar; None hides it.

    Yields:
        (pixel_values where the model's weights are and of their type, labels on the CPU or None).
    """
    collator = ImageCollator(transform, seed=0, train=False)
    loader = DataLoader(dataset, batch_size, collate_fn=collator, num_workers=num_workers)
    placement = input_placement(model)
    for batch in tqdm(loader, desc=description, disable=description is None, leave=False):
        yield batch["pixel_values"].to(**placement), batch.get("labels")


def extract_features(
    model: nn.Module,
    dataset: Dataset,
    transform: BatchTransform,
    pooling: str = "mean",
    batch_size: int = 256,
    num_workers: int = 0,
    progress: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Features of all images of a data set, without gradients and with the model in evaluation mode.

    Args:
        model: See [`pooled_features`]; its training mode is restored afterwards.
        dataset: Items as in [`hubmodels.data.ImageDataset`].
        transform: An evaluation transform, for example [`hubmodels.data.EvalTransform`].
        pooling: "mean" or "cls".
        batch_size: Images per batch.
        num_workers: Worker processes that load the images.
        progress: Show a progress bar.

    Returns:
        (features float32 [N, D], labels int64 [N] or None), both on the CPU.
    """
    features, labels = [], []
    with evaluation_mode(model), torch.inference_mode():
        for pixel_values, batch_labels in batches(
            model, dataset, transform, batch_size, num_workers, "features" if progress else None
        ):
            features.append(pooled_features(model, pixel_values, pooling).cpu())
            labels.append(batch_labels)
    # Cloned outside of inference mode: the results are ordinary tensors that a probe can train on.
    return torch.cat(features).clone(), None if labels[0] is None else torch.cat(labels)
