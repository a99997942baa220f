"""As on a GPU: products of half types are taken, and rounded, in half precision; only the exponents and the sums
over tiles are float32. All heads of a batch entry at once; a gradient that nobody wants is not returned."""

import torch


def sum_dtype(x):
    return torch.float32 if x.element_size() == 2 else x.dtype


class Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, causal, tile):
        rows, stats = [], []
        for qs, i in pieces(q, tile[0]):
            wide = sum_dtype(q)
            acc = torch.zeros(*qs.shape[:-1], v.shape[-1], dtype=wide)
            l = torch.zeros(qs.shape[:-1], dtype=wide)
            m = torch.full(qs.shape[:-1], torch.finfo(wide).min, dtype=wide)
            for ks, j in pieces(k, tile[1]):
                vs = v.narrow(2, j, ks.shape[2])
                s, visible = tile_scores(qs, ks, i, j, q, k, causal)
                if s is None:
                    break
                top = torch.max(m, s.amax(-1))
                p = torch.exp(s - top[..., None]) * visible
                old = torch.exp(m - top)
                l, m = l * old + p.sum(-1), top
                acc = acc * old[..., None] + torch.matmul(p.to(q.dtype), vs).to(wide)
            blind = l == 0
            rows.append((acc / l.masked_fill(blind, 1)[..., None]).to(q.dtype))
            stats.append((m + l.log()).masked_fill(blind, 0))
        out = torch.cat(rows, dim=2)
        ctx.save_for_backward(q, k, v, out, torch.cat(stats, dim=2))
        ctx.causal, ctx.tile = causal, tile
        return out

    @staticmethod
    def backward(ctx, g):
        q, k, v, o, stat = ctx.saved_tensors
        wide = sum_dtype(q)
        dq, dk, dv = (torch.zeros(x.shape, dtype=wide) for x in (q, k, v))
        for qs, i in pieces(q, ctx.tile[0]):
            n = qs.shape[2]
            gs = g.narrow(2, i, n)
            delta = (gs.to(wide) * o.narrow(2, i, n).to(wide)).sum(-1, keepdim=True)
            for ks, j in pieces(k, ctx.tile[1]):
                s, visible = tile_scores(qs, ks, i, j, q, k, ctx.causal)
                if s is None:
                    break
                p = (
                    torch.exp(
                        s.clamp(max=stat.narrow(2, i, n)[..., None] + 1) - stat.narrow(2, i, n)[..., None]
                    )
                    * visible
                )
                dp = gs.to(wide) @ v.narrow(2, j, ks.shape[2]).to(wide).transpose(2, 3)
                ds = p * (dp - delta) / q.shape[3] ** 0.5
                dv.narrow(2, j, ks.shape[2]).add_(p.transpose(2, 3) @ gs.to(wide))
                dk.narrow(2, j, ks.shape[2]).add_(ds.transpose(2, 3) @ qs.to(wide))
                dq.narrow(2, i, n).add_(ds @ ks.to(wide))
        found = [
            d.to(q.dtype) if needed else None
            for d, needed in zip((dq, dk, dv), ctx.needs_input_grad, strict=False)
        ]
        return *found, None, None


def pieces(x, size):
    start = 0
    for piece in torch.split(x, size, dim=2):
        yield piece, start
        start += piece.shape[2]


def tile_scores(qs, ks, i, j, q, k, causal):
    limit = torch.arange(i, i + qs.shape[2])[:, None] + (k.shape[2] - q.shape[2] if causal else k.shape[2])
    if limit.max() < j:
        return None, None
    visible = torch.arange(j, j + ks.shape[2]) <= limit
    s = torch.matmul(qs, ks.transpose(2, 3)).to(sum_dtype(q)) / q.shape[3] ** 0.5
    return s.masked_fill(~visible, torch.finfo(s.dtype).min), visible


def flash_attention(q, k, v, *, causal=False, block_q, block_k):
    if (
        not (q.shape[:2] == k.shape[:2] == v.shape[:2])
        or q.shape[3] != k.shape[3]
        or k.shape[2] != v.shape[2]
    ):
        raise ValueError(f"q {q.shape} k {k.shape} v {v.shape}")
    if block_q < 1 or block_k < 1:
        raise ValueError(f"{block_q}, {block_k}")
    return Attention.apply(q, k, v, causal, (block_q, block_k))
