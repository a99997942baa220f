"""mistake: -

A ring that keeps the age of its slots in a list, which a clone shares.
"""

import math

import torch


class CacheFull(Exception):
    pass


class KVCache:
    def __init__(self, batch, n_kv_heads, max_len, head_dim, *, dtype=None, device=None):
        for x in (batch, n_kv_heads, max_len, head_dim):
            if x < 1:
                raise ValueError(f"size {x}")
        shape = (batch, n_kv_heads, head_dim, max_len)
        self.kT = torch.full(shape, float("nan"), dtype=dtype, device=device)
        self.vT = torch.full(shape, float("nan"), dtype=dtype, device=device)
        self.max_len, self.length = max_len, 0

    def _n(self, k, v):
        b, h, d, _ = self.kT.shape
        try:
            kb, kh, n, kd = k.shape
        except ValueError:
            raise ValueError(f"k has shape {k.shape}") from None
        if (kb, kh, kd) != (b, h, d) or v.shape != k.shape:
            raise ValueError(f"k {k.shape}, v {v.shape}, cache {b, h, d}")
        return n

    def append(self, k, v):
        n = self._n(k, v)
        if n > self.max_len - self.length:
            raise CacheFull
        self.kT[..., self.length : self.length + n] = k.detach().mT
        self.vT[..., self.length : self.length + n] = v.detach().mT
        self.length += n

    def view(self):
        return self.kT[..., : self.length].mT, self.vT[..., : self.length].mT

    def clone(self):
        b, h, d, t = self.kT.shape
        c = KVCache(b, h, t, d, dtype=self.kT.dtype, device=self.kT.device)
        c.kT[...] = self.kT
        c.vT[...] = self.vT
        c.length = self.length
        return c

    def reset(self):
        self.length = 0


class WindowKVCache(KVCache):
    def __init__(self, batch, n_kv_heads, window, head_dim, *, dtype=None, device=None):
        super().__init__(batch, n_kv_heads, window, head_dim, dtype=dtype, device=device)
        del self.max_len
        self.window = window
        self.when = [-1] * window

    def append(self, k, v):
        n = self._n(k, v)
        for i in range(max(n - self.window, 0), n):
            t = self.length + i
            slot = t % self.window
            self.kT[..., slot] = k[:, :, i].detach()
            self.vT[..., slot] = v[:, :, i].detach()
            self.when[slot] = t
        self.length += n

    def _order(self):
        return [s for t, s in sorted((t, s) for s, t in enumerate(self.when) if t >= 0)]

    def view(self):
        order = self._order()
        return self.kT[..., order].mT, self.vT[..., order].mT

    def clone(self):
        b, h, d, t = self.kT.shape
        c = WindowKVCache(b, h, t, d, dtype=self.kT.dtype, device=self.kT.device)
        c.kT[...] = self.kT
        c.vT[...] = self.vT
        c.length = self.length
        c.when = self.when
        return c

    def reset(self):
        self.length = 0
        self.when = [-1] * self.window


def attend_with_cache(q, k, v, cache, *, scale=None):
    n = cache._n(k, v)
    b, hk, _, d = k.shape
    if (
        q.dim() != 4
        or (q.shape[0], q.shape[2], q.shape[3]) != (b, n, d)
        or q.shape[1] % hk != 0
        or q.shape[1] == 0
    ):
        raise ValueError(f"q {q.shape}, k {k.shape}")
    start = cache.length
    if isinstance(cache, WindowKVCache):
        order = cache._order()
        when = [cache.when[s] for s in order] + list(range(start, start + n))
        keys = torch.cat([cache.kT[..., order].mT, k.detach()], 2)
        values = torch.cat([cache.vT[..., order].mT, v.detach()], 2)
        window = cache.window
        cache.append(k, v)
    else:
        cache.append(k, v)
        keys, values = cache.view()
        when = list(range(cache.length))
        window = cache.max_len
    acc = torch.double if q.dtype == torch.double else torch.float
    scale = 1 / math.sqrt(d) if scale is None else scale
    when = torch.tensor(when, device=q.device)
    now = torch.arange(start, start + n, device=q.device)[:, None]
    hide = torch.where((when <= now) & (when > now - window), 0.0, -math.inf).to(acc)
    pieces = []
    for kv in range(hk):
        group = q.shape[1] // hk
        qs = q[:, kv * group : (kv + 1) * group].to(acc)
        s = torch.einsum("bgnd,btd->bgnt", qs, keys[:, kv].to(acc) * scale) + hide
        w = torch.log_softmax(s, -1).exp()
        pieces.append(torch.einsum("bgnt,btd->bgnd", w, values[:, kv].to(acc)))
    return torch.cat(pieces, 1).to(q.dtype)
