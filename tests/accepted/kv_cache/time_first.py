"""Memory with time in front, PyTorch's kernel with enable_gqa and a boolean mask; a ring whose tokens are
written twice, at t and t + window, so that its view is one slice."""

import torch
from torch.nn.functional import scaled_dot_product_attention


class CacheFull(Exception):
    pass


class Base:
    def __init__(self, batch, n_kv_heads, size, head_dim, *, dtype=None, device=None):
        for number in (batch, n_kv_heads, size, head_dim):
            if number <= 0:
                raise ValueError(f"{(batch, n_kv_heads, size, head_dim)}")
        self.shape = (batch, n_kv_heads, head_dim)
        rows = self.rows(size)
        self.keys = torch.empty(rows, batch, n_kv_heads, head_dim, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def fits(self, k, v):
        for x in (k, v):
            if x.dim() != 4 or (x.shape[0], x.shape[1], x.shape[3]) != self.shape or x.shape[2] != k.shape[2]:
                raise ValueError(f"{k.shape}, {v.shape}, {self.shape}")

    def clone(self):
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.keys, other.values = self.keys.clone(), self.values.clone()
        return other

    def reset(self):
        self.length = 0


class KVCache(Base):
    def rows(self, size):
        self.max_len = size
        return size

    def append(self, k, v):
        self.fits(k, v)
        n = k.shape[2]
        if n > self.max_len - self.length:
            raise CacheFull(f"{n} more than {self.length} of {self.max_len}")
        with torch.no_grad():
            self.keys[self.length : self.length + n].copy_(k.permute(2, 0, 1, 3))
            self.values[self.length : self.length + n].copy_(v.permute(2, 0, 1, 3))
        self.length += n

    def view(self):
        return tuple(x[: self.length].permute(1, 2, 0, 3) for x in (self.keys, self.values))


class WindowKVCache(Base):
    def rows(self, size):
        self.window = size
        return 2 * size

    def append(self, k, v):
        self.fits(k, v)
        n = k.shape[2]
        with torch.no_grad():
            for i in range(max(0, n - self.window), n):
                slot = (self.length + i) % self.window
                for room, new in ((self.keys, k), (self.values, v)):
                    room[slot] = new[:, :, i]
                    room[slot + self.window] = new[:, :, i]
        self.length += n

    def view(self):
        held = min(self.length, self.window)
        end = self.length % self.window + self.window
        return tuple(x[end - held : end].permute(1, 2, 0, 3) for x in (self.keys, self.values))


def attend_with_cache(q, k, v, cache, *, scale=None):
    cache.fits(k, v)
    if q.dim() != 4 or q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:] or q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape}, {k.shape}")
    n = q.shape[2]
    if n == 0:
        raise ValueError("no tokens")
    if isinstance(cache, WindowKVCache):
        old = cache.view()
        keys, values = torch.cat([old[0], k], 2), torch.cat([old[1], v], 2)
        cache.append(k, v)
        reach = cache.window
    else:
        cache.append(k, v)
        keys, values = cache.view()
        reach = cache.length
    at = torch.arange(keys.shape[2] - n, keys.shape[2])[:, None] - torch.arange(keys.shape[2])
    return scaled_dot_product_attention(
        q, keys, values, attn_mask=(at >= 0) & (at < reach), scale=scale, enable_gqa=True
    )
