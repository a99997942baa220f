"""mistake: prompt-remembered"""

import torch
from torch import nn

F = nn.functional


class Tokens:
    def __init__(self, text):
        self._table = []
        for c in text:
            lo, hi = 0, len(self._table)
            while lo < hi:
                mid = (lo + hi) >> 1
                if self._table[mid] < c:
                    lo = mid + 1
                else:
                    hi = mid
            if lo == len(self._table) or self._table[lo] != c:
                self._table.insert(lo, c)
        if not self._table:
            raise ValueError("Tokens: empty")

    def __len__(self):
        return len(self._table)

    def _find(self, c):
        lo, hi = 0, len(self._table)
        while lo < hi:
            mid = (lo + hi) >> 1
            if self._table[mid] < c:
                lo = mid + 1
            else:
                hi = mid
        if lo == len(self._table) or self._table[lo] != c:
            raise ValueError(f"Tokens: {c!r}")
        return lo

    def encode(self, text):
        out = torch.empty((len(text),), dtype=torch.int64)
        for i in range(len(text)):
            out[i] = self._find(text[i])
        return out

    def decode(self, ids):
        n = len(self._table)
        buf = [""] * ids.numel()
        for i, t in enumerate(ids.tolist()):
            if t < 0 or t >= n:
                raise ValueError(f"Tokens: {t}")
            buf[i] = self._table[t]
        return "".join(buf)


class KV:
    """k, v: (layers, batch, heads, context, head_dim); [0, length) is written. Extending writes into a copy."""

    __slots__ = ("k", "v", "length")

    def __init__(self, k, v, length):
        self.k, self.v, self.length = k, v, length

    def fork(self):
        return KV(self.k.clone(), self.v.clone(), self.length)


class _Attn(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.qkv = nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, d)


