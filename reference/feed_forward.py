r"""The feed-forward half of a Transformer layer: GELU, the two-matrix network, and SwiGLU.

    gelu(x)        = x · Φ(x) = ½ x (1 + erf(x/√2))                  ≈ ½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))
    FeedForward(x) = gelu(x W_upᵀ + b_up) W_downᵀ + b_down
    SwiGLU(x)      = (silu(x W_gateᵀ) ∘ x W_upᵀ) W_downᵀ             silu(z) = z · σ(z)

Every position alone goes through a wide hidden layer: attention moves information between tokens, this
works on each. GELU lets an input through by the chance Φ(x) that a standard normal stays below it. A
gated unit makes the hidden layer a product of two linear maps, one of them bent by SiLU: for equal size it
has three matrices to the other's two, so d_ff is taken 2/3 as wide (4 d_model becomes 8/3 d_model).

Conventions: weights (out, in), as torch.nn.Linear; the gate is the factor that goes through SiLU. The
network of the Transformer and GPT-2 has biases (GPT-2 with the tanh form, BERT with the exact one); SwiGLU
of PaLM and Llama has none. The two forms of GELU differ by up to 5e-4: a checkpoint wants its own. Half
types are activated in float32; products with a matrix sum in float32 by themselves.

Cost a token, in multiplications and additions: 2 · d_model · d_ff, with a gate 3 · d_model · d_ff.

Sources: Hendrycks & Gimpel, Gaussian Error Linear Units, 2016, arXiv:1606.08415, §2; Vaswani et al., 2017,
arXiv:1706.03762, equation 2; Shazeer, GLU Variants Improve Transformer, 2020, arXiv:2002.05202, equation 6.
"""

from math import pi, sqrt
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn


def gelu(
    x: Float[Tensor, "*shape"], *, approximate: Literal["none", "tanh"] = "none"
) -> Float[Tensor, "*shape"]:
    """x · Φ(x), exactly or in the tanh form. ValueError if ``approximate`` is neither."""
    wide = _widened(x)
    if approximate == "none":
        squashed = (wide * sqrt(0.5)).erf()
    elif approximate == "tanh":
        squashed = (sqrt(2 / pi) * (wide + 0.044715 * wide**3)).tanh()
    else:
        raise ValueError(f"approximate must be 'none' or 'tanh', not {approximate!r}")
    return (0.5 * wide * (1 + squashed)).to(x.dtype)


class FeedForward(nn.Module):
    """Up to ``d_ff``, GELU, and down again, position by position."""

    def __init__(self, d_model: int, d_ff: int, *, approximate: Literal["none", "tanh"] = "none") -> None:
        super().__init__()
        self.approximate = approximate
        self.w_up = nn.Linear(d_model, d_ff)
        self.w_down = nn.Linear(d_ff, d_model)

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """ValueError if the last dimension of x is not ``d_model``."""
        _check(x, self.w_up)
        return self.w_down(gelu(self.w_up(x), approximate=self.approximate))


class SwiGLU(nn.Module):
    """Up to ``d_ff`` twice, one of them gating the other through SiLU, and down again."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.w_gate = nn.Linear(d_model, d_ff, bias=False)
        self.w_up = nn.Linear(d_model, d_ff, bias=False)
        self.w_down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """ValueError if the last dimension of x is not ``d_model``."""
        _check(x, self.w_up)
        gate = _widened(self.w_gate(x))
        # torch.sigmoid, and not 1 / (1 + exp(−z)), whose gradient is ∞/∞ for a large negative z
        hidden = gate * gate.sigmoid() * self.w_up(x)
        return self.w_down(hidden.to(x.dtype))


def _check(x: Tensor, first: nn.Linear) -> None:
    if x.shape[-1:] != first.weight.shape[1:]:
        raise ValueError(f"x {tuple(x.shape)} does not end in {first.in_features} channels")


def _widened(x: Tensor) -> Tensor:
    """Half types as float32, so that an activation is rounded once, at the end."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
