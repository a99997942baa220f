"""Row by row, with a dot product for the sum of squares, in float64 throughout."""

import torch


def rmsnorm(x, weight, *, eps=1e-6):
    if weight.ndim != 1 or len(weight) != x.shape[-1]:
        raise ValueError(f"{weight.shape=} {x.shape=}")
    out = []
    for row in x.reshape(-1, x.shape[-1]).double().unbind(0):
        out.append(row / (row.dot(row) / len(row) + eps) ** 0.5 * weight.double())
    return (torch.stack(out) if out else x).reshape(x.shape).to(x.dtype)
