"""mistake: the-past-is-overwritten

What the ring held is not copied before the chunk is written over it; float64 needs no conversion."""

import copy
from typing import Optional

import torch
from torch import nn


class CacheFull(Exception):
    pass


class KVCache(nn.Module):
    ring = False

    def __init__(
        self, batch, n_kv_heads, max_len, head_dim, *, dtype: Optional[torch.dtype] = None, device=None
    ):
        super().__init__()
        if not (batch >= 1 and n_kv_heads >= 1 and max_len >= 1 and head_dim >= 1):
            raise ValueError(f"got sizes {batch}, {n_kv_heads}, {max_len}, {head_dim}")
        shape = (2 * batch * n_kv_heads, max_len, head_dim)
        self.register_buffer("memory", torch.empty(shape, dtype=dtype, device=device))
        self.batch, self.heads, self.max_len, self.dim = batch, n_kv_heads, max_len, head_dim
        self.length = 0

    def verify(self, k, v, q=None):
        want = (self.batch, self.heads, k.shape[2] if k.ndim == 4 else None, self.dim)
        for x in (k, v):
            if tuple(x.shape) != want:
                raise ValueError(f"expected {want}, got {tuple(x.shape)}")
        if q is not None:
            ok = q.ndim == 4 and tuple(q.shape[:1]) + tuple(q.shape[2:]) == (want[0], want[2], want[3])
            if not ok or want[2] == 0 or q.shape[1] % self.heads or q.shape[1] < self.heads:
                raise ValueError(f"q of {tuple(q.shape)} for {want}")
        if not self.ring and self.length + k.shape[2] > self.max_len:
            raise CacheFull(f"room for {self.max_len - self.length}, got {k.shape[2]}")

    @torch.no_grad()
    def append(self, k, v):
        self.verify(k, v)
        n, size = k.shape[2], self.memory.shape[1]
        tail = slice(max(n - size, 0), n)
        both = torch.stack((k[:, :, tail], v[:, :, tail])).flatten(0, 2)
        at = (self.length + torch.arange(n)[tail]).remainder(size).to(both.device)
        self.memory.index_copy_(1, at, both.to(self.memory.dtype))
        self.length += n

    def view(self):
        held = self.memory[:, : self.length].unflatten(0, (2, self.batch, self.heads))
        return held[0], held[1]

    def clone(self):
        return copy.deepcopy(self)

    def reset(self):
        self.memory.fill_(float("nan"))
        self.length = 0


class WindowKVCache(KVCache):
    ring = True

    def __init__(self, batch, n_kv_heads, window, head_dim, *, dtype=None, device=None):
        super().__init__(batch, n_kv_heads, window, head_dim, dtype=dtype, device=device)
        self.window = window
        del self.max_len

    def view(self):
        if self.length > self.window:
            turned = self.memory.roll(-(self.length % self.window), 1)
            held = turned.unflatten(0, (2, self.batch, self.heads))
            return held[0], held[1]
        return super().view()


def attend_with_cache(q, k, v, cache, *, scale=None):
    cache.verify(k, v, q)
    old = [x.double() for x in cache.view()]
    cache.append(k, v)
    keys, values = (torch.cat((past, new.detach().double()), dim=-2) for past, new in zip(old, (k, v)))
    B, H, n, D = q.shape
    grouped = q.double().reshape(B, cache.heads, H // cache.heads, n, D)
    logits = grouped @ keys[:, :, None].transpose(-1, -2)
    logits = logits / D**0.5 if scale is None else logits * scale
    T = keys.shape[2]
    behind = torch.arange(T - n, T).unsqueeze(1) - torch.arange(T).unsqueeze(0)
    hidden = behind < 0
    if cache.ring:
        hidden = hidden | (behind >= cache.window)
    logits = torch.where(hidden, -torch.inf, logits)
    weights = (logits - logits.logsumexp(-1, keepdim=True)).exp()
    return (weights @ values[:, :, None]).reshape(B, H, n, D).to(q.dtype)
