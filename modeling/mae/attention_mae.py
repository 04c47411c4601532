"""Attention of MAE layers, with separate queries where only some rows are wanted and fast bfloat16 training on
CPU."""

from collections.abc import Callable, Iterator

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEAttention, eager_attention_forward

from .onednn_mae import float32_products_in_onednn


class MatmulAttention(torch.autograd.Function):
    """
    Softmax attention as plain matrix products, for as many images at once as the cache holds.

    On CPU the backward of the bfloat16 flash kernel takes about twice the time of the same products done one after the
    other. As in the kernel, what has the size of the attention matrix is float32 until it meets queries, keys and the
    gradient of the output. The probabilities of short sequences are kept for the backward, with the precision of
    float16; those of long ones are computed again.
    """

    # Elements of an attention matrix that are worked on at once: 4 MB in float32.
    CHUNK_ELEMENTS = 2**20
    # Keys up to which the probabilities are kept: at 32 channels a head, half of what a layer keeps without them.
    KEEP_LENGTH = 256

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    @float32_products_in_onednn()
    def forward(ctx, query, key, value, scaling):
        keep = key.shape[2] <= MatmulAttention.KEEP_LENGTH
        kept = query.new_empty(*query.shape[:3], key.shape[2] if keep else 0, dtype=torch.float16)
        output = torch.empty_like(query)
        for (scores, probabilities), q, k, v, kept_part, out in image_chunks(query, key, value, kept, output):
            attention_probabilities(q, k, scaling, scores, probabilities)
            out.copy_(torch.bmm(probabilities, float32_heads(v)).view_as(out))
            if keep:
                kept_part.copy_(probabilities.view_as(kept_part))
        ctx.save_for_backward(query, key, value, kept)
        ctx.scaling = scaling
        return output

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    @float32_products_in_onednn()
    def backward(ctx, grad_output):
        query, key, value, kept = ctx.saved_tensors
        gradients = [torch.empty_like(tensor) for tensor in (query, key, value)]
        for (scores, probabilities), q, k, v, kept_part, upstream, grad_q, grad_k, grad_v in image_chunks(
            query, key, value, kept, grad_output, *gradients
        ):
            if kept.numel():
                probabilities.copy_(kept_part.flatten(0, 1))
            else:
                attention_probabilities(q, k, ctx.scaling, scores, probabilities)
            half = probabilities.to(query.dtype)
            grad_v.copy_(torch.bmm(half.transpose(1, 2), upstream.flatten(0, 1)).view_as(grad_v))
            torch.bmm(float32_heads(upstream).mul_(ctx.scaling), float32_heads(v).transpose(1, 2), out=scores)
            torch.ops.aten._softmax_backward_data.out(scores, probabilities, -1, torch.float32, grad_input=scores)
            half.copy_(scores)
            grad_q.copy_(torch.bmm(half, k.flatten(0, 1)).view_as(grad_q))
            grad_k.copy_(torch.bmm(half.transpose(1, 2), q.flatten(0, 1)).view_as(grad_k))
        return *gradients, None


def image_chunks(query: torch.Tensor, key: torch.Tensor, *others: torch.Tensor) -> Iterator[tuple]:
    """
    Parts of some images each of tensors whose first axis is the image, with two float32 matrices
    `[images * heads, Q, L]` to work in: the same memory for all parts, because fresh pages cost as much as a product.
    """
    heads, queries, keys = query.shape[1], query.shape[2], key.shape[2]
    images = min(query.shape[0], max(1, MatmulAttention.CHUNK_ELEMENTS // (heads * queries * keys)))
    workspace = query.new_empty(2, images * heads, queries, keys, dtype=torch.float32)
    for part, *other_parts in zip(*(tensor.split(images) for tensor in (query, key, *others)), strict=True):
        yield workspace[:, : part.shape[0] * heads], part, *other_parts


def float32_heads(states: torch.Tensor) -> torch.Tensor:
    """States `[B, heads, L, head_dim]` as a contiguous float32 copy `[B * heads, L, head_dim]`."""
    return states.to(torch.float32, memory_format=torch.contiguous_format).flatten(0, 1)


def attention_probabilities(
    query: torch.Tensor, key: torch.Tensor, scaling: float, scores: torch.Tensor, probabilities: torch.Tensor
) -> None:
    """Writes scores and their softmax over the keys `[B * heads, Q, L]` of states `[B, heads, L, head_dim]`."""
    torch.bmm(float32_heads(query).mul_(scaling), float32_heads(key).transpose(1, 2), out=scores)
    torch.softmax(scores, dim=-1, out=probabilities)


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
        if attention_mask is None and self._uses_matmul_attention(query):
            output, weights = MatmulAttention.apply(query, key, value, self.scaling).transpose(1, 2), None
        else:
            attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
                self.config._attn_implementation, eager_attention_forward
            )
            dropout = self.attention_dropout if self.training else 0.0
            output, weights = attention_interface(
                self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
            )
        return self.o_proj(output.reshape(*output.shape[:2], -1)), weights

    def _uses_matmul_attention(self, query) -> bool:
        return (
            query.device.type == "cpu"
            and query.dtype == torch.bfloat16
            and query.requires_grad
            and self.config._attn_implementation == "sdpa"
            and not (self.training and self.attention_dropout)
            and not torch.compiler.is_compiling()
        )
