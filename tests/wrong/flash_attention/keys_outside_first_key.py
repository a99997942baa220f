"""mistake: aligned-to-the-first-key

One head after the other, blocks of keys outside. Position i of q is position i of k.
"""

import math

import torch


def check(q, k, v, block_q, block_k):
    B, H, T_q, D = q.shape
    if k.shape != (B, H, k.shape[2], D) or v.shape[:3] != k.shape[:3]:
        raise ValueError(f"{q.shape}, {k.shape}, {v.shape}")
    if min(block_q, block_k) <= 0:
        raise ValueError(f"blocks {block_q} and {block_k}")


def tiles(T_q, T_k, block_q, block_k, causal):
    for j0 in range(0, T_k, block_k):
        j1 = min(T_k, j0 + block_k)
        for i0 in range(0, T_q, block_q):
            i1 = min(T_q, i0 + block_q)
            if causal and i1 - 1 < j0:
                continue
            mask = None
            if causal:
                mask = torch.arange(j0, j1)[None] > torch.arange(i0, i1)[:, None]
            yield slice(i0, i1), slice(j0, j1), mask


def forward_head(q, k, v, bq, bk, causal):
    T_q, T_k = len(q), len(k)
    m = q.new_full((T_q,), -math.inf)
    l = q.new_zeros(T_q)
    o = q.new_zeros(T_q, v.shape[1])
    for i, j, mask in tiles(T_q, T_k, bq, bk, causal):
        s = q[i] @ k[j].t() / math.sqrt(q.shape[1])
        if mask is not None:
            s = s.masked_fill(mask, -math.inf)
        m_new = torch.maximum(m[i], s.max(1).values)
        safe = torch.where(m_new == -math.inf, 0.0, m_new)
        p = torch.exp(s - safe[:, None])
        alpha = torch.exp(m[i] - safe)
        l_new = alpha * l[i] + p.sum(1)
        divisor = torch.where(l_new == 0, 1.0, l_new)
        o[i] = (o[i] * (l[i] * alpha)[:, None] + p @ v[j]) / divisor[:, None]
        m[i], l[i] = m_new, l_new
    return o, m, l


def backward_head(q, k, v, o, m, l, g, bq, bk, causal):
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    d = (g * o).sum(1)
    m, l = torch.where(l == 0, 0.0, m), torch.where(l == 0, 1.0, l)
    for i, j, mask in tiles(len(q), len(k), bq, bk, causal):
        s = q[i] @ k[j].t() / math.sqrt(q.shape[1])
        if mask is not None:
            s = s.masked_fill(mask, -math.inf)
        p = torch.exp(s - m[i, None]) / l[i, None]
        dv[j] += p.t() @ g[i]
        ds = p * (g[i] @ v[j].t() - d[i, None]) / math.sqrt(q.shape[1])
        dq[i] += ds @ k[j]
        dk[j] += ds.t() @ q[i]
    return dq, dk, dv


class FlashOne(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, bq, bk, causal):
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        o = torch.empty(*q.shape[:3], v.shape[3], dtype=wide)
        m = torch.empty(*q.shape[:3], dtype=wide)
        l = torch.empty(*q.shape[:3], dtype=wide)
        for b in range(q.shape[0]):
            for h in range(q.shape[1]):
                parts = (x[b, h].to(wide) for x in (q, k, v))
                o[b, h], m[b, h], l[b, h] = forward_head(*parts, bq, bk, causal)
        ctx.save_for_backward(q, k, v, o, m, l)
        ctx.rest = wide, bq, bk, causal
        return o.to(q.dtype, copy=True)

    @staticmethod
    def backward(ctx, g):
        q, k, v, o, m, l = ctx.saved_tensors
        wide, bq, bk, causal = ctx.rest
        found = [torch.zeros_like(x) for x in (q, k, v)]
        for b in range(q.shape[0]):
            for h in range(q.shape[1]):
                parts = (x[b, h].to(wide) for x in (q, k, v, o, m, l, g))
                for whole, part in zip(found, backward_head(*parts, bq, bk, causal), strict=True):
                    whole[b, h] = part
        return *found, None, None, None


def flash_attention(q, k, v, *, causal=False, block_q, block_k):
    check(q, k, v, block_q, block_k)
    return FlashOne.apply(q, k, v, block_q, block_k, causal)
