"""Buffers as long as the context, all of them attended to under a mask; beyond the context generate goes on."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Cache = list[tuple[Tensor, Tensor]]


class Tokens:
    def __init__(self, text):
        if not text:
            raise ValueError("an empty text has no characters")
        self.chars = sorted(set(text))
        self.ids = {char: i for i, char in enumerate(self.chars)}

    def __len__(self):
        return len(self.chars)

    def encode(self, text):
        if not set(text) <= self.ids.keys():
            raise ValueError(f"{text!r} has characters other than {''.join(self.chars)!r}")
        return torch.tensor([self.ids[char] for char in text], dtype=torch.long)

    def decode(self, ids):
        if any(not 0 <= i < len(self.chars) for i in ids.tolist()):
            raise ValueError(f"ids {ids.tolist()} must be in [0, {len(self.chars)})")
        return "".join(self.chars[i] for i in ids.tolist())


def attend(q, k, v):
    queries, keys = q.shape[-2], k.shape[-2]
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    past = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    weights = F.softmax(scores.masked_fill(~past, float("-inf")), dim=-1)
    return weights @ v


class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x):
        q, k, v = self.split(x)
        return self.merge(attend(q, k, v))

    def split(self, x):
        batch, time, d_model = x.shape
        shape = batch, time, self.n_heads, d_model // self.n_heads
        return tuple(part.reshape(shape).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))

    def merge(self, y):
        joined = y.transpose(1, 2).flatten(2)
        return self.out(joined)


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.up = nn.Linear(d_model, 4 * d_model)
        self.down = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attn = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x


class GPT(nn.Module):
    def __init__(self, vocab_size, context, d_model, n_heads, n_layers):
        super().__init__()
        sizes = vocab_size, context, d_model, n_heads, n_layers
        if min(sizes) < 1 or d_model % n_heads:
            raise ValueError(f"sizes {sizes} must be positive, and d_model a multiple of n_heads")
        self.context = context
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.position_embedding = nn.Embedding(context, d_model)
        self.blocks = nn.ModuleList(Block(d_model, n_heads) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model)
        self.apply(_initialise)

    def forward(self, ids):
        return self.unembed(self.trunk(ids))

    def trunk(self, ids):
        batch, time = ids.shape
        if not 1 <= time <= self.context:
            raise ValueError(f"ids {(batch, time)} must hold 1 to {self.context} tokens a row")
        positions = torch.arange(time, device=ids.device)
        x = self.token_embedding(ids) + self.position_embedding(positions)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def unembed(self, x):
        return x @ self.token_embedding.weight.T


def loss(model, ids):
    if ids.shape[1] < 2:
        raise ValueError(f"ids {tuple(ids.shape)} hold no next token")
    logits, targets = model(ids)[:, :-1], ids[:, 1:]
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def train(model, ids, *, steps, lr):
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        value = loss(model, ids)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimiser.step()
        losses.append(value.item())
    return losses


@torch.no_grad()
def generate(model, ids, count, *, generator=None, temperature=1.0):
    _check(ids, count, temperature)
    for _ in range(count):
        window = ids[:, -model.context :]
        logits = model(window)[:, -1]
        ids = torch.cat([ids, choose(logits, generator, temperature)], dim=1)
    return ids


def choose(logits, generator, temperature):
    if generator is None or temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    probs = F.softmax(logits / temperature, dim=-1)
    return torch.multinomial(probs, num_samples=1, generator=generator)


class Static:
    """gpt-fast: fixed buffers, all of the context attended to, the unwritten part masked."""

    def __init__(self, model, batch):
        a = model.blocks[0].attn
        d = a.out.in_features
        w = a.out.weight
        self.kv = torch.zeros(
            len(model.blocks), 2, batch, a.n_heads, model.context, d // a.n_heads, dtype=w.dtype
        )
        self.pos = 0
        self.mask = torch.tril(torch.ones(model.context, model.context, dtype=torch.bool))

    def copy(self):
        other = object.__new__(Static)
        other.kv, other.pos, other.mask = self.kv.clone(), self.pos, self.mask
        return other


def _read(model, ids, c):
    t = ids.shape[1]
    if t < 1 or c.pos + t > model.context:
        raise ValueError(f"{c.pos} + {t} > {model.context}")
    at = torch.arange(c.pos, c.pos + t)
    x = model.token_embedding(ids) + model.position_embedding(at)
    for n, block in enumerate(model.blocks):
        q, k, v = block.attn.split(block.norm1(x))
        c.kv[n, 0, :, :, at] = k
        c.kv[n, 1, :, :, at] = v
        y = F.scaled_dot_product_attention(q, c.kv[n, 0], c.kv[n, 1], attn_mask=c.mask[at])
        x = x + block.attn.merge(y)
        x = x + block.mlp(block.norm2(x))
    c.pos += t
    return model.unembed(model.norm(x))


@torch.no_grad()
def extend(model, ids, cache=None):
    c = Static(model, ids.shape[0]) if cache is None else cache.copy()
    return _read(model, ids, c), c


@torch.no_grad()
def generate_cached(model, ids, count, *, generator=None, temperature=1.0):
    _check(ids, count, temperature)
    inside = max(0, min(count, model.context + 1 - ids.shape[1]))
    c = Static(model, ids.shape[0])
    new = ids
    for _ in range(inside):
        new = choose(_read(model, new, c)[:, -1], generator, temperature)
        ids = torch.cat([ids, new], dim=1)
    return generate(model, ids, count - inside, generator=generator, temperature=temperature)


class Classifier(nn.Module):
    def __init__(self, gpt, n_classes):
        super().__init__()
        self.gpt = gpt
        self.head = nn.Linear(gpt.position_embedding.weight.shape[-1], n_classes)

    def forward(self, ids, lengths):
        if lengths.shape != ids.shape[:1]:
            raise ValueError("one length a text")
        if not torch.all((lengths > 0) & (lengths <= ids.shape[1])):
            raise ValueError("lengths")
        every = self.head(self.gpt.trunk(ids))
        return every.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, every.shape[2]))[:, 0]


def _initialise(module):
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def _check(ids, count, temperature):
    if ids.shape[1] < 1 or count < 0 or temperature < 0:
        raise ValueError(f"got ids {tuple(ids.shape)}, count {count} and temperature {temperature}")
