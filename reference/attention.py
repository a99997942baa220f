r"""Scaled dot-product attention.

    attention(q, k, v)_i = Σ_j w_ij v_j          w_i = softmax over the visible keys j of scale · q_i·k_j

Every query averages the values of the keys that it may see, by how well each key answers it. If q and k
have independent entries of variance 1, then q·k has variance head_dim; the default scale 1/√head_dim
brings it back to 1, where softmax still has a gradient.

Conventions:
- Layout (batch, heads, time, dim), as in PyTorch. Values may be wider or narrower than keys.
- ``mask`` is boolean, True where a query may attend, and broadcasts. ``causal`` hides the future and is
  aligned to the last key: the queries are the newest positions of the sequence that the keys span, so
  that one query beside a cache of keys sees them all. FlashAttention does so since version 2.1;
  ``torch.nn.functional.scaled_dot_product_attention`` aligns to the first key. Both must allow a key.
- A query that sees no key gives zeros and passes no gradient. A hidden key and its value have no effect, as
  long as neither scale · q·k nor the product of v with the gradient of the result overflows.
- Half types are computed in float32 and rounded once, at the end. Only sums need that.

Costs O(queries · keys · (head_dim + value_dim)) time and O(queries · keys) memory for each head; the
weights are kept for the backward pass. Doing without them is the idea of FlashAttention.

Source: Vaswani et al., Attention Is All You Need, 2017, arXiv:1706.03762, equation 1. Causal alignment:
Dao, FlashAttention-2, 2023, arXiv:2307.08691, and the change notes of its version 2.1.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def attention(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch heads keys head_dim"],
    v: Float[Tensor, "batch heads keys value_dim"],
    *,
    mask: Bool[Tensor, "..."] | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Average ``v`` over the keys that each query may see, weighted by softmax(scale · q·kᵀ).

    ``scale`` is 1/√head_dim unless given. Raises ValueError if the shapes do not fit, or if ``mask`` is
    not boolean or does not broadcast to (batch, heads, queries, keys).
    """
    _check(q, k, v, mask)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    visible = _visible(q, k, mask, causal)

    scores = (_widened(q) * scale) @ _widened(k).mT  # (batch, heads, queries, keys)
    # The lowest finite number and not −inf: where nothing is visible softmax then gives something finite,
    # so that no NaN arises, neither here nor in the backward pass, that would have to be cleaned up.
    if visible is not None:
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    out = scores.softmax(dim=-1) @ _widened(v)
    if visible is not None:
        out = out.masked_fill(~visible.any(dim=-1, keepdim=True), 0)
    return out.to(q.dtype)


def _visible(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool) -> Tensor | None:
    """Which keys each query may see, broadcastable to the scores; None if all of them."""
    if not causal:
        return mask
    queries, keys = q.shape[2], k.shape[2]
    past = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    return past if mask is None else mask & past


def _check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
    sizes_agree = q.shape[:2] == k.shape[:2] == v.shape[:2] and k.shape[2] == v.shape[2]
    if not (sizes_agree and q.shape[3] == k.shape[3]):
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit")
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean, not {mask.dtype}")
    full = (*q.shape[:3], k.shape[2])
    if mask.ndim > 4 or any(m not in (1, n) for m, n in zip(mask.shape[::-1], full[::-1], strict=False)):
        raise ValueError(f"mask {tuple(mask.shape)} does not broadcast to {full}")


def _widened(x: Tensor) -> Tensor:
    """Half types as float32, since their sums lose every term below ε · the running total."""
    return x.float() if x.itemsize < 4 else x
