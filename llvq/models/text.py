"""The UMT5 encoder, written to be exported: no device literal, no host sync, one op per idea.

State-dict names are those of transformers' `UMT5EncoderModel`, which is the oracle in the test
and not the implementation: its exported graph names a device in every layer, mutates in place,
and changes with the installed version. Source of the math: T5 (arXiv:1910.10683) as Wan2.2 uses
UMT5: relative bias in every layer, attention scores unscaled, gated tanh-GELU, no linear biases.

B batch, L tokens, E dim, H heads, D head dim.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llvq.models.config import TextConfig


class TextEncoder(nn.Module):
    """Token ids -> embeddings; rows of padding are zero.

    forward: input_ids int64 [B, L], mask int64 or bool [B, L], True on real tokens, at least one
    per row; returns [B, L, dim] in the dtype of the weights.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.dim)
        self.encoder = Stack(config)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        keep_BL = mask.to(torch.bool)
        buckets_LL = relative_buckets(input_ids, self.config)
        padding_B11L = ~keep_BL[:, None, None, :]
        x_BLE = self.encoder(self.shared(input_ids), padding_B11L, buckets_LL)
        return torch.where(keep_BL[..., None], x_BLE, 0.0)


class Stack(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.block = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_layer_norm = nn.RMSNorm(config.dim, eps=config.eps)

    def forward(self, x_BLE: Tensor, padding_B11L: Tensor, buckets_LL: Tensor) -> Tensor:
        for block in self.block:
            x_BLE = block(x_BLE, padding_B11L, buckets_LL)
        return self.final_layer_norm(x_BLE)


class Block(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList((AttentionLayer(config), FeedForwardLayer(config)))

    def forward(self, x_BLE: Tensor, padding_B11L: Tensor, buckets_LL: Tensor) -> Tensor:
        attention, feed_forward = self.layer
        return feed_forward(attention(x_BLE, padding_B11L, buckets_LL))


class AttentionLayer(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.SelfAttention = SelfAttention(config)
        self.layer_norm = nn.RMSNorm(config.dim, eps=config.eps)

    def forward(self, x_BLE: Tensor, padding_B11L: Tensor, buckets_LL: Tensor) -> Tensor:
        return x_BLE + self.SelfAttention(self.layer_norm(x_BLE), padding_B11L, buckets_LL)


class SelfAttention(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q = nn.Linear(config.dim, config.attn_dim, bias=False)
        self.k = nn.Linear(config.dim, config.attn_dim, bias=False)
        self.v = nn.Linear(config.dim, config.attn_dim, bias=False)
        self.o = nn.Linear(config.attn_dim, config.dim, bias=False)
        self.relative_attention_bias = nn.Embedding(config.num_buckets, config.num_heads)

    def forward(self, x_BLE: Tensor, padding_B11L: Tensor, buckets_LL: Tensor) -> Tensor:
        q_BHLD, k_BHLD, v_BHLD = (self._heads(part(x_BLE)) for part in (self.q, self.k, self.v))
        bias_HLL = self.relative_attention_bias(buckets_LL).permute(2, 0, 1)
        # The smallest finite number, not -inf: a row without any real token stays free of NaN.
        lowest = torch.finfo(bias_HLL.dtype).min
        bias_BHLL = bias_HLL.masked_fill(padding_B11L, lowest)
        out_BHLD = F.scaled_dot_product_attention(
            q_BHLD, k_BHLD, v_BHLD, attn_mask=bias_BHLL, scale=1.0
        )
        return self.o(out_BHLD.transpose(1, 2).flatten(2))

    def _heads(self, x_BLA: Tensor) -> Tensor:
        return x_BLA.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class FeedForwardLayer(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.DenseReluDense = GatedFeedForward(config)
        self.layer_norm = nn.RMSNorm(config.dim, eps=config.eps)

    def forward(self, x_BLE: Tensor) -> Tensor:
        return x_BLE + self.DenseReluDense(self.layer_norm(x_BLE))


class GatedFeedForward(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.wi_1 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.wo = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x_BLE: Tensor) -> Tensor:
        return self.wo(F.gelu(self.wi_0(x_BLE), approximate="tanh") * self.wi_1(x_BLE))


def relative_buckets(input_ids: Tensor, config: TextConfig) -> Tensor:
    """int64 [L, L]: the bucket of the distance from query (row) to key (column).

    Half of the buckets are for keys after the query. In each half, one half holds a distance
    each, the other grows with the logarithm up to max_distance, beyond which all share the last.
    """
    half = config.num_buckets // 2
    exact = half // 2
    # Positions from the input itself, so that the graph names no device.
    position_L = torch.ones_like(input_ids[0]).cumsum(0)
    distance_LL = position_L[None, :] - position_L[:, None]
    far_LL = distance_LL.abs()
    # clamp: log(0) is -inf, and what casting -inf to an integer gives depends on the machine.
    growth_LL = torch.log(far_LL.clamp(min=1).to(torch.float32) / exact)
    log_LL = growth_LL / math.log(config.max_distance / exact) * (half - exact)
    large_LL = (exact + log_LL.to(torch.int64)).clamp(max=half - 1)
    bucket_LL = torch.where(far_LL < exact, far_LL, large_LL)
    return bucket_LL + (distance_LL > 0).to(torch.int64) * half
