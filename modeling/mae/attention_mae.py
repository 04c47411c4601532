"""Attention of MAE layers, with separate queries where only some rows are wanted and a fast bfloat16 backward on
CPU."""

from collections.abc import Callable

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEAttention, eager_attention_forward


class MatmulBackwardAttention(torch.autograd.Function):
    """
    Softmax attention with the flash kernel forward and plain matrix products backward.

    On CPU the backward of the bfloat16 flash kernel takes about twice the time of the same five products done one after
    the other, for as many images at once as the cache holds. As in the kernel, what has the size of the attention
    matrix is float32 until it meets queries, keys and values again. The probabilities are computed again, so that
    nothing but query, key and value is kept from the forward.
    """

    # Elements of the attention matrices that are worked on at once: 4 MB in float32.
    CHUNK_ELEMENTS = 2**20

    @staticmethod
    def forward(ctx, query, key, value, scaling):
        output, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, scale=scaling
        )
        ctx.save_for_backward(query, key, value)
        ctx.scaling = scaling
        return output

    @staticmethod
    def backward(ctx, grad_output):
        query, key, value = ctx.saved_tensors
        elements_per_image = query.shape[1] * query.shape[2] * key.shape[2]
        images = max(1, MatmulBackwardAttention.CHUNK_ELEMENTS // elements_per_image)
        chunks = zip(*(tensor.split(images) for tensor in (query, key, value, grad_output)), strict=True)
        gradients = [attention_gradients(*chunk, ctx.scaling) for chunk in chunks]
        return *(torch.cat(parts) for parts in zip(*gradients, strict=True)), None


def attention_gradients(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grad_output: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of softmax attention with respect to query, key and value, all `[B, heads, L, head_dim]`."""
    scores = torch.matmul(query.float() * scaling, key.float().transpose(-1, -2))
    probabilities = torch.softmax(scores, dim=-1)
    grad_value = torch.matmul(probabilities.to(value.dtype).transpose(-1, -2), grad_output)
    grad_probabilities = torch.matmul(grad_output.float() * scaling, value.float().transpose(-1, -2))
    grad_scores = torch._softmax_backward_data(grad_probabilities, probabilities, -1, torch.float32).to(query.dtype)
    return torch.matmul(grad_scores, key), torch.matmul(grad_scores.transpose(-1, -2), query), grad_value


def is_plain(module: nn.Module, module_type: type[nn.Module]) -> bool:
    """
    Whether the weights of a layer may be used without calling it: it is exactly of `module_type` (no adapter, no
    quantised layer), has no hooks, and nobody replaced its forward (as offloading does).
    """
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return type(module) is module_type and "forward" not in module.__dict__ and not any(hooks)


class MAEAttention(ViTMAEAttention):
    """
    Multi-head self-attention of a MAE layer.

    The weights are those of transformers' ViTMAE (`q_proj`, `k_proj`, `v_proj`, `o_proj`). The kernel is chosen by
    `config._attn_implementation` (sdpa, eager, flash, flex).
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        query_states: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `[B, L, D]`): tokens that are attended to.
            attention_mask (`torch.Tensor`, *optional*): as in transformers.
            query_states (`torch.Tensor` of shape `[B, Q, D]`, *optional*): tokens that attend, all of them by default.

        Returns:
            The attended values `[B, Q, D]` and, with eager attention, the probabilities `[B, heads, Q, L]`.
        """
        queries = self.q_proj(hidden_states if query_states is None else query_states)
        query, key, value = (
            states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for states in (queries, self.k_proj(hidden_states), self.v_proj(hidden_states))
        )
        if attention_mask is None and self._uses_matmul_backward(query):
            output, weights = MatmulBackwardAttention.apply(query, key, value, self.scaling).transpose(1, 2), None
        else:
            attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
                self.config._attn_implementation, eager_attention_forward
            )
            dropout = self.attention_dropout if self.training else 0.0
            output, weights = attention_interface(
                self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
            )
        return self.o_proj(output.reshape(*output.shape[:2], -1)), weights

    def _uses_matmul_backward(self, query) -> bool:
        return (
            query.device.type == "cpu"
            and query.dtype == torch.bfloat16
            and query.requires_grad
            and self.config._attn_implementation == "sdpa"
            and not (self.training and self.attention_dropout)
            and not torch.compiler.is_compiling()
        )
