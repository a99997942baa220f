r"""FlashAttention: exact attention in tiles, forward and backward, without the matrix of scores.

    O_i = Σ_j exp(s_ij − L_i) v_j          s_ij = q_i·k_j / √head_dim,  L_i = log Σ_j exp(s_ij)

Forward. A block of queries meets one block of keys after the other and carries three running numbers for
each query: the largest score so far m, the sum ℓ of exp(s − m), and the sum a of exp(s − m)·v. A new block
that raises the maximum from m to m' first multiplies ℓ and a by exp(m − m'), so that all terms refer to
the same maximum. In the end O = a/ℓ and L = m + log ℓ.

Backward. Nothing of size queries × keys was kept, so each tile of the weights is made again from q, k and
L, already normalised: P = exp(S − L). With g the gradient of O,

    dV = Pᵀ g      dP = g Vᵀ      dS = P ∘ (dP − δ)      dQ = dS K / √d      dK = dSᵀ Q / √d

where the row sums δ_i = Σ_j P_ij dP_ij of the softmax's Jacobian need no row of P at once, because
Σ_j P_ij (g_i·v_j) = g_i·O_i.

Conventions:
- Layout (batch, heads, time, dim). A tile is taken for all batch entries and heads together.
- ``causal`` is aligned to the last key; tiles wholly in the future are left out, and only those that the
  diagonal crosses are masked. Queries before the first key see nothing: they are never touched, and stay
  zero in the result and in the gradient. Every other query sees key 0, so that its maximum is finite after
  its first tile and −inf is a safe fill.
- Half types are computed in float32 and rounded once, at the end. Only what is summed over tiles, and L, need it.
- A hidden key and its value have no effect, as long as neither q·k nor the product of v with g overflows.

Source: Dao, Fu, Ermon, Rudra & Ré, FlashAttention, 2022, arXiv:2205.14135, algorithms 1 and 4; loop order
and the single statistic L from Dao, FlashAttention-2, 2023, arXiv:2307.08691, algorithms 1 and 2. Online
maximum: Milakov & Gimelshein, 2018, arXiv:1805.02867. Here both passes loop over queries outside and keys
inside; a GPU kernel turns the loops of the backward pass around, so that no two programs add to one place.

Costs O(queries · keys · head_dim) time, half of it when causal, and O((queries + keys) · head_dim) memory.
The backward pass makes five products for each tile where the forward pass makes two.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def flash_attention(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch heads keys head_dim"],
    v: Float[Tensor, "batch heads keys value_dim"],
    *,
    causal: bool = False,
    block_q: int,
    block_k: int,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Average ``v`` over the keys that each query may see, weighted by softmax(q·kᵀ/√head_dim).

    The work is done in tiles of ``block_q`` queries by ``block_k`` keys. Raises ValueError if the shapes
    do not fit or a block size is below 1.
    """
    sizes_agree = q.shape[:2] == k.shape[:2] == v.shape[:2] and k.shape[2] == v.shape[2]
    if not (sizes_agree and q.shape[3] == k.shape[3]):
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit")
    if block_q < 1 or block_k < 1:
        raise ValueError(f"block_q {block_q} and block_k {block_k} must be at least 1")
    # Query i sees key j where j ≤ i + reach.
    reach = k.shape[2] - q.shape[2] if causal else k.shape[2]
    return _Flash.apply(q, k, v, reach, block_q, block_k)


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, reach: int, block_q: int, block_k: int) -> Tensor:
        out = q.new_zeros(*q.shape[:3], v.shape[3])
        lse = _widened(q.new_zeros(*q.shape[:3], 1))
        scale = q.shape[3] ** -0.5
        for rows in _query_blocks(q.shape[2], reach, block_q):
            q_i = _widened(q[:, :, rows]) * scale
            top = torch.full_like(lse[:, :, rows], -torch.inf)  # m
            total = torch.zeros_like(top)  # ℓ
            mixed = _widened(torch.zeros_like(out[:, :, rows]))  # a
            for columns in _key_blocks(rows, k.shape[2], reach, block_k):
                scores = _scores(q_i, _widened(k[:, :, columns]), rows, columns, reach)
                raised = torch.maximum(top, scores.amax(dim=-1, keepdim=True))
                weights, keep = (scores - raised).exp(), (top - raised).exp()
                total = keep * total + weights.sum(dim=-1, keepdim=True)
                mixed = keep * mixed + weights @ _widened(v[:, :, columns])
                top = raised
            out[:, :, rows] = mixed / total
            lse[:, :, rows] = top + total.log()
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.reach, ctx.block_q, ctx.block_k = reach, block_q, block_k
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        scale = q.shape[3] ** -0.5
        # Each place sums over many tiles: in float32 for half types, as everything else.
        dq, dk, dv = (torch.zeros_like(_widened(x)) for x in (q, k, v))
        for rows in _query_blocks(q.shape[2], ctx.reach, ctx.block_q):
            q_i, g_i = _widened(q[:, :, rows]) * scale, _widened(grad[:, :, rows])
            delta = (g_i * _widened(out[:, :, rows])).sum(dim=-1, keepdim=True)
            for columns in _key_blocks(rows, k.shape[2], ctx.reach, ctx.block_k):
                k_j, v_j = _widened(k[:, :, columns]), _widened(v[:, :, columns])
                weights = (_scores(q_i, k_j, rows, columns, ctx.reach) - lse[:, :, rows]).exp()
                dscores = weights * (g_i @ v_j.mT - delta)
                dv[:, :, columns] += weights.mT @ g_i
                dk[:, :, columns] += dscores.mT @ q_i  # which carries the scale already
                dq[:, :, rows] += dscores @ k_j * scale
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _query_blocks(queries: int, reach: int, block_q: int) -> Iterator[slice]:
    """The blocks of queries, from the first query that sees a key."""
    for start in range(max(-reach, 0), queries, block_q):
        yield slice(start, min(start + block_q, queries))


def _key_blocks(rows: slice, keys: int, reach: int, block_k: int) -> Iterator[slice]:
    """The blocks of keys, up to the last key that one of these queries sees."""
    seen = min(rows.stop + reach, keys)
    for start in range(0, seen, block_k):
        yield slice(start, min(start + block_k, seen))


def _scores(q_i: Tensor, k_j: Tensor, rows: slice, columns: slice, reach: int) -> Tensor:
    """The scores of a tile, (batch, heads, ≤ block_q, ≤ block_k): −inf where the key is in the future."""
    scores = q_i @ k_j.mT
    if columns.stop - 1 <= rows.start + reach:
        return scores  # the first query sees the last key, so that nothing is hidden
    future = scores.new_ones(scores.shape[2:], dtype=torch.bool).triu(rows.start + reach - columns.start + 1)
    return scores.masked_fill(future, -torch.inf)


def _widened(x: Tensor) -> Tensor:
    """Half types as float32, since their sums lose every term below ε · the running total."""
    return x.float() if x.itemsize < 4 else x
