"""Pairs as complex numbers: a turn is one multiplication."""

import torch


def rope_tables(length, head_dim, *, base=10000.0):
    if head_dim <= 0 or head_dim % 2 != 0:
        raise ValueError(f"head_dim must be positive and even, got {head_dim}")
    if length < 0:
        raise ValueError(f"length must not be negative, got {length}")
    if not base > 0:
        raise ValueError(f"base must be positive, got {base}")
    freqs = 1.0 / (base ** (torch.arange(0, head_dim, 2).float() / head_dim))
    freqs = torch.outer(torch.arange(length).float(), freqs)
    freqs_cis = torch.polar(torch.ones_like(freqs), freqs)
    return freqs_cis.real, freqs_cis.imag


def apply_rope(x, cos, sin, positions=None, *, interleaved=False):
    B, H, T, D = x.shape
    if cos.shape != sin.shape or cos.shape[1] * 2 != D:
        raise ValueError(f"tables {tuple(cos.shape)}, {tuple(sin.shape)} for x {tuple(x.shape)}")
    if positions is None:
        if cos.shape[0] < T:
            raise ValueError(f"{T} tokens, {cos.shape[0]} rows")
        positions = torch.arange(T, device=x.device)
    if positions.shape != (T,) and positions.shape != (B, T):
        raise ValueError(f"positions {tuple(positions.shape)} for x {tuple(x.shape)}")
    if positions.min() < 0 or positions.max() >= cos.shape[0]:
        raise ValueError(f"positions {positions}")
    turn = torch.complex(cos, sin)[positions]
    turn = turn.view(-1, 1, T, D // 2)
    wide = x if x.dtype == torch.float64 else x.float()
    if interleaved:
        z = torch.view_as_complex(wide.reshape(B, H, T, D // 2, 2).contiguous())
        return torch.view_as_real(z * turn).flatten(-2).to(x.dtype)
    z = torch.complex(wide[..., : D // 2].contiguous(), wide[..., D // 2 :].contiguous()) * turn
    return torch.cat((z.real, z.imag), dim=-1).type_as(x)
