"""How much of a token's place a linear probe reads from every layer of a model."""

from typing import Any

import torch

from hubmodels.evaluation_mode import evaluation_mode

RIDGE = 1e-3  # times the mean variance of the features


@torch.no_grad()
def position_probe(model: Any, train: torch.Tensor, test: torch.Tensor) -> list[float]:
    """Fit, per layer, a linear map from tokens to the cell of the grid that they sit in.

    It is a ridge regression onto one-hot cells, solved exactly in float64, so nothing needs tuning. Images of the probe
    must be other ones than those it is measured on.

    Args:
        model: A Positional Label classifier, encoder or autoencoder (`encode` with hidden states).
        train: Normalised images `[B, C, H, W]` to fit on; with their tokens there should be more rows than channels.
        test: Normalised images to measure on.

    Returns:
        Accuracy in [0, 1] of the input of the first layer and after each layer (timm's networks: after each layer or
        stage only). A Swin's stages have grids, and chances, of their own.

    Raises:
        ValueError: If the model returns no hidden states of tokens.
    """
    with evaluation_mode(model):
        fitted, measured = (_states(model, images) for images in (train, test))
    return [_accuracy(*states) for states in zip(fitted, measured, strict=True)]


def _states(model: Any, images: torch.Tensor) -> list[torch.Tensor]:
    """Tokens of the patches `[B, N, D]` of every layer, float64."""
    outputs = model.encode(images.to(model.device), output_hidden_states=True)
    # timm gives maps [B, D, h, w], without the tokens in front.
    states = [state.flatten(2).transpose(1, 2) if state.ndim == 4 else state for state in outputs.hidden_states or ()]
    if not states or any(state.ndim != 3 for state in states):
        raise ValueError(f"the hidden states of a {type(model).__name__} are no tokens [B, N, D]")
    prefix = states[-1].shape[1] - outputs.last_hidden_state.shape[1]
    return [state[:, prefix:].double().cpu() for state in states]


def _accuracy(train: torch.Tensor, test: torch.Tensor) -> float:
    cells = train.shape[1]
    mean, std = train.mean((0, 1)), train.std((0, 1)).clamp(min=1e-12)
    left, right = (((tokens - mean) / std).flatten(0, 1) for tokens in (train, test))
    target = torch.eye(cells, dtype=torch.float64).repeat(len(train), 1) - 1 / cells
    gram = left.T @ left + RIDGE * len(left) * torch.eye(left.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, left.T @ target)
    right_cells = torch.arange(cells).repeat(len(test))
    return float(((right @ weights).argmax(1) == right_cells).double().mean())
