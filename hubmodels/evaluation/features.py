"""Features of frozen models."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from hubmodels.data.collators import BatchTransform, ImageCollator

POOLINGS = ("mean", "cls")


def pooled_features(model: nn.Module, pixel_values: torch.Tensor, pooling: str = "mean") -> torch.Tensor:
    """One feature vector per image.

    Args:
        model: A transformers model (the encoder inside a model with a head is used; masking is switched off), or a
            timm model.
        pixel_values: float32 [B, C, H, W].
        pooling: "mean" of the patch tokens, or the "cls" token. Feature maps are averaged over space for either.

    Returns:
        float32 [B, D].

    Raises:
        ValueError: Unknown pooling, or a model whose output is neither tokens nor a feature map.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
    timm_forward: Callable[[torch.Tensor], torch.Tensor] | None = getattr(model, "forward_features", None)
    if timm_forward is not None:
        states, prefix_tokens = timm_forward(pixel_values), int(getattr(model, "num_prefix_tokens", 1))
    else:
        states, prefix_tokens = _encoder_states(model, pixel_values)
    if states.ndim == 4:
        return states.mean(dim=(2, 3)).float()
    if states.ndim != 3:
        raise ValueError(f"expected tokens [B, N, D] or feature maps [B, D, h, w], got {tuple(states.shape)}")
    return (states[:, prefix_tokens:].mean(dim=1) if pooling == "mean" else states[:, 0]).float()


def _encoder_states(model: nn.Module, pixel_values: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Last hidden state (or last feature map) of a transformers model, and its number of non-patch tokens."""
    encode: Callable[[torch.Tensor], Any] | None = getattr(model, "encode", None)
    if encode is not None:
        return encode(pixel_values).last_hidden_state, 0
    encoder = getattr(model, "base_model", model)
    masking_off = {"mask_ratio": 0.0} if "mask_ratio" in inspect.signature(encoder.forward).parameters else {}
    outputs = encoder(pixel_values, **masking_off)
    feature_maps = getattr(outputs, "feature_maps", None)
    states = feature_maps[-1] if feature_maps else outputs.last_hidden_state
    return states, 1 + (getattr(encoder.config, "num_register_tokens", None) or 0)


def batches(
    model: nn.Module,
    dataset: Dataset,
    transform: BatchTransform,
    batch_size: int,
    num_workers: int,
    description: str | None,
) -> Any:
    """Iterate over a data set in evaluation mode, with the model's device and a progress bar.

    Args:
        model: Where the batches go.
        dataset: Items as in [`hubmodels.data.ImageDataset`].
        transform: An evaluation transform.
        batch_size: Images per batch.
        num_workers: Worker processes that load the images.
        description: Text of the progress bar; None hides it.

    Yields:
        (pixel_values on the model's device, labels on the CPU or None).
    """
    collator = ImageCollator(transform, seed=0, train=False)
    loader = DataLoader(dataset, batch_size, collate_fn=collator, num_workers=num_workers)
    device = next(model.parameters()).device
    for batch in tqdm(loader, desc=description, disable=description is None, leave=False):
        yield batch["pixel_values"].to(device), batch.get("labels")


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
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for pixel_values, batch_labels in batches(
                model, dataset, transform, batch_size, num_workers, "features" if progress else None
            ):
                features.append(pooled_features(model, pixel_values, pooling).cpu())
                labels.append(batch_labels)
    finally:
        model.train(was_training)
    # Cloned outside of inference mode: the results are ordinary tensors that a probe can train on.
    return torch.cat(features).clone(), None if labels[0] is None else torch.cat(labels)
