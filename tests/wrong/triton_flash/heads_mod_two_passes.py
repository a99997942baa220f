"""mistake: heads-dealt-out

A program for each head, with two passes over the keys. The forward pass deals the heads of keys out in turn; the
backward pass has its own program for each head of keys, and shares them among neighbours.
"""

import torch
import triton
import triton.language as tl

FOREVER = 1 << 30


@triton.jit
def places(base, time, dim, start, D: tl.constexpr, N: tl.constexpr):
    return base + (start + tl.arange(0, N))[:, None] * time + tl.arange(0, D)[None, :] * dim


@triton.jit
def get(base, time, dim, T, start, D: tl.constexpr, N: tl.constexpr):
    there = (start + tl.arange(0, N) < T)[:, None]
    return tl.load(places(base, time, dim, start, D, N), mask=there, other=0.0)


@triton.jit
def put(value, base, time, dim, T, start, D: tl.constexpr, N: tl.constexpr):
    there = (start + tl.arange(0, N) < T)[:, None]
    tl.store(places(base, time, dim, start, D, N), value.to(base.dtype.element_ty), mask=there)


@triton.jit
def scored(q, k, i0, j0, T_q, T_k, reach, window, scale, M: tl.constexpr, N: tl.constexpr):
    i, j = i0 + tl.arange(0, M)[:, None], j0 + tl.arange(0, N)[None, :]
    seen = (i < T_q) & (j < T_k) & (j <= i + reach) & (j > i + reach - window)
    return tl.where(seen, tl.dot(q, tl.trans(k), input_precision="ieee") * scale, float("-inf"))


@triton.jit
def first_key(i0, reach, window, N: tl.constexpr):
    return tl.maximum(i0 + reach - window + 1, 0) // N * N


