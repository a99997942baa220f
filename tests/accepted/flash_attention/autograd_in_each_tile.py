"""The backward pass lets autograd differentiate each tile on its own, with the normaliser as a leaf; the forward
pass takes two passes over the keys, the first for the log-sum-exp alone."""

import torch


def spans(length, size):
    return [range(start, min(start + size, length)) for start in range(0, length, size)]


def logits(q, k, rows, cols, reach):
    s = q[..., rows.start : rows.stop, :] @ k[..., cols.start : cols.stop, :].mT / q.shape[-1] ** 0.5
    future = torch.tensor([[c > r + reach for c in cols] for r in rows])
    return s.masked_fill(future, float("-inf"))


class TwoPass(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, reach, bq, bk):
        wide = [x.float() if x.dtype in (torch.half, torch.bfloat16) else x for x in (q, k, v)]
        out = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=wide[0].dtype)
        lse = torch.zeros(*q.shape[:-1], 1, dtype=wide[0].dtype)
        for rows in spans(q.shape[-2], bq):
            lines = slice(rows.start, rows.stop)
            cols = [c for c in spans(k.shape[-2], bk) if c.start <= rows[-1] + reach]
            if not cols:
                continue
            log = torch.full_like(lse[..., lines, :], float("-inf"))
            for c in cols:
                log = torch.logaddexp(log, logits(*wide[:2], rows, c, reach).logsumexp(-1, keepdim=True))
            log = log.nan_to_num(neginf=0.0)
            lse[..., lines, :] = log
            for c in cols:
                out[..., lines, :] += (logits(*wide[:2], rows, c, reach) - log).exp() @ wide[2][
                    ..., c.start : c.stop, :
                ]
        ctx.save_for_backward(q, k, v, lse)
        ctx.rest = reach, bq, bk
        return out.to(q.dtype)

    @staticmethod
    def backward(ctx, grad):
        *given, lse = ctx.saved_tensors
        reach, bq, bk = ctx.rest
        wide = [x.float() if x.dtype in (torch.half, torch.bfloat16) else x for x in (*given, grad)]
        sums = [torch.zeros_like(x) for x in wide[:3]]
        for rows in spans(wide[0].shape[-2], bq):
            lines = slice(rows.start, rows.stop)
            q_i, log, g = wide[0][..., lines, :], lse[..., lines, :], wide[3][..., lines, :]
            cols = [c for c in spans(wide[1].shape[-2], bk) if c.start <= rows[-1] + reach]
            pulled = torch.zeros_like(log)
            for c in cols:
                part = slice(c.start, c.stop)
                leaves = [
                    x.detach().requires_grad_()
                    for x in (q_i, wide[1][..., part, :], wide[2][..., part, :], log)
                ]
                with torch.enable_grad():
                    local = range(0, len(rows)), range(0, len(c)), rows.start + reach - c.start
                    p = (logits(leaves[0], leaves[1], *local) - leaves[3]).exp()
                    mixed = (p @ leaves[2] * g).sum()
                dq, dk, dv, dlog = torch.autograd.grad(mixed, leaves)
                sums[0][..., lines, :] += dq
                sums[1][..., part, :] += dk
                sums[2][..., part, :] += dv
                pulled += dlog
            for c in cols:  # the log-sum-exp depends on q and k too: d lse = Σ p ds
                part = slice(c.start, c.stop)
                p = (logits(*wide[:2], rows, c, reach) - log).exp() * pulled / wide[0].shape[-1] ** 0.5
                sums[0][..., lines, :] += p @ wide[1][..., part, :]
                sums[1][..., part, :] += p.mT @ q_i
        return *(s.to(x.dtype) for s, x in zip(sums, given, strict=True)), None, None, None


def flash_attention(q, k, v, *, causal=False, block_q, block_k):
    if block_q < 1 or block_k < 1:
        raise ValueError(f"a block of {block_q} or {block_k}")
    fits = q.shape[:2] + q.shape[3:] == k.shape[:2] + k.shape[3:] and k.shape[:3] == v.shape[:3]
    if not fits:
        raise ValueError(f"shapes {q.shape}, {k.shape}, {v.shape}")
    reach = k.shape[2] - q.shape[2] if causal else k.shape[2]
    return TwoPass.apply(q, k, v, reach, block_q, block_k)
