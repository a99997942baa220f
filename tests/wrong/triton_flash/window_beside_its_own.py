"""mistake: window-off-by-one

The window is widened by one in Python, for the query's own key; and nothing is refused.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def place(base, s0, s1, s2, s3, b, h, t, T, D: tl.constexpr):
    """Pointers to rows t of one head, and which of them exist."""
    d = tl.arange(0, D)
    return base + b.to(tl.int64) * s0 + h * s1 + t[:, None] * s2 + d[None, :] * s3, (t < T)[:, None]


@triton.jit
def may_see(i, j, T_q, T_k, reach, window):
    return (i < T_q) & (j < T_k) & (j <= i + reach) & (j > i + reach - window)


@triton.jit
def forward_kernel(q, q0, q1, q2, q3, k, k0, k1, k2, k3, v, v0, v1, v2, v3, o, o0, o1, o2, o3, lse, H, group,
                   T_q, T_k, reach, window, factor, D: tl.constexpr, B: tl.constexpr):  # fmt: skip
    blocks = tl.cdiv(T_q, B)
    pid = tl.program_id(0)
    block, h, b = pid % blocks, pid // blocks % H, pid // blocks // H
    i = block * B + tl.arange(0, B)
    at, exists = place(q, q0, q1, q2, q3, b, h, i, T_q, D)
    query = tl.load(at, mask=exists, other=0.0)
    query = (query.to(tl.float32) * factor).to(query.dtype)
    m = tl.full([B], float("-inf"), tl.float32)
    l = tl.full([B], 0.0, tl.float32)
    acc = tl.full([B, D], 0.0, tl.float32)
    start = tl.maximum(block * B + reach - window + 1, 0)
    while start < tl.minimum(T_k, block * B + B + reach):
        j = start + tl.arange(0, B)
        at, exists = place(k, k0, k1, k2, k3, b, h // group, j, T_k, D)
        key = tl.load(at, mask=exists, other=0.0)
        at, exists = place(v, v0, v1, v2, v3, b, h // group, j, T_k, D)
        value = tl.load(at, mask=exists, other=0.0)
        s = tl.dot(query, key.T, input_precision="ieee")
        s = tl.where(may_see(i[:, None], j[None, :], T_q, T_k, reach, window), s, float("-inf"))
        new = tl.maximum(m, tl.max(s, 1))
        calm = tl.where(new > float("-inf"), new, 0.0)
        p, a = tl.exp2(s - calm[:, None]), tl.exp2(m - calm)
        acc = tl.dot(p.to(value.dtype), value, acc=acc * a[:, None], input_precision="ieee")
        l = l * a + tl.sum(p, 1)
        m = new
        start += B
    seen = l > 0
    l = tl.where(seen, l, 1.0)
    at, exists = place(o, o0, o1, o2, o3, b, h, i, T_q, D)
    tl.store(at, (acc / l[:, None]).to(o.dtype.element_ty), mask=exists)
    tl.store(lse + (b * H + h) * T_q + i, tl.where(seen, m + tl.log2(l), 0.0), mask=i < T_q)


@triton.jit
def backward_kernel(q, q0, q1, q2, q3, k, k0, k1, k2, k3, v, v0, v1, v2, v3, g, g0, g1, g2, g3, lse, delta,
                    dq, dk, dv, H, group, T_q, T_k, reach, window, factor, scale,
                    D: tl.constexpr, B: tl.constexpr):  # fmt: skip
    pid = tl.program_id(0)
    blocks = tl.cdiv(tl.maximum(T_q, T_k), B)
    block, h, b = pid % blocks, pid // blocks % H, pid // blocks // H
    mine = block * B + tl.arange(0, B)
    line = (b * H + h) * T_q
    # dQ of my queries
    at, exists = place(q, q0, q1, q2, q3, b, h, mine, T_q, D)
    query = tl.load(at, mask=exists, other=0.0)
    scaled = (query.to(tl.float32) * factor).to(query.dtype)
    at, exists = place(g, g0, g1, g2, g3, b, h, mine, T_q, D)
    grad = tl.load(at, mask=exists, other=0.0)
    stat = tl.load(lse + line + mine, mask=mine < T_q, other=0.0)[:, None]
    inner = tl.load(delta + line + mine, mask=mine < T_q, other=0.0)[:, None]
    total = tl.zeros([B, D], tl.float32)
    begin, end = tl.maximum(block * B + reach - window + 1, 0), tl.minimum(T_k, block * B + B + reach)
    for start in range(begin, tl.where(block * B < T_q, end, begin), B):
        j = start + tl.arange(0, B)
        at, exists = place(k, k0, k1, k2, k3, b, h // group, j, T_k, D)
        key = tl.load(at, mask=exists, other=0.0)
        at, exists = place(v, v0, v1, v2, v3, b, h // group, j, T_k, D)
        value = tl.load(at, mask=exists, other=0.0)
        ok = may_see(mine[:, None], j[None, :], T_q, T_k, reach, window)
        p = tl.exp2(tl.where(ok, tl.dot(scaled, key.T, input_precision="ieee") - stat, float("-inf")))
        ds = tl.where(ok, p * (tl.dot(grad, value.T, input_precision="ieee") - inner), 0.0)
        total += tl.dot(ds.to(key.dtype), key, input_precision="ieee")
    d = tl.arange(0, D)[None, :]
    tl.store(
        dq + (line + mine)[:, None] * D + d, (total * scale).to(dq.dtype.element_ty), mask=mine[:, None] < T_q
    )
    # dK and dV of my keys
    at, exists = place(k, k0, k1, k2, k3, b, h // group, mine, T_k, D)
    key = tl.load(at, mask=exists, other=0.0)
    at, exists = place(v, v0, v1, v2, v3, b, h // group, mine, T_k, D)
    value = tl.load(at, mask=exists, other=0.0)
    sum_k, sum_v = tl.zeros([B, D], tl.float32), tl.zeros([B, D], tl.float32)
    begin, end = tl.maximum(block * B - reach, 0), tl.minimum(T_q, block * B + B - 1 - reach + window)
    for start in range(begin, tl.where(block * B < T_k, end, begin), B):
        i = start + tl.arange(0, B)
        at, exists = place(q, q0, q1, q2, q3, b, h, i, T_q, D)
        query = tl.load(at, mask=exists, other=0.0)
        scaled = (query.to(tl.float32) * factor).to(query.dtype)
        at, exists = place(g, g0, g1, g2, g3, b, h, i, T_q, D)
        grad = tl.load(at, mask=exists, other=0.0)
        stat = tl.load(lse + line + i, mask=i < T_q, other=0.0)[:, None]
        inner = tl.load(delta + line + i, mask=i < T_q, other=0.0)[:, None]
        ok = may_see(i[:, None], mine[None, :], T_q, T_k, reach, window)
        p = tl.exp2(tl.where(ok, tl.dot(scaled, key.T, input_precision="ieee") - stat, float("-inf")))
        ds = tl.where(ok, p * (tl.dot(grad, value.T, input_precision="ieee") - inner), 0.0)
        sum_v += tl.dot(p.to(grad.dtype).T, grad, input_precision="ieee")
        sum_k += tl.dot(ds.to(query.dtype).T, query, input_precision="ieee")
    own = ((b * H + h) * T_k + mine)[:, None] * D + d
    tl.store(dk + own, sum_k * scale, mask=mine[:, None] < T_k)
    tl.store(dv + own, sum_v, mask=mine[:, None] < T_k)


def parts(*tensors):
    return [piece for x in tensors for piece in (x, *x.stride())]


class Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, causal, scale, window):
        B, H, T_q, D = q.shape
        T_k = k.shape[2]
        out, lse = q.new_empty(B, H, T_q, D), q.new_empty(B, H, T_q, dtype=torch.float32)
        ctx.scale = scale
        reach = T_k - T_q if causal else T_k
        ctx.rest = (
            H,
            H // k.shape[1],
            T_q,
            T_k,
            reach,
            4 * (T_q + T_k) if window is None else window + 1,
            scale * 1.4426950408889634,
        )
        forward_kernel[(triton.cdiv(T_q, 16) * H * B,)](*parts(q, k, v, out), lse, *ctx.rest, D, 16)
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx, g):
        q, k, v, out, lse = ctx.saved_tensors
        B, H, T_q, D = q.shape
        KV, T_k = k.shape[1], k.shape[2]
        delta = (
            torch.mul(g, out, out=None).float().sum(-1)
            if q.dtype == torch.float32
            else (g.float() * out).sum(-1)
        )
        dq = q.new_empty(B, H, T_q, D)
        dk, dv = (torch.empty(B, H, T_k, D, dtype=torch.float32, device=q.device) for _ in range(2))
        grid = (triton.cdiv(max(T_q, T_k), 16) * H * B,)
        backward_kernel[grid](*parts(q, k, v, g), lse, delta, dq, dk, dv, *ctx.rest, ctx.scale, D, 16)
        dk, dv = (x.unflatten(1, (KV, H // KV)).sum(2).to(q.dtype) for x in (dk, dv))
        return dq, dk, dv, None, None, None


def triton_flash(q, k, v, *, causal=False, scale=None, window=None):
    return Flash.apply(q, k, v, causal, q.shape[3] ** -0.5 if scale is None else scale, window)
