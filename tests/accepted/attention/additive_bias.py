"""A float bias of 0 and finfo.min added to the scores in float64, rows without keys zeroed afterwards."""

import torch


def attention(q, k, v, *, mask=None, causal=False, scale=None):
    lead = q.shape[:2]
    if lead != k.shape[:2] or lead != v.shape[:2] or q.shape[3] != k.shape[3] or k.shape[2] != v.shape[2]:
        raise ValueError(f"q {q.shape} k {k.shape} v {v.shape}")
    shape = (*lead, q.shape[2], k.shape[2])
    allowed = torch.zeros(shape, dtype=torch.bool).logical_not_()
    if mask is not None:
        if not (isinstance(mask, torch.Tensor) and mask.dtype == torch.bool):
            raise ValueError(f"mask must be boolean: {mask}")
        try:
            joined = torch.broadcast_shapes(mask.shape, shape)
        except RuntimeError:
            joined = None
        if joined != torch.Size(shape):
            raise ValueError(f"mask {mask.shape}, scores {shape}")
        allowed &= mask
    if causal:
        for i in range(shape[2]):
            allowed[:, :, i, max(i + 1 + shape[3] - shape[2], 0) :] = False
    bias = torch.zeros(shape, dtype=torch.float64)
    bias[~allowed] = torch.finfo(torch.float64).min
    if scale is None:
        scale = float(torch.rsqrt(torch.tensor(float(q.shape[3]), dtype=torch.float64)))
    scores = (q.double() @ k.double().swapaxes(-1, -2)) * scale + bias
    out = torch.softmax(scores, dim=-1) @ v.double()
    out = out * allowed.any(-1)[..., None]
    return out.to(dtype=q.dtype)
