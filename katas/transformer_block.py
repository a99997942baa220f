"""A Transformer block, pre-norm or post-norm, and the decoder language model made of it.

You may import rmsnorm, feed_forward, rope, attention and multi_head_attention from reference: this kata is
about putting them together. Config is given. Write two subclasses of torch.nn.Module.

    Block(cfg)        x (batch, time, d_model) → the same shape
        norm "pre":   x = x + attn(attn_norm(x)), then x + ff(ff_norm(x))
        norm "post":  x = attn_norm(x + attn(x)), then ff_norm(x + ff(x))

        attn  causal multi-head self-attention, n_kv_heads heads of keys and values (None: n_heads), each for
              n_heads / n_kv_heads consecutive query heads; queries and keys are turned half-split by RoPE
              with rope_base, the first token at position 0
        ff    SwiGLU, d_ff wide; no bias anywhere
        attn_norm, ff_norm   RMSNorm with eps inside the root, each with a weight of its own

    DecoderLM(cfg)    tokens (batch, time), int32 or int64 → logits (batch, time, vocab_size)
        the row of embed.weight for each token; n_layers blocks, blocks.0 first; for "pre" a last RMSNorm, for
        "post" none; the product with embed.weightᵀ: input and output embedding are one and the same matrix

The parameters, and nothing else, are in the state_dict:

    attn.wq.weight (d_model, d_model)      attn.wk.weight, attn.wv.weight (n_kv_heads · head_dim, d_model)
    attn.wo.weight (d_model, d_model)      attn_norm.weight, ff_norm.weight (d_model,)
    ff.w_gate.weight, ff.w_up.weight (d_ff, d_model)       ff.w_down.weight (d_model, d_ff)
    DecoderLM: embed.weight (vocab_size, d_model), blocks.0.attn.wq.weight, …, and for "pre" norm.weight

- Matrices are as nn.Linear stores them, (out, in), heads in order. Norm weights start as ones; the first
  values of matrices are open, but random.
- Both modules may be moved to float64, float32, float16 or bfloat16; x has that dtype, and so has the
  result. cos and sin of RoPE may be float32 under float64. x may be non-contiguous; inputs
  are left alone. Gradients flow to x and to every parameter. Training and eval are alike.
- ValueError, with what was received: when made, for a norm that is neither "pre" nor "post", an n_heads that
  does not divide d_model into heads of even size, an n_kv_heads that does not divide n_heads; when called,
  for an x that is not (batch, time, d_model), tokens that are not (batch, time) or not integers, a token
  that is not in 0 … vocab_size − 1, and more than max_len positions.

Example, attn.wo.weight and ff.w_down.weight all zeros, norm weights ones:

    Block(pre)(x)                        →  x, exactly
    Block(post)([[[3., 4.]]])            →  [[[0.8485, 1.1314]]]    that is x / √12.5, twice normalised
    DecoderLM(post), token i             →  logits j: rmsnorm(rmsnorm(e_i)) · e_j, e the rows of embed.weight
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
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
    def __init__(self, cfg: Config) -> None:
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "batch time d_model"]:
        raise NotImplementedError


class DecoderLM(nn.Module):
    def __init__(self, cfg: Config) -> None:
        raise NotImplementedError

    def forward(self, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time vocab"]:
        raise NotImplementedError
