"""mistake: causal-whenever-there-are-several"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Config:
    vocab_size: int
    context: int
    d_model: int
    n_heads: int
    n_layers: int

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{field.name} must be an int")
            if value < 1:
                raise ValueError(f"{field.name} must be >= 1, not {value}")
        if self.d_model % self.n_heads != 0:
            raise ValueError(f"{self.n_heads=} does not divide {self.d_model=}")


class Tokens:
    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError("text")
        if not text:
            raise ValueError("vocabulary would be empty")
        self._alphabet: tuple[str, ...] = tuple(sorted(frozenset(text)))
        self._index = {c: i for i, c in enumerate(self._alphabet)}

    def __len__(self) -> int:
        return len(self._alphabet)

    def encode(self, text: str) -> Tensor:
        missing = sorted({c for c in text if c not in self._index})
        if missing:
            raise ValueError(f"not in the vocabulary: {missing}")
        return torch.tensor([self._index[c] for c in text], dtype=torch.int64)

    def decode(self, ids: Tensor) -> str:
        if ids.ndim != 1:
            raise ValueError(f"expected one dimension, got {tuple(ids.shape)}")
        bad = ids[(ids < 0) | (ids >= len(self))]
        if bad.numel() > 0:
            raise ValueError(f"unknown ids {bad.tolist()}")
        return "".join(self._alphabet[i] for i in ids.tolist())


class LayerCache(NamedTuple):
    keys: Tensor
    values: Tensor


@dataclasses.dataclass(frozen=True)
class KVCache:
    layers: tuple[LayerCache, ...]

    def __len__(self) -> int:
        return self.layers[0].keys.size(2)

    @property
    def batch(self) -> int:
        return self.layers[0].keys.size(0)


class SelfAttention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.out = nn.Linear(config.d_model, config.d_model)

    def forward(self, x: Tensor, past: LayerCache | None) -> tuple[Tensor, LayerCache]:
        q, k, v = (t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        if past is None:
            now = LayerCache(k, v)
        else:
            now = LayerCache(torch.cat([past.keys, k], 2), torch.cat([past.values, v], 2))
        new = q.size(2)
        mixed = F.scaled_dot_product_attention(q, now.keys, now.values, is_causal=new > 1)
        return self.out(mixed.transpose(1, 2).flatten(2)), now


class Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        d = config.d_model
        self.norm1 = nn.LayerNorm(d)
        self.attn = SelfAttention(config)
        self.norm2 = nn.LayerNorm(d)
        self.mlp = nn.Sequential(
            OrderedDict(up=nn.Linear(d, 4 * d), act=nn.GELU(approximate="none"), down=nn.Linear(4 * d, d))
        )

    def forward(self, x: Tensor, past: LayerCache | None = None) -> tuple[Tensor, LayerCache]:
        delta, now = self.attn(self.norm1(x), past)
        x = x + delta
        return x + self.mlp(self.norm2(x)), now


class GPT(nn.Module):
    def __init__(self, vocab_size: int, context: int, d_model: int, n_heads: int, n_layers: int) -> None:
        super().__init__()
        self.config = config = Config(vocab_size, context, d_model, n_heads, n_layers)
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.position_embedding = nn.Embedding(context, d_model)
        self.blocks = nn.ModuleList([Block(config) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        self.reset_parameters()

    @property
    def context(self) -> int:
        return self.config.context

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for module in self.modules():
            match module:
                case nn.Linear():
                    nn.init.normal_(module.weight, std=0.02)
                    nn.init.zeros_(module.bias)
                case nn.Embedding():
                    nn.init.normal_(module.weight, std=0.02)

    def _check_ids(self, ids: Tensor, start: int) -> None:
        if ids.ndim != 2:
            raise ValueError(f"ids must be (batch, time), got {tuple(ids.shape)}")
        if ids.is_floating_point():
            raise TypeError(f"ids must be integers, got {ids.dtype}")
        if ids.size(1) < 1 or start + ids.size(1) > self.context:
            raise ValueError(f"{ids.size(1)} tokens after {start}; context is {self.context}")
        if ids.numel() and not (0 <= int(ids.min()) and int(ids.max()) < self.config.vocab_size):
            raise IndexError(f"ids outside 0 … {self.config.vocab_size - 1}")

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> tuple[Tensor, KVCache]:
        start = 0 if cache is None else len(cache)
        self._check_ids(ids, start)
        if cache is not None and cache.batch != ids.size(0):
            raise ValueError("batch sizes differ")
        places = torch.arange(start, start + ids.size(1), device=ids.device)
        x = self.token_embedding(ids) + self.position_embedding(places)
        layers = []
        for i, block in enumerate(self.blocks):
            x, layer = block(x, None if cache is None else cache.layers[i])
            layers.append(layer)
        return self.norm(x), KVCache(tuple(layers))

    def unembed(self, x: Tensor) -> Tensor:
        return F.linear(x, self.token_embedding.weight)

    def forward(self, ids: Tensor) -> Tensor:
        return self.unembed(self.hidden(ids)[0])


def loss(model: nn.Module, ids: Tensor) -> Tensor:
    if ids.ndim != 2 or ids.size(1) < 2:
        raise ValueError(f"need (batch, time ≥ 2), got {tuple(ids.shape)}")
    log_probs = F.log_softmax(model(ids), dim=-1)[:, :-1]
    return -torch.take_along_dim(log_probs, ids[:, 1:].unsqueeze(-1), dim=-1).mean()


@dataclasses.dataclass
class Trainer:
    model: nn.Module
    lr: float
    history: list[float] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.lr)

    def step(self, ids: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=False)
        value = loss(self.model, ids)
        value.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, error_if_nonfinite=False)
        self.optimizer.step()
        self.history.append(float(value.detach()))


def train(model: nn.Module, ids: Tensor, *, steps: int, lr: float) -> list[float]:
    trainer = Trainer(model, lr)
    for _ in range(steps):
        trainer.step(ids)
    return trainer.history


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, mode in modes:
            m.training = mode


Policy = Callable[[Tensor], Tensor]


def make_policy(generator, temperature) -> Policy:
    if generator is None or temperature == 0:
        return lambda logits: logits.argmax(-1)

    def gumbel(logits: Tensor) -> Tensor:
        u = torch.rand(logits.shape, generator=generator, dtype=torch.float64).clamp_min(1e-300)
        return (logits.double() / temperature - torch.log(-torch.log(u))).argmax(-1)

    return gumbel


def _loop(model, ids, count, generator, temperature, step) -> Tensor:
    if ids.ndim != 2 or ids.size(1) < 1:
        raise ValueError(f"no prompt: {tuple(ids.shape)}")
    if count < 0:
        raise ValueError(f"{count=}")
    if not temperature >= 0:
        raise ValueError(f"{temperature=}")
    policy = make_policy(generator, temperature)
    pieces = [ids.to(torch.int64)]
    with evaluating(model):
        for _ in range(count):
            text = torch.cat(pieces, 1)
            pieces.append(policy(step(text)).unsqueeze(1))
    return torch.cat(pieces, 1)


def generate(model, ids, count, *, generator=None, temperature=1.0):
    return _loop(
        model, ids, count, generator, temperature, lambda text: model(text[:, -model.context :])[:, -1]
    )


def extend(model: GPT, ids: Tensor, cache: KVCache | None = None) -> tuple[Tensor, KVCache]:
    x, cache = model.hidden(ids, cache)
    return model.unembed(x), cache


class CachedStep:
    def __init__(self, model):
        self.model, self.cache = model, None

    def __call__(self, text: Tensor) -> Tensor:
        if text.size(1) > self.model.context:
            return self.model(text[:, -self.model.context :])[:, -1]
        held = 0 if self.cache is None else len(self.cache)
        logits, self.cache = extend(self.model, text[:, held:], self.cache)
        return logits[:, -1]


def generate_cached(model, ids, count, *, generator=None, temperature=1.0):
    return _loop(model, ids, count, generator, temperature, CachedStep(model))


class Classifier(nn.Module):
    def __init__(self, gpt: GPT, n_classes: int) -> None:
        super().__init__()
        if n_classes < 1:
            raise ValueError(f"{n_classes=}")
        self.gpt = gpt
        self.head = nn.Linear(gpt.config.d_model, n_classes)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        batch, time = ids.shape
        if lengths.shape != (batch,):
            raise ValueError(f"lengths {tuple(lengths.shape)}, batch {batch}")
        if not bool(((1 <= lengths) & (lengths <= time)).all()):
            raise ValueError(f"lengths {lengths.tolist()} outside 1 … {time}")
        longest = int(lengths.max()) if batch else time
        self.gpt._check_ids(ids, 0)
        x, _ = self.gpt.hidden(ids[:, :longest])
        return self.head(x[torch.arange(batch), lengths - 1])
