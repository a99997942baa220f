"""Keys lie as columns, as the product reads them; a ring is a deque of tokens; softmax runs over the keys one by one."""

import collections

import torch


class CacheFull(RuntimeError):
    """No room."""


def must(holds, *why):
    if not holds:
        raise ValueError(" ".join(map(str, why)))


class KVCache:
    __slots__ = ("columns", "max_len", "rows", "used")

    def __init__(self, batch, n_kv_heads, max_len, head_dim, *, dtype=None, device=None):
        must(
            all(n > 0 for n in (batch, n_kv_heads, max_len, head_dim)),
            "sizes",
            batch,
            n_kv_heads,
            max_len,
            head_dim,
        )
        self.columns = torch.full((batch, n_kv_heads, head_dim, max_len), 0.0, dtype=dtype, device=device)
        self.rows = torch.full((batch, n_kv_heads, max_len, head_dim), 0.0, dtype=dtype, device=device)
        self.max_len, self.used = max_len, 0

    @property
    def length(self):
        return self.used

    def expects(self, k, v):
        b, h, _, d = self.rows.shape
        for name, x in (("k", k), ("v", v)):
            must(x.dim() == 4, name, "has", x.dim(), "dimensions")
            must((x.size(0), x.size(1), x.size(3)) == (b, h, d), name, tuple(x.shape), "for", (b, h, "n", d))
        must(k.size(2) == v.size(2), k.size(2), "keys and", v.size(2), "values")

    def has_room_for(self, n):
        if self.used + n > self.max_len:
            raise CacheFull(f"{self.used} + {n} > {self.max_len}")

    def append(self, k, v):
        self.expects(k, v)
        self.has_room_for(k.size(2))
        with torch.inference_mode(False), torch.no_grad():
            self.columns.narrow(3, self.used, k.size(2)).copy_(k.mT)
            self.rows.narrow(2, self.used, v.size(2)).copy_(v)
        self.used += k.size(2)

    def view(self):
        return [self.columns.mT.narrow(2, 0, self.used), self.rows.narrow(2, 0, self.used)]

    def clone(self):
        twin = object.__new__(KVCache)
        twin.columns, twin.rows = self.columns.clone(), self.rows.clone()
        twin.max_len, twin.used = self.max_len, self.used
        return twin

    def reset(self):
        self.columns.zero_()
        self.rows.zero_()
        self.used = 0

    def tokens_for(self, i):
        """The keys and values that the token at position i sees."""
        k, v = self.view()
        return k[:, :, : i + 1], v[:, :, : i + 1]


class WindowKVCache:
    def __init__(self, batch, n_kv_heads, window, head_dim, *, dtype=None, device=None):
        must(min(batch, n_kv_heads, window, head_dim) >= 1, "sizes", batch, n_kv_heads, window, head_dim)
        self.nothing = torch.empty(batch, n_kv_heads, 0, head_dim, dtype=dtype, device=device)
        self.window = window
        self.reset()

    def reset(self):
        self.tokens = collections.deque(maxlen=self.window)
        self.length = 0

    def expects(self, k, v):
        must(k.shape == v.shape, tuple(k.shape), "is not", tuple(v.shape))
        must(k.dim() == 4 and k[:, :, :0].shape == self.nothing.shape, tuple(k.shape))

    def has_room_for(self, n):
        pass

    def append(self, k, v):
        self.expects(k, v)
        for one, other in zip(k.detach().unbind(2), v.detach().unbind(2)):
            self.tokens.append((one.clone(), other.clone()))
            self.length += 1

    def view(self):
        if not self.tokens:
            return self.nothing.clone(), self.nothing.clone()
        keys, values = zip(*self.tokens)
        return torch.stack(keys, 2), torch.stack(values, 2)

    def clone(self):
        twin = WindowKVCache.__new__(WindowKVCache)
        twin.nothing, twin.window, twin.length = self.nothing, self.window, self.length
        twin.tokens = collections.deque(self.tokens, maxlen=self.window)
        return twin

    def tokens_for(self, i):
        return self.view()


def attend_with_cache(q, k, v, cache, *, scale=None):
    cache.expects(k, v)
    must(
        q.dim() == 4 and (q.size(0), q.size(2), q.size(3)) == (k.size(0), k.size(2), k.size(3)),
        tuple(q.shape),
    )
    must(q.size(2) > 0, "no tokens")
    must(q.size(1) > 0 and q.size(1) % k.size(1) == 0, q.size(1), "query heads for", k.size(1))
    cache.has_room_for(k.size(2))
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    factor = q.size(3) ** -0.5 if scale is None else scale
    server = [h * k.size(1) // q.size(1) for h in range(q.size(1))]
    results = []
    for n in range(q.size(2)):
        cache.append(k[:, :, n : n + 1], v[:, :, n : n + 1])
        keys, values = cache.tokens_for(cache.length - 1)
        one = q[:, :, n].to(wide) * factor
        top = one.new_full((*one.shape[:2], 1), -torch.inf)
        total, out = torch.zeros_like(top), torch.zeros_like(one)
        for j in range(keys.size(2)):
            s = (one * keys[:, server, j].to(wide)).sum(-1, keepdim=True)
            new = torch.maximum(top, s)
            shrink, weight = (top - new).exp(), (s - new).exp()
            total = total * shrink + weight
            out = out * shrink + weight * values[:, server, j].to(wide)
            top = new
        results.append((out / total).to(q.dtype))
    return torch.stack(results, 2)
