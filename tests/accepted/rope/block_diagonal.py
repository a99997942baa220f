"""A head_dim × head_dim rotation matrix a position, multiplied with matmul; positions gathered by one-hot rows."""

import torch


def rope_tables(length, head_dim, *, base=10000.0):
    if head_dim % 2 or head_dim <= 0 or length < 0 or base <= 0:
        raise ValueError(f"length {length}, head_dim {head_dim}, base {base}")
    ratio = torch.full((head_dim // 2,), base ** (-2 / head_dim), dtype=torch.float64)
    theta = ratio.cumprod(0) / ratio
    angle = torch.remainder(torch.arange(length).unsqueeze(-1) * theta, 2 * torch.pi)
    return torch.cos(angle).float(), torch.sin(angle).float()


def apply_rope(x, cos, sin, positions=None, *, interleaved=False):
    time, head_dim = x.shape[2:]
    length, pairs = cos.shape
    if cos.shape != sin.shape or head_dim != 2 * pairs:
        raise ValueError(f"cos {cos.shape} and sin {sin.shape} for head_dim {head_dim}")
    if positions is None:
        positions = torch.arange(time)
    if positions.shape != x.shape[2:3] and positions.shape != x.shape[0:3:2]:
        raise ValueError(f"positions {positions.shape} for x {x.shape}")
    onehot = (positions.unsqueeze(-1) == torch.arange(length)).float()
    if (onehot.sum(-1) != 1).any():
        raise ValueError(f"positions {positions.tolist()} in tables of {length} rows")
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    c, s = ((onehot @ table).to(kind) for table in (cos, sin))
    if interleaved:
        first, second = torch.arange(0, head_dim, 2), torch.arange(1, head_dim, 2)
    else:
        first, second = torch.arange(pairs), torch.arange(pairs, head_dim)
    matrix = torch.zeros(*positions.shape, head_dim, head_dim, dtype=kind)
    matrix[..., first, first] = c
    matrix[..., second, second] = c
    matrix[..., first, second] = -s
    matrix[..., second, first] = s
    if positions.ndim == 2:
        matrix = matrix.unsqueeze(1)
    return (matrix @ x.to(kind).unsqueeze(-1)).squeeze(-1).to(x.dtype)
