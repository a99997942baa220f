"""mistake: filled-up-before-it-raises

Token by token, so that a chunk fails when its first tokens are in.
"""

import math

import torch


class CacheFull(Exception):
    pass


def check_sizes(**sizes):
    for name, s in sizes.items():
        if s < 1:
            raise ValueError(f"{name} = {s}")


def check_kv(cache, k, v):
    want = (cache.batch, cache.heads, cache.dim)
    for t in (k, v):
        if t.ndim != 4 or (t.shape[0], t.shape[1], t.shape[3]) != want:
            raise ValueError(f"{t.shape} does not fit {want}")
    if k.shape != v.shape:
        raise ValueError(f"{k.shape} and {v.shape}")


class KVCache:
    def __init__(self, batch, n_kv_heads, max_len, head_dim, *, dtype=None, device=None):
        check_sizes(batch=batch, n_kv_heads=n_kv_heads, max_len=max_len, head_dim=head_dim)
        self.batch, self.heads, self.max_len, self.dim = batch, n_kv_heads, max_len, head_dim
        self.k = torch.empty(batch, n_kv_heads, max_len, head_dim, dtype=dtype, device=device)
        self.v = torch.empty(batch, n_kv_heads, max_len, head_dim, dtype=dtype, device=device)
        self.length = 0

    def append(self, k, v):
        check_kv(self, k, v)
        if self.length + k.shape[2] > self.max_len:
            raise CacheFull(f"no room for {k.shape[2]} more: {self.length} of {self.max_len}")
        for i in range(k.shape[2]):
            self.k[:, :, self.length] = k[:, :, i].detach()
            self.v[:, :, self.length] = v[:, :, i].detach()
            self.length += 1

    def view(self):
        return self.k.narrow(2, 0, self.length), self.v.narrow(2, 0, self.length)

    def clone(self):
        c = KVCache(self.batch, self.heads, self.max_len, self.dim, dtype=self.k.dtype, device=self.k.device)
        c.append(*self.view())
        return c

    def reset(self):
        self.length = 0


class WindowKVCache:
    def __init__(self, batch, n_kv_heads, window, head_dim, *, dtype=None, device=None):
        check_sizes(batch=batch, n_kv_heads=n_kv_heads, window=window, head_dim=head_dim)
        self.batch, self.heads, self.window, self.dim = batch, n_kv_heads, window, head_dim
        self.k = torch.empty(batch, n_kv_heads, window, head_dim, dtype=dtype, device=device)
        self.v = torch.empty(batch, n_kv_heads, window, head_dim, dtype=dtype, device=device)
        self.length = 0

    def append(self, k, v):
        check_kv(self, k, v)
        for i in range(k.shape[2]):
            self.k[:, :, self.length % self.window] = k[:, :, i].detach()
            self.v[:, :, self.length % self.window] = v[:, :, i].detach()
            self.length += 1

    def view(self):
        if self.length <= self.window:
            return self.k[:, :, : self.length], self.v[:, :, : self.length]
        cut = self.length % self.window
        return (
            torch.cat((self.k[:, :, cut:], self.k[:, :, :cut]), 2),
            torch.cat((self.v[:, :, cut:], self.v[:, :, :cut]), 2),
        )

    def clone(self):
        c = WindowKVCache(
            self.batch, self.heads, self.window, self.dim, dtype=self.k.dtype, device=self.k.device
        )
        c.k, c.v, c.length = self.k.clone(), self.v.clone(), self.length
        return c

    def reset(self):
        self.length = 0


def attend_with_cache(q, k, v, cache, *, scale=None):
    check_kv(cache, k, v)
    if q.ndim != 4 or q.shape[0] != cache.batch or q.shape[3] != cache.dim or q.shape[2] != k.shape[2]:
        raise ValueError(f"q {q.shape}, k {k.shape}")
    if q.shape[1] < 1 or q.shape[1] % cache.heads:
        raise ValueError(f"{q.shape[1]} heads over {cache.heads}")
    if scale is None:
        scale = 1 / math.sqrt(cache.dim)
    out = torch.empty_like(q)
    group = q.shape[1] // cache.heads
    f = torch.float64 if q.dtype == torch.float64 else torch.float32
    for i in range(q.shape[2]):
        cache.append(k[:, :, i : i + 1], v[:, :, i : i + 1])
        ks, vs = cache.view()
        for b in range(q.shape[0]):
            for h in range(q.shape[1]):
                s = ks[b, h // group].to(f) @ q[b, h, i].to(f) * scale
                p = torch.exp(s - s.max())
                out[b, h, i] = (p[:, None] * vs[b, h // group].to(f)).sum(0) / p.sum()
    return out
