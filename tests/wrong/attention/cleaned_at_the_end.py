"""mistake: nan-cleaned-from-the-result

baddbmm over batch and heads together; −inf where hidden, and nan_to_num at the very end."""

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


def attention(q, k, v, *, mask=None, causal=False, scale=None):
    check(q, k, v, mask)
    B, H, T, D = q.shape
    S, E = v.shape[2:]
    wide = torch.promote_types(q.dtype, torch.float32)
    flat = [x.reshape(B * H, x.shape[2], x.shape[3]).to(wide) for x in (q, k, v)]
    scale = D**-0.5 if scale is None else scale
    scores = torch.bmm(flat[0], flat[1].transpose(1, 2)).mul(scale).view(B, H, T, S)
    if causal:
        scores = scores.masked_fill(torch.ones(T, S).triu(S - T + 1) == 1, float("-inf"))
    if mask is not None:
        scores = scores.masked_fill(mask.logical_not(), float("-inf"))
    out = torch.bmm(scores.softmax(-1).view(B * H, T, S), flat[2]).view(B, H, T, E)
    return out.nan_to_num(nan=0.0).to(q.dtype)
