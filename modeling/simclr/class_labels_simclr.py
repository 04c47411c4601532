"""Labels of images: their classes, or distributions over the classes."""

import torch
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import is_fake

IGNORED = -100  # marks images that do not count, as in torch's cross entropy


def check_label_shape(labels: torch.Tensor, logits: torch.Tensor) -> None:
    """
    Raises:
        ValueError: if labels are neither `[B]` nor `[B, num_labels]`, as the logits are.
    """
    if labels.shape not in (logits.shape[:1], logits.shape):
        raise ValueError(
            f"labels must have shape {tuple(logits.shape[:1])} or {tuple(logits.shape)}, got {tuple(labels.shape)}"
        )


def class_targets(labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """
    Labels as torch's cross entropy takes them.

    Args:
        labels (`torch.Tensor`): classes `[B]`, integers (-100 leaves an image out), or distributions over the classes
            `[B, num_labels]`, of any type (`one_hot` gives integers).
        logits (`torch.Tensor` of shape `[B, num_labels]`): scores.

    Returns:
        Classes as int64, or distributions in the dtype of the logits.

    Raises:
        ValueError: for labels of another shape or type and, on a CPU, for classes out of range (on other devices
            looking would cost a synchronisation).
    """
    check_label_shape(labels, logits)
    if labels.ndim == 2:
        return labels.to(logits.dtype)
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels of shape [B] must be integers (classes), got {labels.dtype}")
    labels, count = labels.long(), logits.shape[1]
    if labels.device.type == "cpu" and not (
        torch.compiler.is_compiling() or is_functorch_wrapped_tensor(labels) or is_fake(labels)
    ):
        outside = ((labels < 0) & (labels != IGNORED)) | (labels >= count)
        if outside.any():
            index = int(outside.nonzero()[0])
            raise ValueError(
                f"labels must be in [0, {count}) (num_labels of the configuration), or {IGNORED} where one is to be "
                f"ignored, got {int(labels[index])} at index {index}"
            )
    return labels
