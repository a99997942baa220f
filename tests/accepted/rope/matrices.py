"""One 2 × 2 matrix a pair and position, applied by einsum; the layouts are permutations of channels."""

import torch
import torch.nn.functional as F


def rope_tables(length, head_dim, *, base=10000.0):
    if head_dim % 2 == 1 or head_dim < 2 or length < 0 or base <= 0:
        raise ValueError((length, head_dim, base))
    exponent = -torch.linspace(0, 1, head_dim // 2 + 1, dtype=torch.float32)[:-1]
    angle = torch.arange(length)[:, None] * torch.pow(torch.tensor(float(base)), exponent)[None, :]
    return torch.cos(angle), torch.sin(angle)


def apply_rope(x, cos, sin, positions=None, *, interleaved=False):
    (B, _, T, D), (L, P) = x.shape, cos.shape
    if sin.shape != (L, P) or D != 2 * P:
        raise ValueError(f"x {x.shape}, cos {cos.shape}, sin {sin.shape}")
    if positions is None:
        if L < T:
            raise ValueError(f"{T} positions in {L} rows")
        positions = torch.arange(T)
    elif positions.ndim not in (1, 2) or positions.shape != (B, T)[-positions.ndim :]:
        raise ValueError(f"positions {tuple(positions.shape)} do not fit {tuple(x.shape)}")
    if not bool(((positions >= 0) & (positions < L)).all()):
        raise ValueError(f"positions {positions.tolist()} not in [0, {L})")
    matrix = torch.stack((cos, -sin, sin, cos), dim=-1)  # (L, P, 4)
    matrix = F.embedding(positions.expand(B, T).long(), matrix.flatten(1)).reshape(B, T, P, 2, 2)
    order = torch.arange(D).reshape(P, 2) if interleaved else torch.arange(D).reshape(2, P).T
    pairs = x[..., order]  # (B, H, T, P, 2)
    turned = torch.einsum("btpij,bhtpj->bhtpi", matrix.to(x.dtype), pairs)
    return turned.flatten(-2)[..., order.flatten().argsort()]
