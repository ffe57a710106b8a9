"""The starter's network in torch: a small Llama, and an initialisation that can already copy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Shape:
    """Llama hyper-parameters; names follow Hugging Face's config.json."""

    vocab_size: int = 2048
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 704
    # A large base leaves half of the rotary pairs almost still over 500 tokens, for matching.
    rope_theta: float = 500_000.0
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 2048

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_attention_heads


def _rotary(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    half = shape.head_dim // 2
    frequency = shape.rope_theta ** (-torch.arange(half, dtype=torch.float32) / half)
    angle = torch.arange(length, dtype=torch.float32)[:, None] * frequency
    return torch.cos(angle), torch.sin(angle)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Block(nn.Module):
    """Attention and SwiGLU, each behind an RMSNorm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        h, m = shape.hidden_size, shape.intermediate_size
        self.heads = shape.num_attention_heads
        self.input_layernorm = nn.RMSNorm(h, shape.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(h, shape.rms_norm_eps)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(h, h, bias=False) for _ in range(4)
        )
        self.gate_proj, self.up_proj = (nn.Linear(h, m, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(m, h, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map (B, T, hidden) to (B, T, hidden)."""
        b, t, h = x.shape
        y = self.input_layernorm(x)
        q, k, v = (
            p(y).view(b, t, self.heads, h // self.heads).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = _rotate(q, cos, sin).to(v.dtype), _rotate(k, cos, sin).to(v.dtype)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o_proj(y.transpose(1, 2).reshape(b, t, h))
        y = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))


class Llama(nn.Module):
    """A decoder with tied embeddings."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        cos, sin = _rotary(shape, shape.max_position_embeddings)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.normal_(p, std=0.02 / (2 * shape.num_hidden_layers) ** 0.5)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean next-token loss (nats) of (B, T) ids against (B, T) targets."""
        x = self.embed_tokens(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        logits = F.linear(self.norm(x), self.embed_tokens.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


@torch.no_grad()
def plant_copy_heads(model: Llama) -> None:
    """Set one previous-token head and three match-and-copy heads (arXiv 2209.11895, section 2).

    Residual layout at initialisation: dimension 0 is a constant, the last ``head_dim`` dimensions
    are free for "what came before", the rest holds the token. Layer 0, head 0 attends one step
    back and writes a signature of the previous token into the free dimensions; in layer 1, heads
    0 to 2 look for places whose previous token has the current token's signature, and copy the
    token found there towards the output. Everything is trained on from there.
    """
    shape = model.shape
    h, d = shape.hidden_size, shape.head_dim
    half, body = d // 2, slice(1, h - d)
    embedding = model.embed_tokens.weight
    embedding[:, 0] = 3 * 0.02
    embedding[:, h - d :] *= 0.05
    signature = torch.linalg.qr(torch.randn(h - d - 1, d))[0].T * 1.0  # (d, body)

    first = model.layers[0]
    frequency = shape.rope_theta ** (-torch.arange(half, dtype=torch.float32) / half)
    strength = (8 * d**0.5 / 4) ** 0.5 / 3 * 2
    n = 8  # the fastest rotary pairs locate "one step back" sharply
    q, k = torch.zeros(d), torch.zeros(d)
    q[:n], q[half : half + n] = torch.cos(frequency[:n]), -torch.sin(frequency[:n])
    k[:n] = 1.0
    for weight, vector in ((first.q_proj.weight, q), (first.k_proj.weight, k)):
        weight[:d] = 0
        weight[:d, 0] = strength * vector
    first.v_proj.weight[:d] = 0
    first.v_proj.weight[:d, body] = signature
    first.o_proj.weight[:, :d] = 0
    first.o_proj.weight[h - d :, :d] = torch.eye(d) * 0.02

    second = model.layers[1]
    still = torch.cat([torch.arange(half // 2, half), torch.arange(half + half // 2, d)])
    third = (h - d - 1) // 3
    for head in range(3):
        rows = slice(head * d, (head + 1) * d)
        pick = torch.randperm(d)[: len(still)]
        for weight in (second.q_proj.weight, second.k_proj.weight, second.v_proj.weight):
            weight[rows] = 0
        q_rows, k_rows = torch.zeros(d, h), torch.zeros(d, h)
        q_rows[still, 1 : h - d] = signature[pick] * 2.0
        k_rows[still, h - d + pick] = 2.0
        second.q_proj.weight[rows], second.k_proj.weight[rows] = q_rows, k_rows
        columns = torch.arange(1 + head * third, 1 + (head + 1) * third)[:d]
        v_rows = torch.zeros(d, h)
        v_rows[torch.arange(len(columns)), columns] = 1.0
        second.v_proj.weight[rows] = v_rows
        second.o_proj.weight[:, rows] = 0
        second.o_proj.weight[columns, head * d + torch.arange(len(columns))] = 0.05
