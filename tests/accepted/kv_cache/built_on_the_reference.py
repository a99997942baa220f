"""Chunks for a ring are cut into pieces of one token; the rest is left to reference.attention, with a list of
two buffers and a cursor for memory."""

import torch

from reference.attention import attention


class CacheFull(Exception):
    pass


class KVCache:
    __slots__ = ("_buffers", "_cursor")

    def __init__(self, batch, n_kv_heads, max_len, head_dim, *, dtype=None, device=None):
        if not all(n >= 1 for n in (batch, n_kv_heads, max_len, head_dim)):
            raise ValueError([batch, n_kv_heads, max_len, head_dim])
        self._buffers = [
            torch.ones(batch, n_kv_heads, max_len, head_dim, dtype=dtype, device=device) for _ in "kv"
        ]
        self._cursor = 0

    max_len = property(lambda self: self._buffers[0].shape[2])
    length = property(lambda self: self._cursor)

    def _slots(self, n):
        if n > self.max_len - self._cursor:
            raise CacheFull(n, self._cursor, self.max_len)
        return torch.arange(self._cursor, self._cursor + n, device=self._buffers[0].device)

    def append(self, k, v):
        if k.shape != v.shape or k.ndim != 4:
            raise ValueError(k.shape, v.shape)
        if any(
            a != b for i, (a, b) in enumerate(zip(k.shape, self._buffers[0].shape, strict=True)) if i != 2
        ):
            raise ValueError(k.shape, self._buffers[0].shape)
        slots = self._slots(k.shape[2])
        for buffer, new in zip(self._buffers, (k, v), strict=True):
            buffer.index_copy_(2, slots, new.data)
        self._cursor += k.shape[2]

    def view(self):
        return [buffer[:, :, : self._cursor] for buffer in self._buffers]

    def clone(self):
        twin = type(self).__new__(type(self))
        twin._buffers, twin._cursor = [buffer.clone() for buffer in self._buffers], self._cursor
        return twin

    def reset(self):
        self._cursor = 0
        for buffer in self._buffers:
            buffer.zero_()


class WindowKVCache(KVCache):
    __slots__ = ()
    window = property(lambda self: self._buffers[0].shape[2])

    def _slots(self, n):
        return torch.arange(self._cursor, self._cursor + n, device=self._buffers[0].device) % self.window

    def append(self, k, v):
        if k.ndim == 4 and k.shape == v.shape and k.shape[2] > self.window:
            skipped = k.shape[2] - self.window
            k, v = k[:, :, skipped:], v[:, :, skipped:]
            before, self._cursor = self._cursor, self._cursor + skipped
            try:
                super().append(k, v)
            except ValueError:
                self._cursor = before
                raise
        else:
            super().append(k, v)

    def view(self):
        held = min(self._cursor, self.window)
        slots = [t % self.window for t in range(self._cursor - held, self._cursor)]
        return [buffer[:, :, slots] for buffer in self._buffers]


def attend_with_cache(q, k, v, cache, *, scale=None):
    if q.ndim != 4 or k.ndim != 4 or q.shape[2] < 1:
        raise ValueError(q.shape, k.shape)
    (B, H, n, D), groups = q.shape, k.shape[1]
    if (B, n, D) != (k.shape[0], *k.shape[2:]) or H // groups * groups != H:
        raise ValueError(q.shape, k.shape)
    cache.append(k[:, :, :0], v[:, :, :0] if k.shape == v.shape else v)
    step = 1 if isinstance(cache, WindowKVCache) else n
    rows = []
    for t in range(0, n, step):
        cache.append(k[:, :, t : t + step], v[:, :, t : t + step])
        held = [x[:, [h * groups // H for h in range(H)]] for x in cache.view()]
        rows.append(attention(q[:, :, t : t + step], *held, causal=True, scale=scale))
    return torch.cat(rows, dim=2)
