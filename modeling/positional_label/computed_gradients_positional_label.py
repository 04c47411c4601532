"""Values whose gradients are computed in the forward pass."""

import torch
from torch.autograd.function import once_differentiable


class WithGradients(torch.autograd.Function):
    """A value with the gradients that were computed together with it: `apply(value, *inputs, *gradients)`."""

    @staticmethod
    def forward(ctx, value, *inputs_and_gradients):
        ctx.save_for_backward(*inputs_and_gradients[len(inputs_and_gradients) // 2 :])
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        gradients = ctx.saved_tensors
        return None, *(gradient * grad_output for gradient in gradients), *(None for _ in gradients)
