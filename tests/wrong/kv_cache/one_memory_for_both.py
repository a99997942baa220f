"""mistake: shallow-clone

A clone has its own length and the same memory, of the plain cache and of the ring."""

import math

import torch


class CacheFull(Exception):
    pass


class KVCache:
    def __init__(self, batch, n_kv_heads, max_len, head_dim, *, dtype=None, device=None):
        for name, val in (
            ("batch", batch),
            ("n_kv_heads", n_kv_heads),
            ("max_len", max_len),
            ("head_dim", head_dim),
        ):
            if val < 1:
                raise ValueError(f"{name} must be >= 1, got {val}")
        self.batch, self.n_kv_heads, self.max_len, self.head_dim = batch, n_kv_heads, max_len, head_dim
        self.k = torch.zeros(batch, n_kv_heads, max_len, head_dim, dtype=dtype, device=device)
        self.v = torch.zeros(batch, n_kv_heads, max_len, head_dim, dtype=dtype, device=device)
        self.length = 0

    def _check(self, k, v):
        if k.dim() != 4 or k.shape != v.shape:
            raise ValueError(f"k {k.shape} v {v.shape}")
        b, h, n, d = k.shape
        if (b, h, d) != (self.batch, self.n_kv_heads, self.head_dim):
            raise ValueError(f"k {k.shape}")

    @torch.no_grad()
    def append(self, k, v):
        self._check(k, v)
        n = k.shape[2]
        if self.length + n > self.max_len:
            raise CacheFull(f"{n} more than {self.max_len - self.length}")
        self.k[:, :, self.length : self.length + n].copy_(k)
        self.v[:, :, self.length : self.length + n].copy_(v)
        self.length += n

    def view(self):
        return self.k[:, :, : self.length], self.v[:, :, : self.length]

    def clone(self):
        c = KVCache(
            self.batch, self.n_kv_heads, self.max_len, self.head_dim, dtype=self.k.dtype, device=self.k.device
        )
        c.k, c.v = self.k, self.v
        c.length = self.length
        return c

    def reset(self):
        self.length = 0


class WindowKVCache:
    def __init__(self, batch, n_kv_heads, window, head_dim, *, dtype=None, device=None):
        if min(batch, n_kv_heads, window, head_dim) < 1:
            raise ValueError((batch, n_kv_heads, window, head_dim))
        self.batch, self.n_kv_heads, self.window, self.head_dim = batch, n_kv_heads, window, head_dim
        self.rk = torch.zeros(batch, n_kv_heads, window, head_dim, dtype=dtype, device=device)
        self.rv = torch.zeros_like(self.rk)
        self.length = 0

    _check = KVCache._check

    @torch.no_grad()
    def append(self, k, v):
        self._check(k, v)
        n = k.shape[2]
        for i in range(max(0, n - self.window), n):
            slot = (self.length + i) % self.window
            self.rk[:, :, slot] = k[:, :, i]
            self.rv[:, :, slot] = v[:, :, i]
        self.length += n

    def view(self):
        held = min(self.length, self.window)
        if self.length <= self.window:
            return self.rk[:, :, :held].clone(), self.rv[:, :, :held].clone()
        start = self.length % self.window
        return (
            torch.cat([self.rk[:, :, start:], self.rk[:, :, :start]], 2),
            torch.cat([self.rv[:, :, start:], self.rv[:, :, :start]], 2),
        )

    def clone(self):
        c = WindowKVCache(
            self.batch,
            self.n_kv_heads,
            self.window,
            self.head_dim,
            dtype=self.rk.dtype,
            device=self.rk.device,
        )
        c.rk, c.rv = self.rk, self.rv
        c.length = self.length
        return c

    def reset(self):
        self.length = 0


def attend_with_cache(q, k, v, cache, *, scale=None):
    cache._check(k, v)
    b, h, n, d = k.shape
    if q.dim() != 4 or q.shape[0] != b or q.shape[2] != n or q.shape[3] != d:
        raise ValueError(f"q {q.shape} k {k.shape}")
    if n < 1:
        raise ValueError("no tokens")
    H = q.shape[1]
    if H % h != 0 or H == 0:
        raise ValueError(f"{H} heads, {h} kv heads")
    if isinstance(cache, WindowKVCache):
        pk, pv = cache.view()
        cache.append(k, v)
        keys, values = torch.cat([pk, k], 2), torch.cat([pv, v], 2)
        window = cache.window
    else:
        cache.append(k, v)
        keys, values = cache.view()
        window = cache.max_len
    g = H // h
    keys = keys.repeat_interleave(g, dim=1)
    values = values.repeat_interleave(g, dim=1)
    if scale is None:
        scale = 1 / math.sqrt(d)
    up = torch.float32 if q.dtype in (torch.float16, torch.bfloat16) else q.dtype
    scores = torch.matmul(q.to(up), keys.to(up).transpose(-2, -1)) * scale
    T = keys.shape[2]
    qpos = torch.arange(T - n, T, device=q.device)[:, None]
    kpos = torch.arange(T, device=q.device)[None, :]
    mask = (kpos <= qpos) & (kpos > qpos - window)
    scores = scores.masked_fill(~mask, float("-inf"))
    probs = torch.softmax(scores, dim=-1)
    return torch.matmul(probs, values.to(up)).to(q.dtype)
