"""A plain Qwen2 decoder for training and sampling, with the parameter names of its files."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder; ``layers`` counts the trained and the padding ones."""

    vocab_size: int
    hidden_size: int = 256
    intermediate_size: int = 704
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6


class KvCache:
    """Keys and values of all layers, rows padded on the left to one length.

    ``keys`` and ``values`` hold one tensor per layer, each
    [rows, kv_heads, capacity_tokens, head_dim]; ``pad_tokens`` is [rows].
    """

    def __init__(self, config: DecoderConfig, pad_tokens: Tensor, capacity_tokens: int) -> None:
        shape = (len(pad_tokens), config.kv_heads, capacity_tokens, config.head_dim)
        self.keys = [torch.empty(shape) for _ in range(config.layers)]
        self.values = [torch.empty(shape) for _ in range(config.layers)]
        self.pad_tokens = pad_tokens
        self.length_tokens = 0

    def reserve(self, new_tokens: int) -> None:
        """Make room for ``new_tokens`` more tokens, growing by half where it is short."""
        capacity = self.keys[0].shape[2]
        needed = self.length_tokens + new_tokens
        if needed <= capacity:
            return
        added = max(needed - capacity, capacity // 2)
        self.keys = [F.pad(key, (0, 0, 0, added)) for key in self.keys]
        self.values = [F.pad(value, (0, 0, 0, added)) for value in self.values]

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store [rows, kv_heads, tokens, head_dim]; return all keys and values so far."""
        end = self.length_tokens + key.shape[2]
        self.keys[layer][:, :, self.length_tokens : end] = key
        self.values[layer][:, :, self.length_tokens : end] = value
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but those of the index tensor ``rows``."""
        self.keys = [key[rows] for key in self.keys]
        self.values = [value[rows] for value in self.values]
        self.pad_tokens = self.pad_tokens[rows]

    def mask(self, new_tokens: int) -> Tensor:
        """Return [rows, 1, new_tokens, tokens], true where a new token may look."""
        end = self.length_tokens + new_tokens
        column = torch.arange(end)
        query = torch.arange(self.length_tokens, end)
        causal = column[None, :] <= query[:, None]
        real = column[None, :] >= self.pad_tokens[:, None]
        return (causal[None] & real[:, None, :])[:, None]


class Attention(nn.Module):  # type: ignore[misc]
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        query_size = config.heads * config.head_dim
        kv_size = config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size)
        self.k_proj = nn.Linear(config.hidden_size, kv_size)
        self.v_proj = nn.Linear(config.hidden_size, kv_size)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: KvCache | None
    ) -> Tensor:
        """Map [rows, tokens, hidden] to the same shape; without a cache it is causal."""
        rows, tokens, _ = x.shape
        split = (rows, tokens, -1, self.config.head_dim)
        query = rotate(self.q_proj(x).view(split).transpose(1, 2), rotary)
        key = rotate(self.k_proj(x).view(split).transpose(1, 2), rotary)
        value = self.v_proj(x).view(split).transpose(1, 2)
        if cache is not None:
            key, value = cache.append(self.layer, key, value)
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=cache is None, enable_gqa=True
        )
        result: Tensor = self.o_proj(out.transpose(1, 2).reshape(rows, tokens, -1))
        return result


class Mlp(nn.Module):  # type: ignore[misc]
    """Gated feed-forward block."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [rows, tokens, hidden] to the same shape."""
        result: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return result


class Layer(nn.Module):  # type: ignore[misc]
    """One decoder layer: attention and feed-forward, each normed and added."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = Mlp(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: KvCache | None
    ) -> Tensor:
        """Map [rows, tokens, hidden] to the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), rotary, mask, cache)
        result: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return result


class Backbone(nn.Module):  # type: ignore[misc]
    """Embedding, layers and final norm."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, ids: Tensor, cache: KvCache | None) -> Tensor:
        """Map ids [rows, tokens] to hidden states [rows, tokens, hidden]."""
        start, mask = 0, None
        if cache is not None:
            cache.reserve(ids.shape[1])
            start, mask = cache.length_tokens, cache.mask(ids.shape[1])
        rotary = rotary_table(self.config, start, ids.shape[1])
        x: Tensor = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, rotary, mask, cache)
        if cache is not None:
            cache.length_tokens += ids.shape[1]
        result: Tensor = self.norm(x)
        return result


class Decoder(nn.Module):  # type: ignore[misc]
    """The language model; the output head is the embedding."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)

    def forward(self, ids: Tensor, cache: KvCache | None = None) -> Tensor:
        """Map ids [rows, tokens] to hidden states [rows, tokens, hidden]."""
        result: Tensor = self.model(ids, cache)
        return result

    def logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states [..., hidden] to logits [..., vocabulary]."""
        return F.linear(hidden, self.model.embed_tokens.weight)


def rotary_table(config: DecoderConfig, start: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, each [tokens, head_dim], from position ``start`` on."""
    exponent = torch.arange(0, config.head_dim, 2) / config.head_dim
    position = torch.arange(start, start + tokens)
    angle = torch.outer(position.float(), config.rope_theta**-exponent).repeat(1, 2)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn [rows, heads, tokens, head_dim] by its positions."""
    cos, sin = rotary
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin
