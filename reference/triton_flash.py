r"""FlashAttention as Triton kernels: forward, backward, grouped heads, sliding window.

    O_i = Σ_j 2^(s_ij − L_i) v_j        s_ij = scale · log₂e · q_i·k_j,  L_i = log₂ Σ_j 2^(s_ij)

The algorithm is that of ``flash_attention``; see there for the running maximum and the gradients. What a GPU
changes:

- Powers of two. The hardware computes 2^x, so that log₂e is folded into the scale, and a score costs one
  multiply-add before its exponential: s·c − m. That needs the largest product to give the largest score, so
  a negative scale changes the sign of q instead.
- One program for one block of queries of one head. It walks over the blocks of keys with its sums in
  registers, and nothing of them passes through memory. Blocks that every query of the block sees in full
  are walked in a loop of their own, without any mask; only those that the diagonal, the start of the window or
  the end of the keys crosses are masked, and those beyond are not visited.
- The backward pass is three kernels. δ = rowsum(dO∘O); then dK and dV, with a program for each block of keys
  that walks over the queries that see it; then dQ, with a program for each block of queries. Each sum has one
  owner: no atomics, hence the same bits every time, for 7 products in place of 5. A head of keys also walks
  over all heads of queries that share it, so that its gradient is summed in registers as well.

Conventions:
- Layout (batch, heads, time, dim) with any strides. Head h of q uses head h // (heads / kv_heads) of k and v.
- ``causal`` is aligned to the last key. ``window`` keeps the last so many keys, a query's own included.
- A query that sees no key gives zeros and passes no gradient: its L is +∞, so that 2^(s − L) is 0.
- Products take inputs in their own dtype and sum in float32 (full float32, not TF32); weights are rounded to
  the dtype of v for the second product, as in FlashAttention-2.

Sources: Dao, FlashAttention-2, 2023, arXiv:2307.08691; Tillet, Kung & Cox, Triton, MAPL 2019,
doi:10.1145/3315508.3329973; Ainslie et al., GQA, 2023, arXiv:2305.13245; Beltagy, Peters & Cohan, Longformer,
2020, arXiv:2004.05150, §3.1 (sliding window).

Costs O(queries · keys · head_dim) time over what is visible, and O(queries) memory beside the result.
"""

import math
import os
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

LOG2_E = math.log2(math.e)


def triton_flash(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    v: Float[Tensor, "batch kv_heads keys head_dim"],
    *,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
) -> Float[Tensor, "batch heads queries head_dim"]:
    """Average ``v`` over the keys that each query may see, weighted by softmax(scale · q·kᵀ).

    ``scale`` is 1/√head_dim unless given. With ``window``, which needs ``causal``, a query sees at most its
    last ``window`` keys. Raises ValueError for shapes, dtypes or arguments that do not fit.
    """
    _check(q, k, v, causal, window)
    return _Flash.apply(q, k, v, causal, q.shape[3] ** -0.5 if scale is None else scale, window)


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, window: int | None
    ) -> Tensor:
        out = q.new_empty(q.shape)
        lse = q.new_empty(q.shape[:3], dtype=torch.float32)
        ctx.options = {
            "queries": q.shape[2], "keys": k.shape[2], "group": q.shape[1] // k.shape[1], "window": window or 0,
            "scale": scale, "D": q.shape[3], "CAUSAL": causal, "WINDOWED": window is not None,
        }  # fmt: skip
        blocks = _blocks("short" if causal and k.shape[2] <= 4096 else "forward", q)
        strides = *q.stride(), *k.stride(), *v.stride(), *out.stride()
        with torch.cuda.device_of(q):
            _forward[_grid(q, blocks["BLOCK_M"])](
                q, k, v, out, lse, *strides, **ctx.options | {"scale": abs(scale) * LOG2_E}, **blocks,
                NEGATIVE=scale < 0, TAIL=causal or k.shape[2] % blocks["BLOCK_N"] != 0,
            )  # fmt: skip
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        delta = torch.empty_like(lse)
        dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
        inputs = q, k, v, grad, lse, delta
        strides = *q.stride(), *k.stride(), *v.stride(), *grad.stride()
        for_keys, for_queries = _blocks("keys", q), _blocks("queries", q)
        with torch.cuda.device_of(q):
            _row_sums[_grid(q, 64)](
                out, grad, delta, *out.stride(), *grad.stride(), q.shape[2], D=q.shape[3], BLOCK_M=64
            )
            _keys_backward[_grid(k, for_keys["BLOCK_N"])](
                *inputs, dk, dv, *strides, *dk.stride(), **ctx.options, **for_keys
            )
            _queries_backward[_grid(q, for_queries["BLOCK_M"])](
                *inputs, dq, *strides, *dq.stride(), **ctx.options, **for_queries
            )
        return dq, dk, dv, None, None, None