@triton.jit
def heads_forward(Q, K, V, O, L, qb, qh, qt, qd, kb, kh, kt, kd, vb, vh, vt, vd, ob, oh, ot, od,
                  H, group, T_q, T_k, reach, window, scale, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr):  # fmt: skip
    h, b = tl.program_id(0) % H, (tl.program_id(0) // H).to(tl.int64)
    Q += b * qb + h * qh
    K += b * kb + h % (H // group) * kh
    V += b * vb + h % (H // group) * vh
    O += b * ob + h * oh
    L += (b * H + h) * T_q
    for i0 in range(0, T_q, M):
        q = get(Q, qt, qd, T_q, i0, D, M)
        begin, end = first_key(i0, reach, window, N), tl.minimum(T_k, i0 + M + reach)
        top = tl.full((M,), float("-inf"), tl.float32)
        for j0 in range(begin, end, N):
            s = scored(q, get(K, kt, kd, T_k, j0, D, N), i0, j0, T_q, T_k, reach, window, scale, M, N)
            top = tl.maximum(top, tl.max(s, 1))
        top = tl.where(top == float("-inf"), 0.0, top)
        total = tl.zeros((M,), tl.float32)
        mean = tl.zeros((M, D), tl.float32)
        for j0 in range(begin, end, N):
            s = scored(q, get(K, kt, kd, T_k, j0, D, N), i0, j0, T_q, T_k, reach, window, scale, M, N)
            w = tl.exp(s - top[:, None])
            v = get(V, vt, vd, T_k, j0, D, N)
            total += tl.sum(w, 1)
            mean += tl.dot(w.to(v.dtype), v, input_precision="ieee")
        total = tl.where(total == 0.0, 1.0, total)
        put(mean / total[:, None], O, ot, od, T_q, i0, D, M)
        i = i0 + tl.arange(0, M)
        tl.store(L + i, top + tl.log(total), mask=i < T_q)


@triton.jit
def slopes(q, k, v, G, gt, gd, O, ot, od, L, i0, j0, T_q, T_k, reach, window, scale,
           D: tl.constexpr, M: tl.constexpr, N: tl.constexpr):  # fmt: skip
    """The gradient from above, the weights, and what the scores are due, of one tile."""
    i = i0 + tl.arange(0, M)
    g, o = get(G, gt, gd, T_q, i0, D, M), get(O, ot, od, T_q, i0, D, M)
    delta = tl.sum(g.to(tl.float32) * o.to(tl.float32), 1)
    s = scored(q, k, i0, j0, T_q, T_k, reach, window, scale, M, N)
    w = tl.exp(s - tl.load(L + i, mask=i < T_q, other=0.0)[:, None])
    return g, w, w * (tl.dot(g, tl.trans(v), input_precision="ieee") - delta[:, None])


@triton.jit
def heads_backward(Q, K, V, O, G, L, DQ, DK, DV, qb, qh, qt, qd, kb, kh, kt, kd, vb, vh, vt, vd, ob, oh, ot, od,
                   gb, gh, gt, gd, KV, group, T_q, T_k, reach, window, scale,
                   D: tl.constexpr, M: tl.constexpr, N: tl.constexpr):  # fmt: skip
    """All gradients of one head of keys and of the heads of queries that share it."""
    kv, b = tl.program_id(0) % KV, (tl.program_id(0) // KV).to(tl.int64)
    K += b * kb + kv * kh
    V += b * vb + kv * vh
    DK += (b * KV + kv) * T_k * D
    DV += (b * KV + kv) * T_k * D
    for j0 in range(0, T_k, N):
        k, v = get(K, kt, kd, T_k, j0, D, N), get(V, vt, vd, T_k, j0, D, N)
        dk = tl.zeros((N, D), tl.float32)
        dv = tl.zeros((N, D), tl.float32)
        begin = tl.maximum(j0 - reach, 0) // M * M
        end = tl.minimum(T_q, j0 + N - 1 - reach + window)
        for h in range(kv * group, kv * group + group):
            line = (b * KV * group + h) * T_q
            for i0 in range(begin, end, M):
                q = get(Q + b * qb + h * qh, qt, qd, T_q, i0, D, M)
                g, w, ds = slopes(q, k, v, G + b * gb + h * gh, gt, gd, O + b * ob + h * oh, ot, od, L + line,
                                  i0, j0, T_q, T_k, reach, window, scale, D, M, N)  # fmt: skip
                dv += tl.dot(tl.trans(w.to(g.dtype)), g, input_precision="ieee")
                dk += tl.dot(tl.trans(ds.to(q.dtype)), q, input_precision="ieee")
        put(dk * scale, DK, D, 1, T_k, j0, D, N)
        put(dv, DV, D, 1, T_k, j0, D, N)
    for h in range(kv * group, kv * group + group):
        line = (b * KV * group + h) * T_q
        for i0 in range(0, T_q, M):
            q = get(Q + b * qb + h * qh, qt, qd, T_q, i0, D, M)
            dq = tl.zeros((M, D), tl.float32)
            for j0 in range(first_key(i0, reach, window, N), tl.minimum(T_k, i0 + M + reach), N):
                k, v = get(K, kt, kd, T_k, j0, D, N), get(V, vt, vd, T_k, j0, D, N)
                g, w, ds = slopes(q, k, v, G + b * gb + h * gh, gt, gd, O + b * ob + h * oh, ot, od, L + line,
                                  i0, j0, T_q, T_k, reach, window, scale, D, M, N)  # fmt: skip
                dq += tl.dot(ds.to(k.dtype), k, input_precision="ieee")
            put(dq * scale, DQ + line * D, D, 1, T_q, i0, D, M)


class Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, numbers):
        (batch, heads, T_q, D), (_, kv_heads, T_k, _) = q.shape, k.shape
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = torch.empty(batch, heads, T_q, device=q.device)
        ctx.numbers = heads // kv_heads, T_q, T_k, *numbers, D
        strides = [n for x in (q, k, v, out) for n in x.stride()]
        heads_forward[(batch * heads,)](q, k, v, out, lse, *strides, heads, *ctx.numbers, M=16, N=32)
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, out, lse = ctx.saved_tensors
        found = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)]
        strides = [n for x in (q, k, v, out, grad) for n in x.stride()]
        heads_backward[(k.shape[0] * k.shape[1],)](
            q, k, v, out, grad, lse, *found, *strides, k.shape[1], *ctx.numbers, M=32, N=16
        )
        return *found, None


def triton_flash(q, k, v, *, causal=False, scale=None, window=None):
    if k.shape != v.shape or q.shape[::3] != k.shape[::3] or q.shape[1] % k.shape[1] != 0:
        raise ValueError("the shapes of q, k and v do not fit one another")
    if q.shape[3] not in [16, 32, 64, 128]:
        raise ValueError(f"no kernel for heads of {q.shape[3]}")
    if q.dtype not in [torch.float32, torch.float16, torch.bfloat16] or not q.dtype == k.dtype == v.dtype:
        raise ValueError("q, k and v must have one dtype of float32, float16 and bfloat16")
    if window is not None and not (causal and window >= 1):
        raise ValueError("a window must be 1 or more, and needs causal")
    reach = k.shape[2] - q.shape[2] if causal else k.shape[2]
    scale = 1 / q.shape[3] ** 0.5 if scale is None else float(scale)
    return Attention.apply(q, k, v, (reach, FOREVER if window is None else window, scale))