class _Mlp(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.up = nn.Linear(d, 4 * d)
        self.down = nn.Linear(4 * d, d)


class _Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm1 = nn.LayerNorm(d)
        self.attn = _Attn(d)
        self.norm2 = nn.LayerNorm(d)
        self.mlp = _Mlp(d)


class GPT(nn.Module):
    def __init__(self, vocab_size, context, d_model, n_heads, n_layers):
        super().__init__()
        if vocab_size < 1 or context < 1 or d_model < 1 or n_heads < 1 or n_layers < 1:
            raise ValueError("GPT: bad size")
        if d_model % n_heads != 0:
            raise ValueError("GPT: n_heads must divide d_model")
        self.context = context
        self.n_heads = n_heads
        self.n_layers = n_layers
        self.d_head = d_model // n_heads
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.position_embedding = nn.Embedding(context, d_model)
        self.blocks = nn.ModuleList([_Block(d_model) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        with torch.no_grad():
            for m in self.modules():
                if type(m) in (nn.Linear, nn.Embedding):
                    m.weight.normal_().mul_(0.02)
                if type(m) is nn.Linear:
                    m.bias.zero_()

    def new_cache(self, batch):
        w = self.token_embedding.weight
        shape = (self.n_layers, batch, self.n_heads, self.context, self.d_head)
        return KV(w.new_empty(shape), w.new_empty(shape), 0)

    def run(self, ids, kv=None):
        B, T = ids.shape
        s = 0 if kv is None else kv.length
        if T < 1 or s + T > self.context:
            raise ValueError("GPT: length")
        e = s + T
        H, D = self.n_heads, self.d_head
        x = F.embedding(ids, self.token_embedding.weight)
        x = x + self.position_embedding.weight.narrow(0, s, T)
        hide = torch.ones(T, e, dtype=torch.bool).triu_(s + 1)
        for n in range(self.n_layers):
            b = self.blocks[n]
            packed = F.linear(
                F.layer_norm(x, (H * D,), b.norm1.weight, b.norm1.bias), b.attn.qkv.weight, b.attn.qkv.bias
            )
            packed = packed.view(B, T, 3, H, D)
            q, k, v = packed.unbind(2)
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            if kv is not None:
                kv.k[n, :, :, s:e] = k
                kv.v[n, :, :, s:e] = v
                k, v = kv.k[n, :, :, :e], kv.v[n, :, :, :e]
            a = torch.matmul(q * D**-0.5, k.transpose(2, 3))
            a = a.masked_fill_(hide, float("-inf"))
            a = torch.softmax(a, 3)
            y = torch.matmul(a, v).transpose(1, 2).reshape(B, T, H * D)
            x = x + b.attn.out(y)
            y = b.mlp.up(b.norm2(x))
            x = x + b.mlp.down(F.gelu(y))
        if kv is not None:
            kv.length = e
        return self.norm(x)

    def forward(self, ids):
        return torch.matmul(self.run(ids), self.token_embedding.weight.t())


def loss(model, ids):
    if ids.shape[1] < 2:
        raise ValueError("loss: two tokens")
    z = model(ids)[:, :-1]
    picked = z.gather(2, ids[:, 1:, None]).squeeze(2)
    return (z.logsumexp(2) - picked).mean()


def train(model, ids, *, steps, lr):
    params = list(model.parameters())
    opt = torch.optim.AdamW(params, lr=lr, foreach=True)
    out = [0.0] * steps
    for i in range(steps):
        l = loss(model, ids)
        grads = torch.autograd.grad(l, [p for p in params if p.requires_grad], allow_unused=True)
        it = iter(grads)
        for p in params:
            p.grad = next(it) if p.requires_grad else None
        total = torch.stack([g.norm() for g in grads if g is not None]).norm()
        if total > 1:
            for p in params:
                if p.grad is not None:
                    p.grad = p.grad / total
        opt.step()
        out[i] = l.item()
    return out


def _next(z, generator, temperature, dest):
    if generator is None or temperature == 0:
        torch.argmax(z, 1, out=dest)
        return
    p = torch.softmax(z.double() / temperature, 1).cumsum_(1)
    u = torch.rand(z.shape[0], 1, generator=generator, dtype=torch.float64) * p[:, -1:]
    dest.copy_(torch.searchsorted(p, u, right=True).clamp_(max=z.shape[1] - 1).squeeze(1))


def _prepare(ids, count, temperature):
    if ids.shape[1] < 1 or count < 0 or temperature < 0:
        raise ValueError("generate: arguments")
    out = torch.empty((ids.shape[0], ids.shape[1] + count), dtype=torch.int64)
    out[:, : ids.shape[1]] = ids
    return out


def generate(model, ids, count, *, generator=None, temperature=1.0):
    out = _prepare(ids, count, temperature)
    dest = torch.empty(ids.shape[0], dtype=torch.int64)
    with torch.no_grad():
        for n in range(ids.shape[1], out.shape[1]):
            z = model(out[:, max(n - model.context, 0) : n])
            _next(z[:, -1], generator, temperature, dest)
            out[:, n] = dest
    return out


def extend(model, ids, cache=None):
    kv = model.new_cache(ids.shape[0]) if cache is None else cache.fork()
    with torch.no_grad():
        x = model.run(ids, kv)
        return torch.matmul(x, model.token_embedding.weight.t()), kv


def generate_cached(model, ids, count, *, generator=None, temperature=1.0):
    out = _prepare(ids, count, temperature)
    dest = torch.empty(ids.shape[0], dtype=torch.int64)
    kv = model.new_cache(ids.shape[0])
    if 1 < ids.shape[1] <= model.context:
        key, old = getattr(model, "_prompt", (None, None))
        if key is not None and key.shape == ids.shape and torch.equal(key, ids):
            kv = old.fork()
        else:
            with torch.no_grad():
                model.run(ids[:, :-1], kv)
            model._prompt = (ids.clone(), kv.fork())
    with torch.no_grad():
        for n in range(ids.shape[1], out.shape[1]):
            if n <= model.context:
                x = model.run(out[:, kv.length : n], kv)
            else:
                x = model.run(out[:, n - model.context : n])
            _next(x[:, -1] @ model.token_embedding.weight.t(), generator, temperature, dest)
            out[:, n] = dest
    return out


class Classifier(nn.Module):
    def __init__(self, gpt, n_classes):
        super().__init__()
        if n_classes < 1:
            raise ValueError("Classifier: n_classes")
        self.gpt = gpt
        self.head = nn.Linear(gpt.token_embedding.weight.shape[1], n_classes)

    def forward(self, ids, lengths):
        B, T = ids.shape
        if tuple(lengths.shape) != (B,):
            raise ValueError("Classifier: shape")
        if B and (lengths.min() < 1 or lengths.max() > T):
            raise ValueError("Classifier: range")
        x = self.gpt.run(ids)
        last = x.gather(1, (lengths - 1).view(B, 1, 1).expand(B, 1, x.shape[2])).squeeze(1)
        return self.head(last)
