"""mistake: keys-slide-along

The oldest token leaves the cache; the others keep the keys of their old places."""

import numpy as np
import torch
from torch import nn
from torch.nn import Embedding, Linear, Module


class Tokens(dict):
    def __init__(self, text):
        super().__init__((c, i) for i, c in enumerate(np.unique(list(text))))
        if not self:
            raise ValueError("no text")
        self.back = {i: str(c) for c, i in self.items()}

    def __missing__(self, char):
        raise ValueError(f"unknown: {char!r}")

    def encode(self, text):
        return torch.from_numpy(np.array([self[c] for c in text], dtype=np.int64))

    def decode(self, ids):
        strangers = set(ids.tolist()) - self.back.keys()
        if strangers:
            raise ValueError(f"unknown: {strangers}")
        return "".join(map(self.back.get, ids.tolist()))


class Norm(Module):
    def __init__(self, d):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(d)), nn.Parameter(torch.zeros(d))

    def forward(self, x):
        var, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
        return torch.addcmul(self.bias, (x - mean) / (var + 1e-5).sqrt(), self.weight)


class Part(Module):
    """Two linear layers under two names."""

    def __init__(self, first, second, d, wide):
        super().__init__()
        self.add_module(first, Linear(d, wide))
        self.add_module(second, Linear(wide // 3 if first == "qkv" else wide, d))
        for layer in self.children():
            nn.init.normal_(layer.weight, 0, 0.02)
            nn.init.constant_(layer.bias, 0)


class GPT(Module):
    def __init__(self, vocab_size, context, d_model, n_heads, n_layers):
        if vocab_size < 1 or context < 1 or d_model < 1 or n_heads < 1 or n_layers < 1:
            raise ValueError("every size must be positive")
        if d_model % n_heads:
            raise ValueError(f"{n_heads} heads in {d_model}")
        super().__init__()
        self.context, self.n_heads = context, n_heads
        self.token_embedding = Embedding(vocab_size, d_model, _weight=torch.randn(vocab_size, d_model) / 50)
        self.position_embedding = Embedding(context, d_model, _weight=torch.randn(context, d_model) / 50)
        self.blocks = nn.ModuleList()
        for _ in range(n_layers):
            block = Module()
            block.norm1, block.attn = Norm(d_model), Part("qkv", "out", d_model, 3 * d_model)
            block.norm2, block.mlp = Norm(d_model), Part("up", "down", d_model, 4 * d_model)
            self.blocks.append(block)
        self.norm = Norm(d_model)

    def states(self, ids, cache=()):
        """The states of new tokens, and the cache with their keys and values: a list of layers for each token."""
        start, new = len(cache), ids.shape[1]
        if not new or start + new > self.context:
            raise ValueError(f"{start} tokens and {new} more in {self.context}")
        x = self.token_embedding(ids) + self.position_embedding.weight[start : start + new]
        kept = [[] for _ in range(new)]
        for i, block in enumerate(self.blocks):
            parts = block.attn.qkv(block.norm1(x)).view(len(x), new, 3, self.n_heads, -1)
            q = parts[:, :, 0]
            for token, row in zip(kept, parts.unbind(1)):
                token.append((row[:, 1], row[:, 2]))
            top, total, seen = self.running(q, [token[i] for token in [*cache, *kept]], start)
            x = x + block.attn.out((seen / total).flatten(2))
            x = x + block.mlp.down(nn.functional.gelu(block.mlp.up(block.norm2(x))))
        return self.norm(x), [*cache, *kept]

    def running(self, q, past, start):
        """Largest score, sum of weights and weighted values of each query, key by key."""
        place = torch.arange(start, start + q.shape[1])[:, None, None]
        top = total = seen = None
        for n, (key, value) in enumerate(past):
            score = (q * key[:, None]).sum(-1, keepdim=True) / q.shape[-1] ** 0.5
            if top is None:
                top, total, seen = score, torch.ones_like(score), value[:, None].expand_as(q)
                continue
            score = torch.where(place >= n, score, -torch.inf)
            new = torch.maximum(top, score).detach()
            old, weight = (top - new).exp(), (score - new).exp()
            top, total, seen = new, total * old + weight, seen * old + value[:, None] * weight
        return top, total, seen

    def forward(self, ids):
        return torch.tensordot(self.states(ids)[0], self.token_embedding.weight, dims=([2], [1]))


class CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets):
        probs = torch.softmax(logits, -1)
        right = targets[..., None]
        ctx.save_for_backward(probs, right)
        return (torch.logsumexp(logits, -1, keepdim=True) - logits.gather(-1, right)).mean()

    @staticmethod
    def backward(ctx, upstream):
        probs, right = ctx.saved_tensors
        slope = probs.scatter_add(-1, right, -torch.ones_like(right, dtype=probs.dtype))
        return upstream * slope / right.numel(), None


def loss(model, ids):
    if ids.shape[1] - 1 < 1:
        raise ValueError("no next token")
    return CrossEntropy.apply(model(ids)[:, :-1, :], ids[:, 1:])


def train(model, ids, *, steps, lr):
    groups = [{"params": [p]} for p in model.parameters()]
    optimizer = torch.optim.AdamW(groups, lr=lr)

    def closure():
        optimizer.zero_grad()
        value = loss(model, ids)
        value.backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1)
        return value

    model.train()
    return [optimizer.step(closure).item() for _ in range(steps)]


def chosen(logits, rng, temperature):
    logits = logits.detach().double().numpy()
    if rng is None or temperature == 0:
        return torch.from_numpy(logits.argmax(-1))
    return torch.from_numpy((logits / temperature + rng.gumbel(size=logits.shape)).argmax(-1))


def seeded(generator, temperature):
    if generator is None or temperature == 0:
        return None
    return np.random.default_rng(torch.randint(2**62, (1,), generator=generator).item())


def generate(model, ids, count, *, generator=None, temperature=1.0):
    if not ids.shape[1] or count < 0 or temperature < 0:
        raise ValueError("nothing to generate")
    rng = seeded(generator, temperature)
    for _ in range(count):
        with torch.no_grad():
            logits = model(ids[:, max(ids.shape[1] - model.context, 0) :])[:, -1]
        ids = torch.hstack([ids, chosen(logits, rng, temperature)[:, None]])
    return ids


def extend(model, ids, cache=None):
    states, cache = model.states(ids, cache or ())
    return states @ model.token_embedding.weight.mT, cache


def generate_cached(model, ids, count, *, generator=None, temperature=1.0):
    if not ids.shape[1] or count < 0 or temperature < 0:
        raise ValueError("nothing to generate")
    rng, cache, unread = seeded(generator, temperature), (), ids[:, -model.context :]
    for _ in range(count):
        if len(cache) + unread.shape[1] > model.context:
            cache = cache[1:] if cache else cache
        with torch.no_grad():
            logits, cache = extend(model, unread, cache)
        unread = chosen(logits[:, -1], rng, temperature)[:, None]
        ids = torch.hstack([ids, unread])
    return ids


class Classifier(Module):
    def __init__(self, gpt, n_classes):
        super().__init__()
        self.gpt, self.head = gpt, Linear(gpt.norm.weight.numel(), n_classes)

    def forward(self, ids, lengths):
        if lengths.shape != ids.shape[:1]:
            raise ValueError("one length a text")
        if not ((lengths > 0) & (lengths <= ids.shape[1])).all():
            raise ValueError("a length that is none")
        states, _ = self.gpt.states(ids[:, : lengths.max()])
        return self.head(torch.stack([row[n - 1] for row, n in zip(states, lengths)]))
