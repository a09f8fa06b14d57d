"""Attention with packed weights, written with functions that have rules."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def self_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    average_attn_weights: bool = True,
    **others: Any,
) -> tuple[Tensor, Tensor | None] | None:
    """``F.multi_head_attention_forward`` of tokens (T, N, E) to themselves; None for other attention.

    Its linear layers take the images first, (N, T, E), as rules need.
    """
    extras = (bias_k, bias_v, key_padding_mask, attn_mask, *others.values())
    if key is not query or value is not query or query.dim() != 3 or any(isinstance(extra, Tensor) for extra in extras):
        return None
    if in_proj_weight is None or use_separate_proj_weight or add_zero_attn or (training and dropout_p > 0):
        return None
    packed = F.linear(query.transpose(0, 1), in_proj_weight, in_proj_bias)  # (N, T, 3 E)
    q, k, v = packed.unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)  # each (N, heads, T, E / heads)
    weights = (q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)).softmax(3) if need_weights else None  # (N, heads, T, T)
    attended = F.scaled_dot_product_attention(q, k, v) if weights is None else weights @ v
    out = F.linear(attended.transpose(1, 2).flatten(2), out_proj_weight, out_proj_bias)  # (N, T, E)
    return out.transpose(0, 1), weights.mean(1) if weights is not None and average_attn_weights else weights
