"""A plain Llama in torch: the same arithmetic as llama.cpp, transformers, vLLM and ONNX run."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .settings import ModelSize


class RMSNorm(nn.Module):
    """Scales a vector to unit root mean square, then by a learnt weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def rotation(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding, each ``(length, head_dim)``."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), frequency)
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (i, i + head_dim/2) of ``x`` (…, tokens, head_dim) by its angle."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


class Attention(nn.Module):
    """Causal attention; several query heads share one key/value head."""

    def __init__(self, size: ModelSize) -> None:
        super().__init__()
        self.size = size
        query, key = size.heads * size.head_dim, size.kv_heads * size.head_dim
        self.q_proj = nn.Linear(size.hidden, query, bias=False)
        self.k_proj = nn.Linear(size.hidden, key, bias=False)
        self.v_proj = nn.Linear(size.hidden, key, bias=False)
        self.o_proj = nn.Linear(query, size.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        rows, tokens, _ = x.shape

        def heads(y: Tensor) -> Tensor:
            return y.view(rows, tokens, -1, self.size.head_dim).transpose(1, 2)

        q = rotate(heads(self.q_proj(x)), cos, sin)
        k = rotate(heads(self.k_proj(x)), cos, sin)
        v = heads(self.v_proj(x))
        group = self.size.heads // self.size.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(y.transpose(1, 2).reshape(rows, tokens, -1))


class MLP(nn.Module):
    """The gated feed-forward part (SwiGLU)."""

    def __init__(self, size: ModelSize) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size.hidden, size.ffn, bias=False)
        self.up_proj = nn.Linear(size.hidden, size.ffn, bias=False)
        self.down_proj = nn.Linear(size.ffn, size.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One block: attention, then feed-forward, each on a normalised copy and added back."""

    def __init__(self, size: ModelSize) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(size.hidden, size.rms_eps)
        self.self_attn = Attention(size)
        self.post_attention_layernorm = RMSNorm(size.hidden, size.rms_eps)
        self.mlp = MLP(size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """The whole model. Parameter names are Hugging Face's, less the leading ``model.``."""

    def __init__(self, size: ModelSize) -> None:
        super().__init__()
        self.size = size
        self.embed_tokens = nn.Embedding(size.vocab, size.hidden)
        self.layers = nn.ModuleList(Layer(size) for _ in range(size.layers))
        self.norm = RMSNorm(size.hidden, size.rms_eps)
        cos, sin = rotation(size.context, size.head_dim, size.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02 if "embed" in name else weight.shape[1] ** -0.5)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(weight)

    def states(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Final hidden states ``(rows, tokens, hidden)`` of token ids ``(rows, tokens)``.

        ``mask`` is ``(rows, 1, tokens, tokens)``, True where a token may look; None means causal.
        """
        tokens = ids.shape[1]
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, self.cos[:tokens], self.sin[:tokens], mask)
        return self.norm(x)

    def logits(self, states: Tensor) -> Tensor:
        """Scores over the vocabulary, through the embedding (tied weights)."""
        return functional.linear(states, self.embed_tokens.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits ``(rows, tokens, vocab)`` under the causal mask."""
        return self.logits(self.states(ids))
