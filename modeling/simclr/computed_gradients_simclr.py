"""Values whose gradients are computed in the forward pass."""

import torch
from torch.autograd.function import once_differentiable


class WithGradients(torch.autograd.Function):
    """
    A value with the gradients that were computed together with it: `apply(value, *inputs, *gradients)`.

    Gradients may be more exact than their inputs. They are rounded to the type of the inputs only after they were
    multiplied by the gradient of the value: in half precision they vanish without its loss scale.
    """

    @staticmethod
    def forward(ctx, value, *inputs_and_gradients):
        count = len(inputs_and_gradients) // 2
        ctx.dtypes = [each.dtype for each in inputs_and_gradients[:count]]
        ctx.save_for_backward(*inputs_and_gradients[count:])
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        gradients = ctx.saved_tensors
        scaled = ((gradient * grad_output).to(dtype) for gradient, dtype in zip(gradients, ctx.dtypes, strict=True))
        return None, *scaled, *(None for _ in gradients)
