"""Each token is appended and attends before the next one comes, which needs no mask; one float64 dot product
at a time. The caches are modules with buffers, the ring has a head that moves on."""

import copy

import torch
from torch import nn


class CacheFull(Exception):
    """No room."""


def checked(*sizes):
    if any(size < 1 for size in sizes):
        raise ValueError(f"sizes {sizes}")
    return sizes


class KVCache(nn.Module):
    def __init__(self, batch, n_kv_heads, max_len, head_dim, *, dtype=None, device=None):
        super().__init__()
        shape = checked(batch, n_kv_heads, max_len, head_dim)
        for name in ("k", "v"):
            self.register_buffer(name, torch.full(shape, float("nan"), dtype=dtype, device=device))
        self.max_len, self.length = max_len, 0

    def refuse(self, k, v):
        B, H, _, D = self.k.shape
        if k.ndim != 4 or v.ndim != 4 or tuple(k.shape) != tuple(v.shape):
            raise ValueError(f"k {k.shape} v {v.shape}")
        if (k.shape[0], k.shape[1], k.shape[3]) != (B, H, D):
            raise ValueError(f"k {k.shape}, the cache {self.k.shape}")

    def room_for(self, n):
        if self.length + n > self.max_len:
            raise CacheFull(f"{self.length} + {n} > {self.max_len}")

    @torch.no_grad()
    def append(self, k, v):
        self.refuse(k, v)
        self.room_for(k.shape[2])
        for t in range(k.shape[2]):
            self.k[:, :, self.length] = k[:, :, t]
            self.v[:, :, self.length] = v[:, :, t]
            self.length += 1

    def view(self):
        return self.k.narrow(2, 0, self.length), self.v.narrow(2, 0, self.length)

    def clone(self):
        return copy.deepcopy(self)

    def reset(self):
        self.length = 0


class WindowKVCache(KVCache):
    def __init__(self, batch, n_kv_heads, window, head_dim, *, dtype=None, device=None):
        super().__init__(batch, n_kv_heads, window, head_dim, dtype=dtype, device=device)
        self.window, self.head = window, 0

    def room_for(self, n):
        pass

    @torch.no_grad()
    def append(self, k, v):
        self.refuse(k, v)
        for t in range(k.shape[2]):
            self.k[:, :, self.head] = k[:, :, t]
            self.v[:, :, self.head] = v[:, :, t]
            self.head = (self.head + 1) % self.window
            self.length += 1

    def view(self):
        if self.length < self.window:
            return super().view()
        return tuple(torch.cat([x[:, :, self.head :], x[:, :, : self.head]], dim=2) for x in (self.k, self.v))

    def reset(self):
        self.length = self.head = 0


def attend_with_cache(q, k, v, cache, *, scale=None):
    cache.refuse(k, v)
    if q.ndim != 4 or [q.shape[i] for i in (0, 2, 3)] != [k.shape[i] for i in (0, 2, 3)]:
        raise ValueError(f"q {q.shape} k {k.shape}")
    if q.shape[2] < 1 or q.shape[1] % k.shape[1] != 0:
        raise ValueError(f"q {q.shape} k {k.shape}")
    cache.room_for(k.shape[2])
    scale = 1 / q.shape[3] ** 0.5 if scale is None else scale
    rows = []
    for t in range(q.shape[2]):
        cache.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
        keys, values = (x.double() for x in cache.view())
        heads = []
        for h in range(q.shape[1]):
            g = h // (q.shape[1] // k.shape[1])
            scores = scale * (keys[:, g] * q[:, h, t, None].double()).sum(-1)
            weights = torch.softmax(scores, dim=-1)
            heads.append((weights[:, :, None] * values[:, g]).sum(1))
        rows.append(torch.stack(heads, dim=1))
    return torch.stack(rows, dim=2).to(q.dtype)
