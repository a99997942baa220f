"""An autograd.Function with its own backward pass, over batch and heads flattened into one."""

import torch


class Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, visible, scale):
        wide = [x.float() if x.dtype in (torch.bfloat16, torch.float16) else x for x in (q, k, v)]
        s = torch.bmm(wide[0], wide[1].transpose(1, 2)) * scale
        s[~visible] = -1e9
        p = torch.exp(s - torch.logsumexp(s, dim=-1, keepdim=True))
        p = p * visible
        ctx.save_for_backward(*wide, p)
        ctx.scale, ctx.dtype = scale, q.dtype
        return torch.bmm(p, wide[2]).to(q.dtype)

    @staticmethod
    def backward(ctx, grad):
        q, k, v, p = ctx.saved_tensors
        g = grad.to(p.dtype)
        dp = torch.bmm(g, v.transpose(1, 2))
        ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * ctx.scale
        dq, dk, dv = torch.bmm(ds, k), torch.bmm(ds.transpose(1, 2), q), torch.bmm(p.transpose(1, 2), g)
        return dq.to(ctx.dtype), dk.to(ctx.dtype), dv.to(ctx.dtype), None, None


def attention(q, k, v, *, mask=None, causal=False, scale=None):
    B, H, T_q, D = q.shape
    T_k, D_v = v.shape[2:]
    if tuple(k.shape) != (B, H, T_k, D) or tuple(v.shape[:2]) != (B, H):
        raise ValueError((q.shape, k.shape, v.shape))
    visible = torch.ones(B, H, T_q, T_k, dtype=torch.bool)
    if causal:
        visible = torch.tril(visible, T_k - T_q)
    if mask is not None:
        if mask.dtype != torch.bool or mask.ndim > 4:
            raise ValueError((mask.dtype, mask.shape))
        try:
            visible = visible & mask.expand_as(visible)
        except RuntimeError as error:
            raise ValueError(f"{mask.shape} does not expand to {visible.shape}") from error
    flat = [x.reshape(B * H, *x.shape[2:]) for x in (q, k, v, visible)]
    scale = D**-0.5 if scale is None else scale
    return Attend.apply(*flat, scale).reshape(B, H, T_q, D_v)
