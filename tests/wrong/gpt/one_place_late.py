"""mistake: one-place-too-late

The place after the last token is read, where there is one."""

import math

import torch
from torch import nn


class Tokens:
    def __init__(self, text):
        self.chars = ""
        for c in sorted(text):
            if c not in self.chars:
                self.chars += c
        if not self.chars:
            raise ValueError("no characters")

    def __len__(self):
        return len(self.chars)

    def encode(self, text):
        found = [self.chars.find(c) for c in text]
        if -1 in found:
            raise ValueError(text)
        return torch.LongTensor(found)

    def decode(self, ids):
        if len(ids) and (ids.min() < 0 or ids.max() >= len(self.chars)):
            raise ValueError(str(ids))
        return "".join([self.chars[i] for i in ids])


class Affine(nn.Module):
    def __init__(self, n_out, n_in=None, bias=True):
        super().__init__()
        if n_in is None:
            self.weight = nn.Parameter(torch.ones(n_out))
        else:
            self.weight = nn.Parameter(0.02 * torch.randn(n_out, n_in))
        if bias:
            self.bias = nn.Parameter(torch.zeros(n_out))


def norm(p, x):
    mu = x.mean(-1, keepdim=True)
    return (x - mu) * torch.rsqrt(((x - mu) ** 2).mean(-1, keepdim=True) + 1e-5) * p.weight + p.bias


def affine(p, x):
    return torch.einsum("...i,oi->...o", x, p.weight) + p.bias


class GPT(nn.Module):
    def __init__(self, vocab_size, context, d_model, n_heads, n_layers):
        if not all(n >= 1 for n in (vocab_size, context, d_model, n_heads, n_layers)):
            raise ValueError("sizes")
        if d_model // n_heads * n_heads != d_model:
            raise ValueError("heads")
        super().__init__()
        self.vocab_size, self.context, self.n_heads = vocab_size, context, n_heads
        self.token_embedding = Affine(vocab_size, d_model, bias=False)
        self.position_embedding = Affine(context, d_model, bias=False)
        self.blocks = nn.ModuleDict()
        for i in range(n_layers):
            attn = nn.ModuleDict({"qkv": Affine(3 * d_model, d_model), "out": Affine(d_model, d_model)})
            mlp = nn.ModuleDict({"up": Affine(4 * d_model, d_model), "down": Affine(d_model, 4 * d_model)})
            self.blocks[str(i)] = nn.ModuleDict(
                {"norm1": Affine(d_model), "norm2": Affine(d_model), "attn": attn, "mlp": mlp}
            )
        self.norm = Affine(d_model)

    def hidden(self, ids, old):
        """old: per layer and head a pair (k, v) of what was read before; returns states and the new pairs."""
        start = 0 if old is None else old[0][0][0].shape[1]
        T = ids.shape[1]
        if T < 1 or start + T > self.context:
            raise ValueError(f"{start} {T} {self.context}")
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise ValueError(f"{ids}")
        x = self.token_embedding.weight[ids] + self.position_embedding.weight[start : start + T][None]
        new = []
        for i, block in enumerate(self.blocks.values()):
            a = affine(block["attn"]["qkv"], norm(block["norm1"], x))
            C = x.shape[-1]
            D = C // self.n_heads
            outs, pairs = [], []
            for h in range(self.n_heads):
                q, k, v = (
                    a[..., h * D : h * D + D],
                    a[..., C + h * D : C + h * D + D],
                    a[..., 2 * C + h * D : 2 * C + h * D + D],
                )
                if old is not None:
                    k, v = torch.cat([old[i][h][0], k], 1), torch.cat([old[i][h][1], v], 1)
                pairs.append((k, v))
                rows = []
                for t in range(T):
                    n = start + t + 1
                    s = (k[:, :n] * q[:, t : t + 1]).sum(-1) / math.sqrt(D)
                    w = torch.exp(s - s.amax(1, keepdim=True))
                    w = w / w.sum(1, keepdim=True)
                    rows.append((w[..., None] * v[:, :n]).sum(1))
                outs.append(torch.stack(rows, 1))
            new.append(pairs)
            x = x + affine(block["attn"]["out"], torch.cat(outs, -1))
            u = affine(block["mlp"]["up"], norm(block["norm2"], x))
            x = x + affine(block["mlp"]["down"], 0.5 * u * (1 + torch.erf(u / 2**0.5)))
        return norm(self.norm, x), new

    def forward(self, ids):
        return self.hidden(ids, None)[0] @ self.token_embedding.weight.T


