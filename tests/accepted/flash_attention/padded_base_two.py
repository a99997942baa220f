"""Batch and heads flattened into one, sequences padded to whole blocks, powers of two with log2 e folded into the
scale, a large finite fill, and accumulation by baddbmm: as a kernel would have it."""

import torch
import torch.nn.functional as F

LOG2E = 1.4426950408889634


def whole(x, block):
    return F.pad(x, (0, 0, 0, -x.shape[1] % block))


class Tiles(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, shift, bq, bk):
        wide = torch.promote_types(q.dtype, torch.float32)
        N, T_q, D = q.shape
        T_k = k.shape[1]
        qp, kp, vp = whole(q, bq), whole(k, bk), whole(v, bk)
        out = torch.zeros(N, qp.shape[1], v.shape[2], dtype=q.dtype)
        stat = torch.zeros(N, qp.shape[1], dtype=wide)
        for i in range(0, qp.shape[1], bq):
            qi = qp[:, i : i + bq].to(wide) * (LOG2E / D**0.5)
            m = torch.full((N, bq, 1), -1e300 if wide == torch.float64 else -1e38, dtype=wide)
            l = torch.zeros_like(m)
            acc = torch.zeros(N, bq, v.shape[2], dtype=wide)
            for j in range(0, tiles_end(i, bq, shift, T_q, T_k), bk):
                hidden = hide(i, j, bq, bk, shift, T_k)
                s = torch.bmm(qi, kp[:, j : j + bk].to(wide).transpose(1, 2))
                s = s.masked_fill(hidden, -torch.inf)
                new = torch.maximum(m, s.amax(2, keepdim=True))
                p = torch.exp2(s - new)
                a = torch.exp2(m - new)
                l = l * a + p.sum(2, keepdim=True)
                acc = torch.baddbmm(acc * a, p, vp[:, j : j + bk].to(wide))
                m = new
            sighted = l > 0
            out[:, i : i + bq] = torch.where(sighted, acc / l, 0)
            stat[:, i : i + bq] = torch.where(sighted, m + torch.log2(l), 0)[..., 0]
        out, stat = out[:, :T_q], stat[:, :T_q]
        ctx.save_for_backward(q, k, v, out, stat)
        ctx.rest = shift, bq, bk
        return out

    @staticmethod
    @torch.no_grad()
    def backward(ctx, g):
        q, k, v, o, stat = ctx.saved_tensors
        shift, bq, bk = ctx.rest
        wide = stat.dtype
        T_q, T_k, c = q.shape[1], k.shape[1], q.shape[2] ** -0.5
        delta = torch.einsum("ntd,ntd->nt", g.to(wide), o.to(wide))
        qp, gp, kp, vp = whole(q, bq), whole(g, bq), whole(k, bk), whole(v, bk)
        stat, delta = whole(stat[..., None], bq), whole(delta[..., None], bq)
        dq, dk, dv = (
            torch.zeros_like(qp, dtype=wide),
            torch.zeros_like(kp, dtype=wide),
            torch.zeros_like(vp, dtype=wide),
        )
        for i in range(0, qp.shape[1], bq):
            qi, gi = qp[:, i : i + bq].to(wide), gp[:, i : i + bq].to(wide)
            for j in range(0, tiles_end(i, bq, shift, T_q, T_k), bk):
                kj, vj = kp[:, j : j + bk].to(wide), vp[:, j : j + bk].to(wide)
                s = torch.bmm(qi, kj.transpose(1, 2)) * (c * LOG2E)
                p = torch.exp2(
                    (s - stat[:, i : i + bq]).masked_fill(hide(i, j, bq, bk, shift, T_k), -torch.inf)
                )
                dv[:, j : j + bk].baddbmm_(p.transpose(1, 2), gi)
                ds = p.mul(torch.bmm(gi, vj.transpose(1, 2)).sub_(delta[:, i : i + bq])).mul_(c)
                dq[:, i : i + bq].baddbmm_(ds, kj)
                dk[:, j : j + bk].baddbmm_(ds.transpose(1, 2), qi)
        return dq[:, :T_q].to(q.dtype), dk[:, :T_k].to(q.dtype), dv[:, :T_k].to(q.dtype), None, None, None


def tiles_end(i, bq, shift, T_q, T_k):
    return T_k if shift is None else max(0, min(T_k, min(i + bq, T_q) + shift))


def hide(i, j, bq, bk, shift, T_k):
    columns = torch.arange(j, j + bk)
    hidden = columns[None, :] >= T_k
    return hidden if shift is None else hidden | (columns[None, :] > torch.arange(i, i + bq)[:, None] + shift)


def flash_attention(q, k, v, *, causal=False, block_q, block_k):
    B, H, T_q, D = q.shape
    T_k, D_v = v.shape[2:]
    if tuple(k.shape) != (B, H, T_k, D) or tuple(v.shape[:2]) != (B, H):
        raise ValueError((q.shape, k.shape, v.shape))
    if not (block_q >= 1 and block_k >= 1):
        raise ValueError((block_q, block_k))
    # No block needs to be longer than its sequence.
    block_q, block_k = min(block_q, T_q), min(block_k, T_k)
    flat = [x.flatten(0, 1) for x in (q, k, v)]
    return Tiles.apply(*flat, T_k - T_q if causal else None, block_q, block_k).reshape(B, H, T_q, D_v)
