"""mistake: dq-without-scale

Without a matrix product: each query is a loop of its own, in float64. Block sizes below 1 are not refused.
"""

import torch


def blocks(n, size):
    return [(a, min(a + size, n)) for a in range(0, n, size)]


def seen_by(i, T_q, T_k, causal):
    return max(0, i + 1 + T_k - T_q) if causal else T_k


class Slow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, causal, bq, bk):
        (B, H, T_q, D), T_k = q.shape, k.shape[2]
        out = torch.zeros(B, H, T_q, v.shape[3], dtype=torch.float64)
        lse = torch.full((B, H, T_q), float("inf"), dtype=torch.float64)
        for first, last in blocks(T_q, bq):
            for i in range(first, last):
                query = q[:, :, i, None].double() / D**0.5
                top = total = mixed = None
                for a, b in blocks(seen_by(i, T_q, T_k, causal), bk):
                    s = (query * k[:, :, a:b].double()).sum(-1)
                    high = s.amax(-1)
                    if top is not None:
                        high = torch.maximum(high, top)
                    w = (s - high[..., None]).exp()
                    part = (w[..., None] * v[:, :, a:b].double()).sum(2)
                    if top is None:
                        total, mixed = w.sum(-1), part
                    else:
                        shrink = (top - high).exp()
                        total, mixed = total * shrink + w.sum(-1), mixed * shrink[..., None] + part
                    top = high
                if top is not None:
                    out[:, :, i] = mixed / total[..., None]
                    lse[:, :, i] = top + total.log()
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.rest = causal, bk
        return out.type(q.dtype)

    @staticmethod
    def backward(ctx, g):
        q, k, v, out, lse = ctx.saved_tensors
        causal, bk = ctx.rest
        (_, _, T_q, D), T_k = q.shape, k.shape[2]
        dq, dk, dv = (torch.zeros(x.shape, dtype=torch.float64) for x in (q, k, v))
        for i in range(T_q):
            gi, qi = g[:, :, i, None].double(), q[:, :, i, None].double()
            inner = (gi[:, :, 0] * out[:, :, i]).sum(-1, keepdim=True)
            for a, b in blocks(seen_by(i, T_q, T_k, causal), bk):
                kj, vj = k[:, :, a:b].double(), v[:, :, a:b].double()
                w = ((qi * kj).sum(-1) / D**0.5 - lse[:, :, i, None]).exp()
                ds = w * ((gi * vj).sum(-1) - inner) / D**0.5
                dv[:, :, a:b] += w[..., None] * gi
                dq[:, :, i] += (ds[..., None] * kj).sum(2) * D**0.5
                dk[:, :, a:b] += ds[..., None] * qi
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def flash_attention(q, k, v, *, causal=False, block_q, block_k):
    if q.shape[:2] != k.shape[:2] or k.shape[:3] != v.shape[:3] or q.shape[-1] != k.shape[-1]:
        raise ValueError(f"{list(q.shape)} {list(k.shape)} {list(v.shape)}")
    return Slow.apply(q, k, v, causal, block_q, block_k)
