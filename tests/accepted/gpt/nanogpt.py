"""As nanoGPT has it: masks in buffers, a head module that shares the table, the loss on a view of the logits."""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


class Tokens:
    def __init__(self, text):
        if not text:
            raise ValueError("empty text")
        self.chars = sorted(set(text))
        self.stoi = {c: i for i, c in enumerate(self.chars)}
        self.itos = dict(enumerate(self.chars))

    def __len__(self):
        return len(self.chars)

    def encode(self, text):
        try:
            return torch.tensor([self.stoi[c] for c in text], dtype=torch.long)
        except KeyError as e:
            raise ValueError(f"unknown character {e}") from e

    def decode(self, ids):
        try:
            return "".join(self.itos[int(i)] for i in ids)
        except KeyError as e:
            raise ValueError(f"unknown id {e}") from e


@dataclass
class Config:
    vocab_size: int
    context: int
    d_model: int
    n_heads: int
    n_layers: int

    def __post_init__(self):
        for k, v in vars(self).items():
            if v < 1:
                raise ValueError(f"{k}={v}")
        if self.d_model % self.n_heads:
            raise ValueError("d_model % n_heads")


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.qkv = nn.Linear(c.d_model, 3 * c.d_model)
        self.out = nn.Linear(c.d_model, c.d_model)
        self.h = c.n_heads
        self.register_buffer(
            "mask", torch.tril(torch.ones(c.context, c.context)).view(1, 1, c.context, c.context)
        )

    def forward(self, x, past=None):
        B, T, C = x.size()
        q, k, v = self.qkv(x).split(C, dim=2)
        q, k, v = (t.view(B, T, self.h, C // self.h).transpose(1, 2) for t in (q, k, v))
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        S = k.size(2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.mask[:, :, S - T : S, :S] == 0, float("-inf"))
        att = F.softmax(att, dim=-1)
        y = (att @ v).transpose(1, 2).contiguous().view(B, T, C)
        return self.out(y), (k, v)


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.up = nn.Linear(c.d_model, 4 * c.d_model)
        self.gelu = nn.GELU()
        self.down = nn.Linear(4 * c.d_model, c.d_model)

    def forward(self, x):
        return self.down(self.gelu(self.up(x)))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm1 = nn.LayerNorm(c.d_model)
        self.attn = Attention(c)
        self.norm2 = nn.LayerNorm(c.d_model)
        self.mlp = MLP(c)

    def forward(self, x, past=None):
        a, present = self.attn(self.norm1(x), past)
        x = x + a
        return x + self.mlp(self.norm2(x)), present


class GPT(nn.Module):
    def __init__(self, vocab_size, context, d_model, n_heads, n_layers):
        super().__init__()
        c = self.config = Config(vocab_size, context, d_model, n_heads, n_layers)
        self.context = context
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.position_embedding = nn.Embedding(context, d_model)
        self.blocks = nn.ModuleList([Block(c) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        self.lm_head = nn.Linear(d_model, vocab_size, bias=False)
        self.lm_head.weight = self.token_embedding.weight
        self.apply(self._init_weights)

    def _init_weights(self, m):
        if isinstance(m, (nn.Linear, nn.Embedding)):
            nn.init.normal_(m.weight, mean=0.0, std=0.02)
        if isinstance(m, nn.Linear) and m.bias is not None:
            nn.init.zeros_(m.bias)

    def hidden(self, ids, past=None):
        n = 0 if past is None else past[0][0].size(2)
        b, t = ids.size()
        if t == 0 or n + t > self.context:
            raise ValueError(f"{n}+{t} tokens, context {self.context}")
        x = self.token_embedding(ids) + self.position_embedding(torch.arange(n, n + t, device=ids.device))
        new = []
        for i, block in enumerate(self.blocks):
            x, kv = block(x, None if past is None else past[i])
            new.append(kv)
        return self.norm(x), new

    def logits(self, x):
        return self.lm_head(x)

    def forward(self, ids):
        return self.logits(self.hidden(ids)[0])


def extend(model, ids, cache=None):
    x, cache = model.hidden(ids, cache)
    return model.logits(x), cache


class Classifier(nn.Module):
    def __init__(self, gpt, n_classes):
        super().__init__()
        if n_classes < 1:
            raise ValueError(n_classes)
        self.gpt = gpt
        self.head = nn.Linear(gpt.token_embedding.weight.size(1), n_classes)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.head.to(gpt.norm.weight.dtype)

    def forward(self, ids, lengths):
        if lengths.shape != ids.shape[:1]:
            raise ValueError("lengths")
        if ((lengths < 1) | (lengths > ids.size(1))).any():
            raise ValueError("lengths out of range")
        x, _ = self.gpt.hidden(ids)
        return self.head(x[torch.arange(len(ids)), lengths - 1])


def loss(model, ids):
    x, y = ids[:, :-1], ids[:, 1:]
    if x.shape[1] < 1:
        raise ValueError("need two tokens")
    logits = model(x)
    B, T, V = logits.shape
    return F.cross_entropy(logits.view(B * T, V), y.contiguous().view(B * T))


def train(model, ids, *, steps, lr):
    model.train()
    opt = torch.optim.AdamW(list(model.parameters()), lr=lr)
    out = []
    while len(out) < steps:
        l = loss(model, ids)
        for p in model.parameters():
            p.grad = None
        l.backward()
        total = torch.sqrt(sum(p.grad.pow(2).sum() for p in model.parameters() if p.grad is not None))
        if total > 1:
            for p in model.parameters():
                if p.grad is not None:
                    p.grad /= total
        opt.step()
        out.append(float(l))
    return out


def _check(ids, count, temperature):
    if ids.shape[1] < 1 or count < 0 or temperature < 0:
        raise ValueError(f"{tuple(ids.shape)} {count} {temperature}")


def _pick(logits, generator, temperature):
    if generator is None or temperature == 0:
        return logits.argmax(-1, keepdim=True)
    return torch.multinomial(F.softmax(logits / temperature, -1), 1, generator=generator)


@torch.no_grad()
def generate(model, ids, count, *, generator=None, temperature=1.0):
    _check(ids, count, temperature)
    for _ in range(count):
        logits = model(ids[:, -model.context :])[:, -1]
        ids = torch.cat([ids, _pick(logits, generator, temperature)], 1)
    return ids


@torch.no_grad()
def generate_cached(model, ids, count, *, generator=None, temperature=1.0):
    _check(ids, count, temperature)
    cache, seen = None, 0
    for _ in range(count):
        if ids.shape[1] > model.context:
            logits, cache = extend(model, ids[:, -model.context :])
        else:
            logits, cache = extend(model, ids[:, seen:], cache)
        seen = ids.shape[1]
        ids = torch.cat([ids, _pick(logits[:, -1], generator, temperature)], 1)
    return ids