def _grid(x: Tensor, block: int) -> tuple[int, int, int]:
    """One program for each block of the sequence, each head, each batch entry."""
    return triton.cdiv(x.shape[2], block), x.shape[1], x.shape[0]


def _blocks(kernel: str, q: Tensor) -> dict[str, int]:
    """How many queries and keys a program takes at a time, in how many warps and stages.

    The figures won sweeps on an H100 at 1,024 and 4,096 tokens; "short" is the forward pass under causal, where
    the diagonal is much of the work and large blocks waste it. A table is used instead of autotuning, which
    would measure anew for each dtype, width and kind of mask, to gain a few percent at most.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        chosen = 16, 16, 1, 1
    elif q.itemsize == 4:
        chosen = 32, 32, 4, 1  # float32 products run without tensor cores
    elif torch.cuda.get_device_capability(q.device) < (9, 0):
        chosen = 64, 32, 4, 2  # fits any shared memory
    else:
        narrow = q.shape[3] <= 64
        chosen = {
            "forward": (128, 64, 8, 3) if narrow else (128, 128, 8, 3),
            "short": (64, 64, 4, 3),
            "keys": (64, 64, 4, 2),
            "queries": (128, 64, 4, 3) if narrow else (128, 64, 8, 3),
        }[kernel]
    return dict(zip(("BLOCK_M", "BLOCK_N", "num_warps", "num_stages"), chosen, strict=True))


def _check(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None) -> None:
    fit = k.shape == v.shape and q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3]
    if not fit or q.shape[1] % k.shape[1]:
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit")
    if q.shape[3] not in (16, 32, 64, 128):
        raise ValueError(f"head_dim must be 16, 32, 64 or 128, not {q.shape[3]}")
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"dtypes must be one of float32, float16, bfloat16: {q.dtype}, {k.dtype}, {v.dtype}")
    if window is not None and (window < 1 or not causal):
        raise ValueError(f"window is {window} with causal={causal}; it must be at least 1, and needs causal")


# --- kernels -------------------------------------------------------------------------------------


@triton.jit
def _forward(
    Q, K, V, Out, Lse,
    q_batch, q_head, q_time, q_dim, k_batch, k_head, k_time, k_dim,
    v_batch, v_head, v_time, v_dim, o_batch, o_head, o_time, o_dim,
    queries, keys, group, window, scale,
    D: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, NEGATIVE: tl.constexpr, TAIL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """O and L of one block of queries. ``scale`` is |scale| · log₂ e."""
    # The last blocks see the most keys: they start first, so that none of them is left for the end.
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M if CAUSAL else tl.program_id(0) * BLOCK_M
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    Q += batch * q_batch + head * q_head
    K += batch * k_batch + head // group * k_head
    V += batch * v_batch + head // group * v_head
    Out += batch * o_batch + head * o_head
    Lse += (batch * tl.num_programs(1) + head) * queries

    rows, dims = first + tl.arange(0, BLOCK_M), tl.arange(0, D)
    inside = rows < queries
    q = tl.load(Q + rows[:, None] * q_time + dims[None, :] * q_dim, mask=inside[:, None], other=0.0)
    if NEGATIVE:
        q = -q
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, D], tl.float32)

    reach = keys - queries
    lo, full_lo, full_hi, hi = _seen_keys(first, keys, reach, window, CAUSAL, WINDOWED, BLOCK_M, BLOCK_N)
    if WINDOWED:
        top, total, mixed = _attend(
            top, total, mixed, q, K, V, k_time, k_dim, v_time, v_dim, lo, tl.minimum(full_lo, hi),
            rows, keys, reach, window, scale, True, D, CAUSAL, WINDOWED, BLOCK_N,
        )  # fmt: skip
    top, total, mixed = _attend(
        top, total, mixed, q, K, V, k_time, k_dim, v_time, v_dim, full_lo, full_hi,
        rows, keys, reach, window, scale, False, D, CAUSAL, WINDOWED, BLOCK_N,
    )  # fmt: skip
    if TAIL:
        top, total, mixed = _attend(
            top, total, mixed, q, K, V, k_time, k_dim, v_time, v_dim, full_hi, hi,
            rows, keys, reach, window, scale, True, D, CAUSAL, WINDOWED, BLOCK_N,
        )  # fmt: skip

    sighted = total > 0
    total = tl.where(sighted, total, 1.0)
    mixed = mixed / total[:, None]
    out = Out + rows[:, None] * o_time + dims[None, :] * o_dim
    tl.store(out, mixed.to(Out.dtype.element_ty), mask=inside[:, None])
    tl.store(Lse + rows, tl.where(sighted, top + tl.log2(total), float("inf")), mask=inside)


@triton.jit
def _attend(
    top, total, mixed, q, K, V, k_time, k_dim, v_time, v_dim, lo, hi,
    rows, keys, reach, window, scale,
    MASKED: tl.constexpr, D: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Let a block of queries meet the keys from ``lo`` to ``hi``: the running maximum, sum and average."""
    dims = tl.arange(0, D)
    for start in range(lo, hi, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        k = K + dims[:, None] * k_dim + columns[None, :] * k_time
        v = V + columns[:, None] * v_time + dims[None, :] * v_dim
        if MASKED:
            scores = (
                tl.dot(q, tl.load(k, mask=columns[None, :] < keys, other=0.0), input_precision="ieee") * scale
            )
            visible = _visible(rows[:, None], columns[None, :], keys, reach, window, CAUSAL, WINDOWED)
            scores = tl.where(visible, scores, float("-inf"))
            raised = tl.maximum(top, tl.max(scores, 1))
            # A query that has seen nothing yet must not subtract −∞ from −∞.
            shift = tl.where(raised == float("-inf"), 0.0, raised)
            weights = tl.exp2(scores - shift[:, None])
            keep = tl.exp2(top - shift)
            values = tl.load(v, mask=columns[:, None] < keys, other=0.0)
        else:
            products = tl.dot(q, tl.load(k), input_precision="ieee")
            raised = tl.maximum(top, tl.max(products, 1) * scale)
            weights = tl.exp2(products * scale - raised[:, None])
            keep = tl.exp2(top - raised)
            values = tl.load(v)
        total = total * keep + tl.sum(weights, 1)
        mixed = tl.dot(weights.to(values.dtype), values, mixed * keep[:, None], input_precision="ieee")
        top = raised
    return top, total, mixed


@triton.jit
def _seen_keys(
    first, keys, reach, window,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The keys from lo to hi are seen by some query of a block, those from full_lo to full_hi by all of them.

    All but hi are multiples of BLOCK_N."""
    lo, full_lo, full_hi, hi = 0, 0, keys // BLOCK_N * BLOCK_N, keys
    if CAUSAL:
        full_hi = tl.minimum(full_hi, tl.maximum(first + reach + 1, 0) // BLOCK_N * BLOCK_N)
        hi = tl.minimum(hi, tl.maximum(first + BLOCK_M + reach, 0))
    if WINDOWED:
        lo = tl.maximum(first + reach + 1 - window, 0) // BLOCK_N * BLOCK_N
        full_lo = tl.cdiv(tl.maximum(first + BLOCK_M + reach - window, 0), BLOCK_N) * BLOCK_N
        full_hi = tl.maximum(full_lo, full_hi)
    return lo, full_lo, full_hi, hi


@triton.jit
def _visible(rows, columns, keys, reach, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr):
    visible = columns < keys
    if CAUSAL:
        visible = visible & (columns <= rows + reach)
    if WINDOWED:
        visible = visible & (columns > rows + reach - window)
    return visible


@triton.jit
def _row_sums(
    Out, Grad, Delta, o_batch, o_head, o_time, o_dim, g_batch, g_head, g_time, g_dim, queries,
    D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """δ = Σ dO∘O over each row."""
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows, dims = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, D)
    inside = (rows < queries)[:, None]
    Out += batch * o_batch + head * o_head
    Grad += batch * g_batch + head * g_head
    out = tl.load(Out + rows[:, None] * o_time + dims[None, :] * o_dim, mask=inside, other=0.0)
    grad = tl.load(Grad + rows[:, None] * g_time + dims[None, :] * g_dim, mask=inside, other=0.0)
    delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
    tl.store(Delta + (batch * tl.num_programs(1) + head) * queries + rows, delta, mask=rows < queries)


@triton.jit
def _keys_backward(
    Q, K, V, Grad, Lse, Delta, DK, DV,
    q_batch, q_head, q_time, q_dim, k_batch, k_head, k_time, k_dim,
    v_batch, v_head, v_time, v_dim, g_batch, g_head, g_time, g_dim, d_batch, d_head, d_time, d_dim,
    queries, keys, group, window, scale,
    D: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dK and dV of one block of keys, over all heads of queries that share it."""
    first = tl.program_id(0) * BLOCK_N
    kv_head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    columns, dims = first + tl.arange(0, BLOCK_N), tl.arange(0, D)
    inside = (columns < keys)[:, None]
    K += batch * k_batch + kv_head * k_head
    V += batch * v_batch + kv_head * v_head
    k = tl.load(K + columns[:, None] * k_time + dims[None, :] * k_dim, mask=inside, other=0.0)
    v = tl.load(V + columns[:, None] * v_time + dims[None, :] * v_dim, mask=inside, other=0.0)
    dk = tl.zeros([BLOCK_N, D], tl.float32)
    dv = tl.zeros([BLOCK_N, D], tl.float32)

    # Which queries see some of these keys, and which see them all.
    reach = keys - queries
    lo, full_lo, full_hi, hi = 0, 0, queries // BLOCK_M * BLOCK_M, queries
    if CAUSAL:
        lo = tl.maximum(first - reach, 0) // BLOCK_M * BLOCK_M
        full_lo = tl.cdiv(tl.maximum(first + BLOCK_N - 1 - reach, 0), BLOCK_M) * BLOCK_M
    if WINDOWED:
        full_hi = tl.minimum(full_hi, tl.maximum(first + window - reach, 0) // BLOCK_M * BLOCK_M)
        hi = tl.minimum(hi, tl.maximum(first + BLOCK_N - 1 + window - reach, 0))
    full_hi = tl.maximum(full_lo, full_hi)

    for head in range(kv_head * group, (kv_head + 1) * group):
        q = Q + batch * q_batch + head * q_head
        grad = Grad + batch * g_batch + head * g_head
        line = (batch * tl.num_programs(1) * group + head) * queries
        if CAUSAL:
            dk, dv = _pull_keys(
                dk, dv, k, v, q, grad, Lse + line, Delta + line, q_time, q_dim, g_time, g_dim, lo, tl.minimum(full_lo, hi),
                columns, queries, keys, reach, window, scale, True, D, CAUSAL, WINDOWED, BLOCK_M,
            )  # fmt: skip
        dk, dv = _pull_keys(
            dk, dv, k, v, q, grad, Lse + line, Delta + line, q_time, q_dim, g_time, g_dim, full_lo, full_hi,
            columns, queries, keys, reach, window, scale, False, D, CAUSAL, WINDOWED, BLOCK_M,
        )  # fmt: skip
        dk, dv = _pull_keys(
            dk, dv, k, v, q, grad, Lse + line, Delta + line, q_time, q_dim, g_time, g_dim, full_hi, hi,
            columns, queries, keys, reach, window, scale, True, D, CAUSAL, WINDOWED, BLOCK_M,
        )  # fmt: skip

    place = batch * d_batch + kv_head * d_head + columns[:, None] * d_time + dims[None, :] * d_dim
    tl.store(DK + place, (dk * scale).to(DK.dtype.element_ty), mask=inside)
    tl.store(DV + place, dv.to(DV.dtype.element_ty), mask=inside)


@triton.jit
def _pull_keys(
    dk, dv, k, v, Q, Grad, Lse, Delta, q_time, q_dim, g_time, g_dim, lo, hi,
    columns, queries, keys, reach, window, scale,
    MASKED: tl.constexpr, D: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Add to dK (without its scale) and dV what the queries from ``lo`` to ``hi`` pull. Tiles are transposed."""
    dims = tl.arange(0, D)
    for start in range(lo, hi, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        q = Q + dims[:, None] * q_dim + rows[None, :] * q_time
        grad = Grad + rows[:, None] * g_time + dims[None, :] * g_dim
        if MASKED:
            inside = rows < queries
            q = tl.load(q, mask=inside[None, :], other=0.0)
            grad = tl.load(grad, mask=inside[:, None], other=0.0)
            lse = tl.load(Lse + rows, mask=inside, other=float("inf"))
            delta = tl.load(Delta + rows, mask=inside, other=0.0)
        else:
            q, grad, lse, delta = tl.load(q), tl.load(grad), tl.load(Lse + rows), tl.load(Delta + rows)
        scores = tl.dot(k, q, input_precision="ieee") * (scale * 1.4426950408889634)
        weights = tl.exp2(scores - lse[None, :])
        pull = weights * (tl.dot(v, tl.trans(grad), input_precision="ieee") - delta[None, :])
        if MASKED:
            visible = _visible(rows[None, :], columns[:, None], keys, reach, window, CAUSAL, WINDOWED)
            weights, pull = tl.where(visible, weights, 0.0), tl.where(visible, pull, 0.0)
        dv = tl.dot(weights.to(grad.dtype), grad, dv, input_precision="ieee")
        dk = tl.dot(pull.to(q.dtype), tl.trans(q), dk, input_precision="ieee")
    return dk, dv


@triton.jit
def _queries_backward(
    Q, K, V, Grad, Lse, Delta, DQ,
    q_batch, q_head, q_time, q_dim, k_batch, k_head, k_time, k_dim,
    v_batch, v_head, v_time, v_dim, g_batch, g_head, g_time, g_dim, d_batch, d_head, d_time, d_dim,
    queries, keys, group, window, scale,
    D: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dQ of one block of queries."""
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M if CAUSAL else tl.program_id(0) * BLOCK_M
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    K += batch * k_batch + head // group * k_head
    V += batch * v_batch + head // group * v_head
    Q += batch * q_batch + head * q_head
    Grad += batch * g_batch + head * g_head
    line = (batch * tl.num_programs(1) + head) * queries

    rows, dims = first + tl.arange(0, BLOCK_M), tl.arange(0, D)
    inside = rows < queries
    q = tl.load(Q + rows[:, None] * q_time + dims[None, :] * q_dim, mask=inside[:, None], other=0.0)
    grad = tl.load(Grad + rows[:, None] * g_time + dims[None, :] * g_dim, mask=inside[:, None], other=0.0)
    lse = tl.load(Lse + line + rows, mask=inside, other=float("inf"))
    delta = tl.load(Delta + line + rows, mask=inside, other=0.0)
    dq = tl.zeros([BLOCK_M, D], tl.float32)

    reach = keys - queries
    lo, full_lo, full_hi, hi = _seen_keys(first, keys, reach, window, CAUSAL, WINDOWED, BLOCK_M, BLOCK_N)
    if WINDOWED:
        dq = _pull_queries(
            dq, q, grad, lse, delta, K, V, k_time, k_dim, v_time, v_dim, lo, tl.minimum(full_lo, hi),
            rows, keys, reach, window, scale, True, D, CAUSAL, WINDOWED, BLOCK_N,
        )  # fmt: skip
    dq = _pull_queries(
        dq, q, grad, lse, delta, K, V, k_time, k_dim, v_time, v_dim, full_lo, full_hi,
        rows, keys, reach, window, scale, False, D, CAUSAL, WINDOWED, BLOCK_N,
    )  # fmt: skip
    dq = _pull_queries(
        dq, q, grad, lse, delta, K, V, k_time, k_dim, v_time, v_dim, full_hi, hi,
        rows, keys, reach, window, scale, True, D, CAUSAL, WINDOWED, BLOCK_N,
    )  # fmt: skip

    place = batch * d_batch + head * d_head + rows[:, None] * d_time + dims[None, :] * d_dim
    tl.store(DQ + place, (dq * scale).to(DQ.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _pull_queries(
    dq, q, grad, lse, delta, K, V, k_time, k_dim, v_time, v_dim, lo, hi,
    rows, keys, reach, window, scale,
    MASKED: tl.constexpr, D: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add to dQ (without its scale) what the keys from ``lo`` to ``hi`` pull."""
    dims = tl.arange(0, D)
    for start in range(lo, hi, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        k = K + dims[:, None] * k_dim + columns[None, :] * k_time
        v = V + dims[:, None] * v_dim + columns[None, :] * v_time
        if MASKED:
            inside = columns[None, :] < keys
            k, v = tl.load(k, mask=inside, other=0.0), tl.load(v, mask=inside, other=0.0)
        else:
            k, v = tl.load(k), tl.load(v)
        scores = tl.dot(q, k, input_precision="ieee") * (scale * 1.4426950408889634)
        pull = tl.exp2(scores - lse[:, None]) * (tl.dot(grad, v, input_precision="ieee") - delta[:, None])
        if MASKED:
            visible = _visible(rows[:, None], columns[None, :], keys, reach, window, CAUSAL, WINDOWED)
            pull = tl.where(visible, pull, 0.0)
        dq = tl.dot(pull.to(k.dtype), tl.trans(k), dq, input_precision="ieee")
    return dq
