r"""A Transformer block, pre-norm or post-norm, and the decoder language model made of it.

    pre-norm     x ← x + attn(norm(x))          x ← x + ff(norm(x))
    post-norm    x ← norm(x + attn(x))          x ← norm(x + ff(x))

Attention carries information from token to token, the feed-forward network works on each token, and both
write into a residual stream by adding to it. Pre-norm leaves the stream itself alone: from the last layer
to the embedding there is a path on which nothing is multiplied, so gradients keep their size at any depth;
the stream grows, and a last norm brings it to the size that the head expects. Post-norm puts every layer's
norm on that path, which needs warm-up to train, and ends normalised.

Conventions: as Llama has them, that is RMSNorm with eps inside the root, rotary positions, grouped keys and
values, SwiGLU, no bias, no dropout. Input and output embedding are one matrix: its gradient is the sum of
both uses. A model of post-norm blocks has no last norm.

Parameters of a block: 2 d² + 2 d · n_kv · head_dim for attention, 3 d · d_ff, 2 d for the norms. Costs a
token twice that many FLOPs forward, and 4 d · time more for attention over what came before.

Sources: Vaswani et al., Attention Is All You Need, 2017, arXiv:1706.03762, §3.1 (post-norm), §3.4 (tied);
Xiong et al., On Layer Normalization in the Transformer Architecture, 2020, arXiv:2002.04745; Touvron et al.,
LLaMA, 2023, arXiv:2302.13971, §2.2; Press & Wolf, Using the Output Embedding, 2016, arXiv:1608.05859.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from reference.feed_forward import SwiGLU
from reference.multi_head_attention import MultiHeadAttention
from reference.rmsnorm import rmsnorm
from reference.rope import rope_tables


@dataclass(frozen=True)
class Config:
    """The sizes of a model. n_kv_heads None stands for n_heads; max_len bounds the positions."""

    d_model: int
    n_heads: int
    n_layers: int
    d_ff: int
    vocab_size: int
    n_kv_heads: int | None = None
    norm: Literal["pre", "post"] = "pre"
    rope_base: float = 10000.0
    eps: float = 1e-6
    max_len: int = 1024


class Block(nn.Module):
    """Causal self-attention and SwiGLU, each with a residual and a norm. ValueError if cfg does not fit."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        if cfg.norm not in ("pre", "post"):
            raise ValueError(f"norm must be 'pre' or 'post', not {cfg.norm!r}")
        rope = rope_tables(cfg.max_len, cfg.d_model // cfg.n_heads, base=cfg.rope_base)
        self.pre = cfg.norm == "pre"
        self.attn = MultiHeadAttention(
            cfg.d_model, cfg.n_heads, n_kv_heads=cfg.n_kv_heads, causal=True, rope=rope
        )
        self.ff = SwiGLU(cfg.d_model, cfg.d_ff)
        self.attn_norm, self.ff_norm = _RMSNorm(cfg), _RMSNorm(cfg)

    def forward(self, x: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "batch time d_model"]:
        """ValueError if x is not (batch, time, d_model), or longer than max_len."""
        if self.pre:
            x = x + self.attn(self.attn_norm(x))
            return x + self.ff(self.ff_norm(x))
        x = self.attn_norm(x + self.attn(x))
        return self.ff_norm(x + self.ff(x))


class DecoderLM(nn.Module):
    """Scores for the token that follows each token, given it and those before it."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.max_len = cfg.max_len
        self.embed = nn.Embedding(cfg.vocab_size, cfg.d_model)
        # As an output matrix it has to start small, or an untrained model would be sure of itself.
        nn.init.normal_(self.embed.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.norm = _RMSNorm(cfg) if cfg.norm == "pre" else nn.Identity()

    def forward(self, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time vocab"]:
        """ValueError if tokens are not (batch, time), longer than max_len, or no ids of the vocabulary."""
        whole = tokens.dtype in (torch.int32, torch.int64)
        if tokens.ndim != 2 or tokens.shape[1] > self.max_len or not whole:
            raise ValueError(
                f"tokens {tuple(tokens.shape)} of {tokens.dtype}: not (batch, time ≤ {self.max_len}) of integers"
            )
        if ((tokens < 0) | (tokens >= self.embed.num_embeddings)).any():
            raise ValueError(f"tokens {tokens.tolist()} must be in [0, {self.embed.num_embeddings})")
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.embed.weight.T


class _RMSNorm(nn.Module):
    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.eps = cfg.eps
        self.weight = nn.Parameter(torch.ones(cfg.d_model))

    def forward(self, x: Tensor) -> Tensor:
        return rmsnorm(x, self.weight, eps=self.eps)
