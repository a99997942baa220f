"""Keys never repeated: queries are grouped over their key-value head. The ring writes two slices and turns
the scores, not the keys, when it attends to one token; scores in float32, masks as additive minus infinity."""

import torch


class CacheFull(RuntimeError):
    pass


def check(cache, k, v):
    b, h, _, d = cache.store.shape[1:]
    if k.dim() != 4 or k.size() != v.size() or k.size() != torch.Size((b, h, k.size(2), d)):
        raise ValueError(f"{tuple(k.size())} {tuple(v.size())} for {(b, h, d)}")


def storage(sizes, dtype, device):
    if min(sizes) < 1:
        raise ValueError(f"{sizes}")
    return torch.empty((2, *sizes), dtype=dtype, device=device)


class KVCache:
    def __init__(self, batch, n_kv_heads, max_len, head_dim, *, dtype=None, device=None):
        self.store = storage((batch, n_kv_heads, max_len, head_dim), dtype, device)
        self.max_len = max_len
        self.reset()

    def reset(self):
        self.length = 0

    def append(self, k, v):
        check(self, k, v)
        if self.length + k.size(2) > self.max_len:
            raise CacheFull(str(self.length))
        self.store[0].narrow(2, self.length, k.size(2)).copy_(k.detach())
        self.store[1].narrow(2, self.length, k.size(2)).copy_(v.detach())
        self.length += k.size(2)

    def view(self):
        held = self.store.narrow(3, 0, self.length)
        return held[0], held[1]

    def clone(self):
        twin = KVCache.__new__(KVCache)
        twin.store, twin.max_len, twin.length = self.store.clone(), self.max_len, self.length
        return twin


class WindowKVCache:
    def __init__(self, batch, n_kv_heads, window, head_dim, *, dtype=None, device=None):
        self.store = storage((batch, n_kv_heads, window, head_dim), dtype, device)
        self.window, self.length = window, 0

    def reset(self):
        self.length = 0

    def append(self, k, v):
        check(self, k, v)
        n = k.size(2)
        late = min(n, self.window)
        at = (self.length + n - late) % self.window
        first = min(late, self.window - at)
        for room, new in zip(self.store, (k.detach(), v.detach()), strict=True):
            new = new[:, :, n - late :]
            room[:, :, at : at + first] = new[:, :, :first]
            room[:, :, : late - first] = new[:, :, first:]
        self.length += n

    def view(self):
        if self.length <= self.window:
            held = self.store[..., : self.length, :]
        else:
            held = self.store.roll(-(self.length % self.window), dims=3)
        return held[0], held[1]

    def clone(self):
        twin = WindowKVCache.__new__(WindowKVCache)
        twin.store, twin.window, twin.length = self.store.clone(), self.window, self.length
        return twin


def attend_with_cache(q, k, v, cache, *, scale=None):
    check(cache, k, v)
    b, h, n, d = q.shape if q.dim() == 4 else (0, 0, 0, 0)
    groups = k.size(1)
    if (b, n, d) != (k.size(0), k.size(2), k.size(3)) or n == 0 or h % groups:
        raise ValueError(f"{tuple(q.size())} for {tuple(k.size())}")
    ring = hasattr(cache, "window")
    past = tuple(x.clone() for x in cache.view()) if ring else ()
    cache.append(k, v)
    keys, values = (torch.cat(pair, 2) for pair in zip(past, (k, v), strict=True)) if ring else cache.view()
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.einsum("bgshd,bgtd->bgsht", q.to(wide).unflatten(1, (groups, -1)), keys.to(wide))
    scores = scores * (d**-0.5 if scale is None else scale)
    newest = torch.arange(keys.size(2) - n, keys.size(2)).unsqueeze(1)
    ages = newest - torch.arange(keys.size(2))
    hidden = (ages < 0) | (ages >= cache.window) if ring else ages < 0
    scores = scores + torch.zeros(hidden.shape, dtype=wide).masked_fill(hidden, -torch.inf)
    out = torch.einsum("bgsht,bgtd->bgshd", scores.softmax(-1), values.to(wide))
    return out.flatten(1, 2).to(q.dtype)
