"""Each tile gives its own softmax and log-sum-exp, and two such are merged by logaddexp. The backward pass goes
over the tiles twice, as two GPU kernels do: queries outside for dq, keys outside for dk and dv."""

import torch

HALF = {torch.bfloat16, torch.float16}


class Function(torch.autograd.Function):
    @staticmethod
    def forward(q, k, v, causal, block_q, block_k):
        outs, lses = [], []
        for i in range(0, q.shape[2], block_q):
            state = None
            for j in range(0, k.shape[2], block_k):
                s = scores(q, k, i, j, block_q, block_k, causal)
                if s is None:
                    break
                lse = torch.logsumexp(s, -1, keepdim=True)
                calm = lse.masked_fill(lse.isinf(), 0)
                part = (torch.exp(s - calm) @ up(v[:, :, j : j + block_k]), lse)
                state = part if state is None else merge(state, part)
            rows = q[:, :, i : i + block_q]
            if state is None:
                state = (
                    up(rows.new_zeros(*rows.shape[:3], v.shape[3])),
                    up(rows.new_full((*rows.shape[:3], 1), -torch.inf)),
                )
            outs.append(state[0].to(q.dtype))
            lses.append(state[1])
        return torch.cat(outs, 2), torch.cat(lses, 2)

    @staticmethod
    def setup_context(ctx, inputs, output):
        q, k, v, ctx.causal, ctx.block_q, ctx.block_k = inputs
        ctx.save_for_backward(q, k, v, *output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx, g, _):
        q, k, v, o, lse = ctx.saved_tensors
        bq, bk = ctx.block_q, ctx.block_k
        scale = q.shape[3] ** -0.5
        lse = lse.masked_fill(lse.isinf(), 0)
        delta = torch.cat(
            [
                (up(a) * up(b)).sum(-1, keepdim=True)
                for a, b in zip(g.split(bq, 2), o.split(bq, 2), strict=True)
            ],
            2,
        )

        def tile(i, j):
            s = scores(q, k, i, j, bq, bk, ctx.causal)
            if s is None:
                return None
            p = torch.exp(s - lse[:, :, i : i + bq])
            dp = up(g[:, :, i : i + bq]) @ up(v[:, :, j : j + bk]).transpose(-1, -2)
            return p, p * (dp - delta[:, :, i : i + bq]) * scale

        dq, dk, dv = [], [], []
        for i in range(0, q.shape[2], bq):
            total = torch.zeros_like(up(q[:, :, i : i + bq]))
            for j in range(0, k.shape[2], bk):
                pair = tile(i, j)
                if pair is None:
                    break
                total += pair[1] @ up(k[:, :, j : j + bk])
            dq.append(total.to(q.dtype))
        for j in range(0, k.shape[2], bk):
            tk, tv = torch.zeros_like(up(k[:, :, j : j + bk])), torch.zeros_like(up(v[:, :, j : j + bk]))
            for i in reversed(range(0, q.shape[2], bq)):
                pair = tile(i, j)
                if pair is None:
                    break
                tv += pair[0].transpose(-1, -2) @ up(g[:, :, i : i + bq])
                tk += pair[1].transpose(-1, -2) @ up(q[:, :, i : i + bq])
            dk.append(tk.to(k.dtype))
            dv.append(tv.to(v.dtype))
        return torch.cat(dq, 2), torch.cat(dk, 2), torch.cat(dv, 2), None, None, None


def up(x):
    return x.to(torch.float32) if x.dtype in HALF else x


def scores(q, k, i, j, bq, bk, causal):
    a, b = up(q[:, :, i : i + bq]), up(k[:, :, j : j + bk])
    last = torch.arange(i, i + a.shape[2]) + k.shape[2] - q.shape[2]
    if causal and last[-1] < j:
        return None
    s = torch.einsum("bhqd,bhkd->bhqk", a, b) * q.shape[3] ** -0.5
    if causal:
        s = torch.where(torch.arange(j, j + b.shape[2]) <= last.unsqueeze(1), s, -torch.inf)
    return s


def merge(one, other):
    lse = torch.logaddexp(one[1], other[1])
    calm = lse.masked_fill(lse.isinf(), 0)
    return one[0] * torch.exp(one[1] - calm) + other[0] * torch.exp(other[1] - calm), lse


def flash_attention(q, k, v, *, causal=False, block_q, block_k):
    for name, a, b in (("batch", q.shape[0], k.shape[0]), ("heads", q.shape[1], k.shape[1]),
                       ("head_dim", q.shape[3], k.shape[3]), ("keys", k.shape[2], v.shape[2]),
                       ("batch", k.shape[0], v.shape[0]), ("heads", k.shape[1], v.shape[1])):  # fmt: skip
        if a != b:
            raise ValueError(f"{name}: {a} and {b}")
    if block_q <= 0 or block_k <= 0:
        raise ValueError(f"{block_q=} {block_k=}")
    return Function.apply(q, k, v, causal, block_q, block_k)[0]
