r"""Softmax, its logarithm, and cross-entropy.

    softmax(x)_i = exp(x_i − m) / Σ_j exp(x_j − m)          m = max_j x_j
    log_softmax(x)_i = (x_i − m) − log Σ_j exp(x_j − m)
    cross_entropy = − mean over kept targets t of log_softmax(logits)_t

The shift by m leaves the value unchanged, bounds every exponent by 0 and the sum by 1 from below, so
that nothing overflows and nothing divides by zero. The logarithm is never taken of a probability,
which would be log 0 for a class more than about 104 below the best in float32.

Conventions: half types are computed in float32 and rounded once at the end; the loss is averaged over
kept targets, as PyTorch does. Costs O(n) time and one temporary of x's size.

Source: Blanchard, Higham & Higham, Accurately computing the log-sum-exp and softmax functions,
IMA J. Numer. Anal. 41 (2021), arXiv:1909.03469.
"""

from jaxtyping import Float, Int
from torch import Tensor


def softmax(x: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape"]:
    """Probabilities along ``dim``. A logit of −inf gets exactly 0. IndexError if x has no such dim."""
    weights = _shifted(x, dim).exp()
    return (weights / weights.sum(dim, keepdim=True)).to(x.dtype)


def log_softmax(x: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape"]:
    """Log-probabilities along ``dim``, exact also where the probability underflows; −inf where it is 0."""
    shifted = _shifted(x, dim)
    return (shifted - shifted.exp().sum(dim, keepdim=True).log()).to(x.dtype)


def cross_entropy(
    logits: Float[Tensor, "*batch vocab"], targets: Int[Tensor, "*batch"], *, ignore_index: int = -100
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of the targets that are not ``ignore_index``; NaN if there is none.

    Raises ValueError if the shapes do not fit or a kept target is no class.
    """
    kept = targets != ignore_index
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets {tuple(targets.shape)} do not fit logits {tuple(logits.shape)}")
    if (kept & ((targets < 0) | (targets >= logits.shape[-1]))).any():
        raise ValueError(f"targets {targets.tolist()} must be in [0, {logits.shape[-1]}) or {ignore_index}")
    # Dropping the ignored rows, rather than multiplying them by zero, keeps an infinite loss in one of
    # them from turning the mean into inf · 0 = NaN.
    likelihood = log_softmax(_widened(logits[kept]), dim=-1).gather(-1, targets[kept].unsqueeze(-1))
    return -likelihood.mean().to(logits.dtype)


def _shifted(x: Tensor, dim: int) -> Tensor:
    wide = _widened(x)
    # The shift is a constant to autograd: its gradient would cancel anyway.
    return wide - wide.detach().amax(dim, keepdim=True)


def _widened(x: Tensor) -> Tensor:
    """Half types as float32, since their sums lose every term below ε · the running total."""
    return x.float() if x.itemsize < 4 else x
