"""The feed-forward half of a Transformer layer: GELU, the two-matrix network, and SwiGLU.

Write a function and two subclasses of torch.nn.Module.

    gelu(x, *, approximate="none")        any shape; element by element
        "none"   x · Φ(x), where Φ(x) = ½ (1 + erf(x/√2))
        "tanh"   ½ x (1 + tanh(√(2/π) · (x + 0.044715 x³)))

    FeedForward(d_model, d_ff, *, approximate="none")
        x W_upᵀ + b_up, then gelu as approximate says, then the same with W_down and b_down.
        parameters  w_up.weight (d_ff, d_model), w_up.bias (d_ff,),
                    w_down.weight (d_model, d_ff), w_down.bias (d_model,)

    SwiGLU(d_model, d_ff)
        (silu(x W_gateᵀ) ∘ (x W_upᵀ)) W_downᵀ, where silu(z) = z · σ(z) and σ is the logistic function.
        parameters  w_gate.weight, w_up.weight (d_ff, d_model), w_down.weight (d_model, d_ff); no bias

- The parameters have exactly these names and shapes, as torch.nn.Linear stores them. Their first values are
  open, but random: no two rows of a matrix are the same.
- Both modules take x (…, d_model), any number of leading dimensions, any of them may be 0, and return its
  shape: each position alone, the same in training and eval.
- float64, float32, float16 and bfloat16, x in the dtype of the parameters; dtype and device out are those of
  x. For half types, sums run in float32. x may be non-contiguous and is left alone.
- gelu and silu are right for entries of any size, as far as rounding of x itself allows: gelu(x) may be off
  by a few ε·|x|. Where 4x² still fits the dtype, the gradients are finite, too.
- Gradients flow by autograd to x and to every parameter.
- ValueError, with what was received, for another approximate (FeedForward may wait until it is called), and
  for an x whose last dimension is not d_model.

Example, all weights 1, all biases 0, d_model = d_ff = 1:

    gelu(tensor(1.))                        →  0.8413      Φ(1)
    gelu(tensor(1.), approximate="tanh")    →  0.8412
    FeedForward(1, 1)(tensor([[1.]]))       →  [[0.8413]]
    SwiGLU(1, 1)(tensor([[2.]]))            →  [[3.5232]]  2 σ(2) · 2
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn


def gelu(
    x: Float[Tensor, "*shape"], *, approximate: Literal["none", "tanh"] = "none"
) -> Float[Tensor, "*shape"]:
    raise NotImplementedError


class FeedForward(nn.Module):
    def __init__(self, d_model: int, d_ff: int, *, approximate: Literal["none", "tanh"] = "none") -> None:
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        raise NotImplementedError


class SwiGLU(nn.Module):
    def __init__(self, d_model: int, d_ff: int) -> None:
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        raise NotImplementedError
