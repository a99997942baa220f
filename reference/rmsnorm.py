r"""Root-mean-square normalisation (RMSNorm).

    rmsnorm(x)_i = x_i · r · weight_i          r = 1 / √(mean_j x_j² + eps)

Every row is brought to root-mean-square 1 and then stretched by a learned factor per channel. LayerNorm
without the mean: the paper's finding is that the rescaling does the work and the recentring does not.
A row times c comes out as it was, so that the size of a residual stream cannot run away with the layers
that read it; eps is a floor under that size, in units of x².

With u = g ∘ weight for the gradient g from above,

    ∂x = r · (u − x · r² · mean(u ∘ x))          ∂weight = Σ over rows of g ∘ x · r

The bracket takes out the part of u along x: to move a row along itself changes nothing.

Conventions: eps stands inside the root, added to the mean, as in Llama and in PyTorch (the paper has
none). Half types are computed in float32 and rounded once, after the weight; Llama's code rounds before
it as well. Gemma multiplies by 1 + weight instead. Costs three passes over x and one temporary or two of its
size; it is bound by memory, and a fused kernel reads and writes x once.

Source: Zhang & Sennrich, Root Mean Square Layer Normalization, 2019, arXiv:1910.07467, equation 4; eps as
in Touvron et al., LLaMA, 2023, arXiv:2302.13971, and its code.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def rmsnorm(
    x: Float[Tensor, "*batch dim"], weight: Float[Tensor, "dim"], *, eps: float = 1e-6
) -> Float[Tensor, "*batch dim"]:
    """Each row over its root mean square, times ``weight``. ValueError if weight does not fit the rows."""
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight {tuple(weight.shape)} does not fit x {tuple(x.shape)}")
    # float16 ends at 65504 = 256², and bfloat16 keeps 8 bits: squares of both need more room.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    inverse_rms = (wide.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
    return (wide * inverse_rms * weight).to(x.dtype)
