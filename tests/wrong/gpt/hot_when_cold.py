"""mistake: temperature-multiplied

The logits are multiplied by the temperature."""

from collections import namedtuple
from functools import reduce

import torch
import torch.nn as nn

Past = namedtuple("Past", "length keys values")


class Tokens:
    def __init__(self, text):
        assert_text(text)
        self.alphabet = "".join(sorted(set(text)))

    def __len__(self):
        return len(self.alphabet)

    def encode(self, text):
        return torch.tensor([self._rank(c) for c in text], dtype=torch.int64)

    def _rank(self, char):
        return self.alphabet.index(char)  # str.index raises ValueError

    def decode(self, ids):
        ids = [int(i) for i in ids]
        if ids and not (0 <= min(ids) and max(ids) < len(self)):
            raise ValueError(ids)
        return reduce(lambda text, i: text + self.alphabet[i], ids, "")


def assert_text(text):
    if text == "":
        raise ValueError("text is empty")


def small(layer):
    """A linear layer or embedding, filled the GPT-2 way."""
    with torch.no_grad():
        layer.weight.copy_(torch.normal(0.0, 0.02, layer.weight.shape))
        if getattr(layer, "bias", None) is not None:
            layer.bias.zero_()
    return layer


class GPT(nn.Module):
    class Attn(nn.Module):
        def __init__(self, d):
            super().__init__()
            self.qkv, self.out = small(nn.Linear(d, d * 3)), small(nn.Linear(d, d))

    class Mlp(nn.Module):
        def __init__(self, d):
            super().__init__()
            self.up, self.down = small(nn.Linear(d, d * 4)), small(nn.Linear(d * 4, d))

        def forward(self, x):
            y = self.up(x)
            return self.down(y * torch.special.ndtr(y))

    class Block(nn.Module):
        def __init__(self, d):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(d, eps=1e-05), nn.LayerNorm(d, eps=1e-05)
            self.attn, self.mlp = GPT.Attn(d), GPT.Mlp(d)

    def __init__(self, vocab_size, context, d_model, n_heads, n_layers, dropout=0.0):
        super().__init__()
        if any(size < 1 for size in (vocab_size, context, d_model, n_heads, n_layers)) or d_model % n_heads:
            raise ValueError("sizes do not fit")
        self.context, self.heads = context, n_heads
        self.token_embedding = small(nn.Embedding(vocab_size, d_model))
        self.position_embedding = small(nn.Embedding(context, d_model))
        self.blocks = nn.ModuleList([GPT.Block(d_model) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        self.drop = nn.Dropout(dropout)

    def body(self, ids, past=None, real=None):
        batch, new = ids.shape
        old = past.length if past else 0
        if new == 0 or old + new > self.context:
            raise ValueError(f"{old} and {new} are not within 1 … {self.context}")
        place = torch.arange(old, old + new, device=ids.device).expand(batch, new)
        x = self.drop(self.token_embedding(ids) + self.position_embedding(place))
        hidden = torch.arange(old + new) > place[0][:, None]
        hidden = hidden.expand(batch, new, old + new)
        if real is not None:
            hidden = hidden | ~real[:, None, :]
        hidden = hidden.repeat_interleave(self.heads, 0)
        keys, values = [], []
        for i, block in enumerate(self.blocks):
            q, k, v = (self._fold(y) for y in block.attn.qkv(block.norm1(x)).tensor_split(3, dim=2))
            if past:
                k, v = torch.cat([past.keys[i], k], 1), torch.cat([past.values[i], v], 1)
            keys.append(k)
            values.append(v)
            bias = torch.zeros(hidden.shape, dtype=x.dtype).masked_fill(hidden, -1e9)
            scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=q.shape[2] ** -0.5)
            y = torch.bmm(scores.softmax(2), v)
            x = x + block.attn.out(y.view(batch, self.heads, new, -1).permute(0, 2, 1, 3).reshape(x.shape))
            x = x + block.mlp(block.norm2(x))
        return self.norm(x), Past(old + new, tuple(keys), tuple(values))

    def _fold(self, y):
        """(batch, time, d_model) → (batch · heads, time, head_dim)."""
        batch, time, d = y.shape
        return (
            y.view(batch, time, self.heads, d // self.heads)
            .transpose(1, 2)
            .reshape(-1, time, d // self.heads)
        )

    def forward(self, ids):
        return self.body(ids)[0] @ self.token_embedding.weight.t()


def loss(model, ids):
    length = ids.shape[1]
    if length < 2:
        raise ValueError(f"{length} tokens")
    log_probs = model(ids).log_softmax(2)
    picked = torch.take_along_dim(log_probs[:, : length - 1], ids[:, 1:].unsqueeze(2), dim=2)
    return picked.mean().neg()


def train(model, ids, *, steps, lr):
    optimizer = torch.optim.AdamW(params=list(model.parameters()), lr=lr)
    curve = []
    for _ in range(steps):
        model.zero_grad()
        value = loss(model, ids)
        curve += [float(value)]
        value.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.cat([g.flatten() for g in grads]).norm().item()
        for g in grads:
            g.mul_(1.0 / max(1.0, norm))
        optimizer.step()
    return curve


@torch.no_grad()
def generate(model, ids, count, *, generator=None, temperature=1.0):
    if ids.shape[1] == 0 or count < 0 or temperature < 0:
        raise ValueError("cannot go on")
    if count == 0:
        return ids.clone()
    grown = torch.cat([ids, _next(model(ids[:, -model.context :])[:, -1], generator, temperature)], 1)
    return generate(model, grown, count - 1, generator=generator, temperature=temperature)


def _next(logits, generator, temperature):
    tokens = []
    for row in logits.flip(0):
        if generator is None or temperature == 0:
            tokens.append(torch.argmax(row))
        else:
            tokens.append(torch.multinomial((row * temperature).softmax(0), 1, generator=generator)[0])
    return torch.stack(tokens[::-1])[:, None]


def extend(model, ids, cache=None):
    states, past = model.body(ids, cache)
    return states @ model.token_embedding.weight.t(), past


@torch.no_grad()
def generate_cached(model, ids, count, *, generator=None, temperature=1.0):
    if ids.shape[1] == 0 or count < 0 or temperature < 0:
        raise ValueError("cannot go on")
    past, text = None, ids.clone()
    while text.shape[1] < ids.shape[1] + count:
        if past is not None and past.length < model.context:
            logits, past = extend(model, text[:, -1:], past)
        else:
            logits, past = extend(model, text[:, -model.context :])
        text = torch.cat([text, _next(logits[:, -1], generator, temperature)], 1)
    return text


class Classifier(nn.Module):
    def __init__(self, gpt, n_classes):
        super().__init__()
        self.gpt = gpt
        self.head = nn.Linear(gpt.norm.normalized_shape[-1], n_classes, dtype=gpt.norm.weight.dtype)

    def forward(self, ids, lengths):
        if lengths.dim() != 1 or lengths.size(0) != ids.size(0):
            raise ValueError("lengths must be (batch,)")
        if (lengths <= 0).any() or (lengths > ids.size(1)).any():
            raise ValueError("lengths must be within 1 … time")
        real = torch.arange(ids.size(1))[None] < lengths[:, None]
        states, _ = self.gpt.body(ids, real=real | (torch.arange(ids.size(1)) == 0))
        return torch.vmap(lambda text, n: text.index_select(0, n[None] - 1)[0])(self.head(states), lengths)