def loss(model, ids):
    B, T = ids.shape
    if T < 2:
        raise ValueError("too short")
    logits = model(ids)
    total = 0
    for t in range(T - 1):
        row = logits[:, t] - logits[:, t].logsumexp(-1, keepdim=True)
        total = total - row[torch.arange(B), ids[:, t + 1]].sum()
    return total / (B * (T - 1))


def train(model, ids, *, steps, lr):
    params = list(model.parameters())
    m, v = [torch.zeros_like(p) for p in params], [torch.zeros_like(p) for p in params]
    losses = []
    for step in range(1, steps + 1):
        value = loss(model, ids)
        losses.append(value.item())
        grads = torch.autograd.grad(value, params, allow_unused=True)
        norm = sum((g**2).sum() for g in grads if g is not None) ** 0.5
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(params, grads)):
                if g is None:
                    continue
                g = g * min(1.0, 1.0 / float(norm)) if norm > 0 else g
                m[i] = 0.9 * m[i] + 0.1 * g
                v[i] = 0.999 * v[i] + 0.001 * g * g
                p *= 1 - lr * 0.01
                p -= lr * (m[i] / (1 - 0.9**step)) / ((v[i] / (1 - 0.999**step)).sqrt() + 1e-8)
    return losses


def draw(logits, generator, temperature):
    """Gumbel's way: argmax of logits / temperature + noise."""
    if generator is not None and temperature > 0:
        u = torch.rand(logits.shape, generator=generator, dtype=torch.float64)
        logits = logits / temperature - torch.log(-torch.log(u))
    return logits.argmax(-1)


def grow(ids, count, generator, temperature, next_logits):
    if ids.shape[1] == 0 or count < 0 or temperature < 0:
        raise ValueError("cannot generate")
    out = torch.zeros(ids.shape[0], ids.shape[1] + count, dtype=torch.int64)
    out[:, : ids.shape[1]] = ids
    with torch.no_grad():
        for t in range(ids.shape[1], out.shape[1]):
            out[:, t] = draw(next_logits(out[:, :t]), generator, temperature)
    return out


def generate(model, ids, count, *, generator=None, temperature=1.0):
    return grow(
        ids,
        count,
        generator,
        temperature,
        lambda text: model(text[:, max(0, text.shape[1] - model.context) :])[:, -1],
    )


def extend(model, ids, cache=None):
    x, cache = model.hidden(ids, cache)
    return x @ model.token_embedding.weight.T, cache


def generate_cached(model, ids, count, *, generator=None, temperature=1.0):
    cache, known = None, 0

    def next_logits(text):
        nonlocal cache, known
        if text.shape[1] > model.context:
            cache, known = None, text.shape[1] - model.context
        logits, cache = extend(model, text[:, known:], cache)
        known = text.shape[1]
        return logits[:, -1]

    return grow(ids, count, generator, temperature, next_logits)


class Classifier(nn.Module):
    def __init__(self, gpt, n_classes):
        super().__init__()
        self.gpt, self.head = gpt, Affine(n_classes, gpt.norm.weight.shape[0])

    def forward(self, ids, lengths):
        if tuple(lengths.shape) != (ids.shape[0],):
            raise ValueError(f"{lengths.shape}")
        rows = []
        for row, n in zip(ids, lengths.tolist()):
            if not 0 < n <= len(row):
                raise ValueError(f"{n}")
            rows.append(self.gpt.hidden(row[None, : n + 1], None)[0][0, -1])
        return affine(self.head, torch.stack(rows))
