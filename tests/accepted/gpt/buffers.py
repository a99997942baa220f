"""A mask kept as a buffer, an additive mask, a cache of full-size buffers copied on extension, sampling by the
inverse of the cumulative distribution, and one-hot products in place of lookups in the loss and the classifier."""

import torch
from torch import nn
from torch.nn.functional import layer_norm, linear, one_hot


class Tokens:
    def __init__(self, text):
        self._all = tuple(sorted(set(text)))
        if not self._all:
            raise ValueError("nothing to number")

    def __len__(self):
        return len(self._all)

    def encode(self, text):
        for c in text:
            if c not in self._all:
                raise ValueError(c)
        return torch.tensor(list(map(self._all.index, text)), dtype=torch.long)

    def decode(self, ids):
        n = len(self._all)
        if any(int(i) not in range(n) for i in ids):
            raise ValueError(f"{ids} of {n}")
        return "".join(self._all[int(i)] for i in ids)


class Attn(nn.Module):
    def __init__(self, d, h, context):
        super().__init__()
        self.h = h
        self.qkv = nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, d)
        mask = torch.full((context, context), float("-inf")).triu(1)
        self.register_buffer("mask", mask, persistent=False)

    def heads(self, x):
        return [t.unflatten(-1, (self.h, -1)).movedim(-2, 1) for t in self.qkv(x).split(x.shape[-1], -1)]

    def look(self, q, k, v, start):
        s = (q * q.shape[-1] ** -0.5) @ k.mT + self.mask[start : start + q.shape[2], : k.shape[2]]
        return self.out((s.softmax(-1) @ v).movedim(1, -2).flatten(-2))

    def forward(self, x):
        return self.look(*self.heads(x), 0)


class Mlp(nn.Sequential):
    def __init__(self, d):
        super().__init__()
        self.add_module("up", nn.Linear(d, 4 * d))
        self.add_module("gelu", nn.GELU())
        self.add_module("down", nn.Linear(4 * d, d))


class Block(nn.Module):
    def __init__(self, d, h, context):
        super().__init__()
        self.attn, self.mlp = Attn(d, h, context), Mlp(d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)


class GPT(nn.Module):
    def __init__(self, vocab_size, context, d_model, n_heads, n_layers):
        super().__init__()
        if min(vocab_size, context, d_model, n_heads, n_layers) < 1 or d_model % n_heads > 0:
            raise ValueError((vocab_size, context, d_model, n_heads, n_layers))
        self.context = context
        self.blocks = nn.Sequential(*[Block(d_model, n_heads, context) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        self.position_embedding = nn.Embedding(context, d_model)
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, (nn.Linear, nn.Embedding)):
                    module.weight.uniform_(-0.02 * 3**0.5, 0.02 * 3**0.5)
                if isinstance(module, nn.Linear):
                    module.bias.zero_()

    def run(self, ids, start, attend):
        stop = start + ids.shape[1]
        if stop > self.context or stop == start:
            raise ValueError(f"{start}:{stop} of {self.context}")
        x = self.token_embedding(ids)
        x = x + self.position_embedding(torch.arange(start, stop)).expand_as(x)
        for i, b in enumerate(self.blocks):
            x = x + attend(i, b.attn, b.norm1(x))
            x = b.mlp(b.norm2(x)) + x
        return layer_norm(x, x.shape[-1:], self.norm.weight, self.norm.bias)

    def states(self, ids):
        return self.run(ids, 0, lambda i, attn, x: attn(x))

    def forward(self, ids):
        return linear(self.states(ids), self.token_embedding.weight)


def loss(model, ids):
    if ids.shape[-1] <= 1:
        raise ValueError(tuple(ids.shape))
    logits = model(ids)[:, :-1]
    return -(logits.log_softmax(-1) * one_hot(ids[:, 1:], logits.shape[-1])).sum(-1).mean()


def train(model, ids, *, steps, lr):
    opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr, foreach=False)
    losses = []
    while len(losses) < steps:
        for p in model.parameters():
            p.grad = None
        value = loss(model, ids)
        losses.append(value.tolist())
        value.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        total = torch.linalg.vector_norm(torch.stack([g.norm() for g in grads]))
        if total > 1:
            torch._foreach_div_(grads, float(total))
        opt.step()
    return losses


def sampled(logits, generator, temperature):
    if temperature == 0 or generator is None:
        return logits.argmax(-1)
    edges = (logits.double() / temperature).softmax(-1).cumsum(-1)
    u = torch.rand(len(logits), 1, generator=generator, dtype=torch.float64) * edges[:, -1:]
    return (edges <= u).sum(-1).clamp(max=logits.shape[-1] - 1)


def generate(model, ids, count, *, generator=None, temperature=1.0):
    if ids.shape[1] < 1 or count < 0 or not temperature >= 0:
        raise ValueError(f"{ids.shape} {count} {temperature}")
    columns = list(ids.unbind(1))
    for _ in range(count):
        with torch.no_grad():
            logits = model(torch.stack(columns[-model.context :], 1))
        columns.append(sampled(logits[:, -1], generator, temperature))
    return torch.stack(columns, 1)


def extend(model, ids, cache=None):
    if cache is None:
        w = model.token_embedding.weight
        shape = (
            len(model.blocks),
            2,
            len(ids),
            model.blocks[0].attn.h,
            model.context,
            w.shape[1] // model.blocks[0].attn.h,
        )
        cache = 0, w.new_zeros(shape)
    start, held = cache[0], cache[1].clone()
    stop = start + ids.shape[1]

    def attend(i, attn, x):
        q, k, v = attn.heads(x)
        held[i, 0, :, :, start:stop], held[i, 1, :, :, start:stop] = k, v
        return attn.look(q, held[i, 0, :, :, :stop], held[i, 1, :, :, :stop], start)

    with torch.no_grad():
        x = model.run(ids, start, attend)
        return linear(x, model.token_embedding.weight), (stop, held)


def generate_cached(model, ids, count, *, generator=None, temperature=1.0):
    if ids.shape[1] < 1 or count < 0 or not temperature >= 0:
        raise ValueError(f"{ids.shape} {count} {temperature}")
    fits = max(0, min(count, model.context + 1 - ids.shape[1]))
    unread, cache = ids, None
    for _ in range(fits):
        logits, cache = extend(model, unread, cache)
        unread = sampled(logits[:, -1], generator, temperature)[:, None]
        ids = torch.cat([ids, unread], 1)
    return generate(model, ids, count - fits, generator=generator, temperature=temperature)


class Classifier(nn.Module):
    def __init__(self, gpt, n_classes):
        super().__init__()
        self.head = nn.Linear(gpt.token_embedding.weight.shape[1], n_classes)
        self.gpt = gpt

    def forward(self, ids, lengths):
        if lengths.ndim != 1 or len(lengths) != len(ids) or not all(1 <= n <= ids.shape[1] for n in lengths):
            raise ValueError(lengths)
        last = one_hot(lengths - 1, ids.shape[1]).to(self.head.weight.dtype)
        return self.head((self.gpt.states(ids) * last[..., None]).sum(1))
