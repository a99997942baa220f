"""mistake: tables-handed-out-again

As one recalls it from Hugging Face, with a cache.
"""

from functools import lru_cache

import torch


@lru_cache
def rope_tables(length, head_dim, *, base=10000.0):
    if head_dim <= 0 or head_dim % 2 != 0:
        raise ValueError(f"head_dim must be positive and even (got {head_dim})")
    if length < 0 or base <= 0:
        raise ValueError(f"bad length {length} or base {base}")
    inv_freq = 1.0 / (base ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim))
    t = torch.arange(length, dtype=torch.int64).type_as(inv_freq)
    freqs = torch.outer(t, inv_freq)
    return freqs.cos(), freqs.sin()


def rotate_half(x):
    x1 = x[..., : x.shape[-1] // 2]
    x2 = x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def rotate_every_two(x):
    x1 = x[:, :, :, ::2]
    x2 = x[:, :, :, 1::2]
    return torch.stack((-x2, x1), dim=-1).flatten(-2)


def apply_rope(x, cos, sin, positions=None, *, interleaved=False):
    bsz, _, seq, dim = x.shape
    if cos.shape != sin.shape:
        raise ValueError(f"cos {list(cos.shape)} != sin {list(sin.shape)}")
    if dim % 2 or cos.size(-1) != dim // 2:
        raise ValueError(f"tables with {cos.size(-1)} columns do not fit head_dim {dim}")
    if positions is None:
        if seq > cos.size(0):
            raise ValueError(f"sequence of {seq} is longer than tables of {cos.size(0)}")
        position_ids = torch.arange(seq, device=x.device).unsqueeze(0)
    elif positions.dim() == 1 and positions.size(0) == seq:
        position_ids = positions.unsqueeze(0)
    elif positions.dim() == 2 and positions.shape == (bsz, seq):
        position_ids = positions
    else:
        raise ValueError(f"positions {list(positions.shape)} do not match x {list(x.shape)}")
    if position_ids.numel() > 0:
        lo, hi = position_ids.min().item(), position_ids.max().item()
        if lo < 0 or hi >= cos.size(0):
            raise ValueError(f"positions {lo}..{hi} are not within 0..{cos.size(0) - 1}")
    cos, sin = cos[position_ids], sin[position_ids]
    if interleaved:
        cos, sin = cos.repeat_interleave(2, dim=-1), sin.repeat_interleave(2, dim=-1)
        rot = rotate_every_two
    else:
        cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)
        rot = rotate_half
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    dtype = x.dtype
    x = x if dtype == torch.float64 else x.float()
    return ((x * cos) + (rot(x) * sin)).to(dtype)
