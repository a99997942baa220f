"""Batch and heads in one dimension, baddbmm_ into buffers, and the log-sum-exp as a second output of the Function."""

import torch
from torch.autograd.function import once_differentiable


class _F(torch.autograd.Function):
    """(batch · heads) in one dimension; bmm and baddbmm into buffers."""

    @staticmethod
    def forward(q, k, v, causal, bq, bk):
        n, t, d = q.shape
        s, e = v.shape[1:]
        f = torch.float32 if q.element_size() < 4 else q.dtype
        out = q.new_zeros(n, t, e)
        lse = torch.zeros(n, t, 1, dtype=f, device=q.device)
        for i0 in range(0, t, bq):
            i1 = min(i0 + bq, t)
            qi = q[:, i0:i1].to(f) * d**-0.5
            m = torch.full((n, i1 - i0, 1), torch.finfo(f).min, dtype=f, device=q.device)
            l = torch.zeros_like(m)
            acc = torch.zeros(n, i1 - i0, e, dtype=f, device=q.device)
            for j0 in range(0, s, bk):
                j1 = min(j0 + bk, s)
                if causal and j0 > i1 - 1 + s - t:
                    break
                x = torch.bmm(qi, k[:, j0:j1].to(f).transpose(1, 2))
                keep = None
                if causal and j1 - 1 > i0 + s - t:
                    keep = (
                        torch.arange(j0, j1, device=q.device) - torch.arange(i0, i1, device=q.device)[:, None]
                    ) <= s - t
                    x = torch.where(keep, x, torch.finfo(f).min)
                m2 = torch.maximum(m, x.amax(-1, True))
                p = torch.exp(x - m2)
                if keep is not None:
                    p = p * keep
                c = torch.exp(m - m2)
                l.mul_(c).add_(p.sum(-1, keepdim=True))
                acc.mul_(c)
                acc.baddbmm_(p, v[:, j0:j1].to(f))
                m = m2
            none = l == 0
            out[:, i0:i1] = acc.div_(l.masked_fill(none, 1)).to(q.dtype)
            lse[:, i0:i1] = (m + l.masked_fill(none, 1).log()).masked_fill(none, 0)
        return out, lse

    @staticmethod
    def setup_context(ctx, inputs, output):
        q, k, v, ctx.causal, ctx.bq, ctx.bk = inputs
        ctx.save_for_backward(q, k, v, *output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx, g, _):
        q, k, v, out, lse = ctx.saved_tensors
        f, causal, bq, bk, d, t, s = lse.dtype, ctx.causal, ctx.bq, ctx.bk, q.shape[2], q.shape[1], k.shape[1]
        dq, dk, dv = (torch.zeros(x.shape, dtype=f, device=x.device) for x in (q, k, v))
        for i0 in range(0, t, bq):
            i1 = min(i0 + bq, t)
            qi, gi = q[:, i0:i1].to(f), g[:, i0:i1].to(f)
            delta = torch.sum(gi * out[:, i0:i1].to(f), -1, keepdim=True)
            for j0 in range(0, s, bk):
                j1 = min(j0 + bk, s)
                if causal and j0 > i1 - 1 + s - t:
                    break
                kj, vj = k[:, j0:j1].to(f), v[:, j0:j1].to(f)
                p = torch.baddbmm(lse[:, i0:i1], qi, kj.transpose(1, 2), beta=-1, alpha=d**-0.5).exp_()
                if causal and j1 - 1 > i0 + s - t:
                    keep = (
                        torch.arange(j0, j1, device=q.device) - torch.arange(i0, i1, device=q.device)[:, None]
                    ) <= s - t
                    p.masked_fill_(~keep, 0)
                dv[:, j0:j1].baddbmm_(p.transpose(1, 2), gi)
                ds = torch.bmm(gi, vj.transpose(1, 2)).sub_(delta).mul_(p)
                dq[:, i0:i1].baddbmm_(ds, kj, alpha=d**-0.5)
                dk[:, j0:j1].baddbmm_(ds.transpose(1, 2), qi, alpha=d**-0.5)
        return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype), None, None, None


def flash_attention(q, k, v, *, causal=False, block_q, block_k):
    b, h, t, d = q.shape
    s, e = k.shape[2], v.shape[3]
    if k.shape != (b, h, s, d) or v.shape != (b, h, s, e):
        raise ValueError(f"q{tuple(q.shape)} k{tuple(k.shape)} v{tuple(v.shape)}")
    if block_q <= 0 or block_k <= 0:
        raise ValueError(f"block_q={block_q}, block_k={block_k}")
    o, _ = _F.apply(
        q.reshape(b * h, t, d), k.reshape(b * h, s, d), v.reshape(b * h, s, e), bool(causal), block_q, block_k
    )
    return o.view(b, h, t, e)
