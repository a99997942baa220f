"""Keys in blocks of two with a running maximum and sum, in float32 at least; no T_q × T_k scores."""

import torch


def check(q, k, v, mask):
    for name, a, b in (("batch", q.shape[0], k.shape[0]), ("heads", q.shape[1], k.shape[1]),
                       ("head_dim", q.shape[3], k.shape[3]), ("keys", k.shape[2], v.shape[2]),
                       ("batch", k.shape[0], v.shape[0]), ("heads", k.shape[1], v.shape[1])):  # fmt: skip
        if a != b:
            raise ValueError(f"{name}: {a} and {b}")
    full = torch.Size([*q.shape[:3], k.shape[2]])
    if mask is not None:
        if mask.dtype != torch.bool:
            raise ValueError(f"mask of {mask.dtype}")
        try:
            fits = torch.broadcast_shapes(mask.shape, full) == full
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(f"mask {mask.shape} against {full}")
    return full


def attention(q, k, v, *, mask=None, causal=False, scale=None):
    full = check(q, k, v, mask)
    dtype = q.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    q, k, v = q.to(wide), k.to(wide), v.to(wide)
    scale = 1 / q.shape[3] ** 0.5 if scale is None else scale
    T_q, T_k = full[2:]
    mask = torch.ones(1, dtype=torch.bool) if mask is None else mask
    mask = mask.expand(full)
    rows = torch.arange(T_q)[:, None] + T_k - T_q
    top = torch.full((*full[:3], 1), -float("inf"), dtype=wide)
    total = torch.zeros_like(top)
    out = torch.zeros(*full[:3], v.shape[3], dtype=wide)
    for start in range(0, T_k, 2):
        end = min(start + 2, T_k)
        seen = mask[..., start:end]
        if causal:
            seen = seen & (torch.arange(start, end) <= rows)
        s = torch.matmul(q, k[:, :, start:end].transpose(2, 3)).mul(scale)
        s = torch.where(seen, s, -float("inf"))
        new = torch.maximum(top, s.detach().amax(-1, keepdim=True))
        safe = torch.where(new == -float("inf"), torch.zeros_like(new), new)
        p, keep = torch.exp(s - safe), torch.exp(top - safe)
        total = total * keep + p.sum(-1, keepdim=True)
        out = out * keep + p @ v[:, :, start:end]
        top = new
    return (out / torch.where(total == 0, torch.ones_like(total), total)).to(dtype)
