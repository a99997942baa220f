"""mistake: mask-instead-of-causal

causal makes a mask where there is none; a hand-written backward pass."""

import torch


def check(q, k, v, mask):
    B, H, T, D = q.shape
    S = k.shape[2]
    if tuple(k.shape) != (B, H, S, D) or tuple(v.shape[:3]) != (B, H, S):
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}")
    if mask is not None:
        if mask.dtype != torch.bool:
            raise ValueError(f"mask of {mask.dtype}")
        try:
            mask.expand(B, H, T, S)
        except RuntimeError as error:
            raise ValueError(f"mask {tuple(mask.shape)}") from error


class Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, seen, scale):
        wide = torch.promote_types(q.dtype, torch.float32)
        Q, K, V = q.to(wide), k.to(wide), v.to(wide)
        s = torch.where(seen, Q @ K.mT * scale, torch.finfo(wide).min)
        p = torch.where(seen, s.softmax(-1), 0)
        ctx.kept, ctx.scale, ctx.dtype = (Q, K, V, p), scale, q.dtype
        return (p @ V).to(q.dtype)

    @staticmethod
    def backward(ctx, g):
        Q, K, V, p = ctx.kept
        g = g.to(p.dtype)
        dp = g @ V.mT
        ds = ctx.scale * p * (dp - (dp * p).sum(-1, keepdim=True))
        return *(d.to(ctx.dtype) for d in (ds @ K, ds.mT @ Q, p.mT @ g)), None, None


def attention(q, k, v, *, mask=None, causal=False, scale=None):
    check(q, k, v, mask)
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
        mask = mask.tril(k.shape[2] - q.shape[2]) if causal else mask
    return Attend.apply(
        q, k, v, mask.expand(*q.shape[:3], k.shape[2]), q.shape[3] ** -0.5 if scale is None else scale
    )
