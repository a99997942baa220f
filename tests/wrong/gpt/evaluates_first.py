"""mistake: left-evaluating-by-a-refusal"""

from typing import Optional

import torch
import torch.nn as nn


class Tokens:
    def __init__(self, text: str):
        if not text:
            raise ValueError("cannot build a vocabulary from an empty text")
        self.vocab = {ch: i for i, ch in enumerate(sorted(list(set(text))))}
        self.ids_to_tokens = {i: ch for ch, i in self.vocab.items()}

    def __len__(self):
        return len(self.vocab)

    def encode(self, text):
        unknown = set(text) - self.vocab.keys()
        if unknown:
            raise ValueError(f"unknown characters {unknown}")
        return torch.LongTensor([self.vocab[c] for c in text])

    def decode(self, ids):
        try:
            return "".join(self.ids_to_tokens[i.item()] for i in ids)
        except KeyError as e:
            raise ValueError(f"unknown id {e}") from None


class DynamicCache:
    def __init__(self):
        self.key_cache: list = []
        self.value_cache: list = []

    def copy(self):
        new = DynamicCache()
        new.key_cache = list(self.key_cache)
        new.value_cache = list(self.value_cache)
        return new

    def get_seq_length(self):
        return self.key_cache[0].shape[-2] if self.key_cache else 0

    def update(self, k, v, layer_idx):
        if len(self.key_cache) <= layer_idx:
            self.key_cache.append(k)
            self.value_cache.append(v)
        else:
            self.key_cache[layer_idx] = torch.cat([self.key_cache[layer_idx], k], dim=-2)
            self.value_cache[layer_idx] = torch.cat([self.value_cache[layer_idx], v], dim=-2)
        return self.key_cache[layer_idx], self.value_cache[layer_idx]


class GPT2Attention(nn.Module):
    def __init__(self, d_model, n_heads, context, layer_idx):
        super().__init__()
        self.register_buffer(
            "bias",
            torch.tril(torch.ones((context, context), dtype=torch.bool)).view(1, 1, context, context),
            persistent=False,
        )
        self.embed_dim = d_model
        self.num_heads = n_heads
        self.head_dim = d_model // n_heads
        self.layer_idx = layer_idx
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def _split_heads(self, t):
        return t.view(t.size()[:-1] + (self.num_heads, self.head_dim)).permute(0, 2, 1, 3)

    def _merge_heads(self, t):
        t = t.permute(0, 2, 1, 3).contiguous()
        return t.view(t.size()[:-2] + (self.embed_dim,))

    def forward(self, hidden_states, layer_past: Optional[DynamicCache] = None):
        query, key, value = self.qkv(hidden_states).split(self.embed_dim, dim=2)
        query, key, value = map(self._split_heads, (query, key, value))
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer_idx)
        attn_weights = torch.matmul(query, key.transpose(-1, -2))
        attn_weights = attn_weights / torch.full([], value.size(-1) ** 0.5, dtype=attn_weights.dtype)
        q_len, k_len = query.size(-2), key.size(-2)
        causal_mask = self.bias[:, :, k_len - q_len : k_len, :k_len]
        mask_value = torch.full([], torch.finfo(attn_weights.dtype).min, dtype=attn_weights.dtype)
        attn_weights = torch.where(causal_mask, attn_weights, mask_value)
        attn_weights = nn.functional.softmax(attn_weights, dim=-1)
        return self.out(self._merge_heads(torch.matmul(attn_weights, value)))


class GPT2MLP(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.up = nn.Linear(d, 4 * d)
        self.act = nn.GELU()
        self.down = nn.Linear(4 * d, d)

    def forward(self, x):
        return self.down(self.act(self.up(x)))


class GPT2Block(nn.Module):
    def __init__(self, d, h, c, i):
        super().__init__()
        self.norm1 = nn.LayerNorm(d, eps=1e-5)
        self.attn = GPT2Attention(d, h, c, i)
        self.norm2 = nn.LayerNorm(d, eps=1e-5)
        self.mlp = GPT2MLP(d)

    def forward(self, hidden_states, layer_past=None):
        residual = hidden_states
        hidden_states = self.attn(self.norm1(hidden_states), layer_past) + residual
        residual = hidden_states
        return residual + self.mlp(self.norm2(hidden_states))


class GPT(nn.Module):
    def __init__(self, vocab_size, context, d_model, n_heads, n_layers):
        super().__init__()
        for name, n in dict(
            vocab_size=vocab_size, context=context, d_model=d_model, n_heads=n_heads, n_layers=n_layers
        ).items():
            if n < 1:
                raise ValueError(f"{name} must be at least 1, got {n}")
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} not divisible by {n_heads}")
        self.context = context
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.position_embedding = nn.Embedding(context, d_model)
        self.blocks = nn.ModuleList([GPT2Block(d_model, n_heads, context, i) for i in range(n_layers)])
        self.norm = nn.LayerNorm(d_model, eps=1e-5)
        self.lm_head = nn.Linear(d_model, vocab_size, bias=False)
        self.lm_head.weight = self.token_embedding.weight
        self.apply(self._init_weights)

    @staticmethod
    def _init_weights(module):
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(mean=0.0, std=0.02)
            if module.bias is not None:
                module.bias.data.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.data.normal_(mean=0.0, std=0.02)
        elif isinstance(module, nn.LayerNorm):
            module.bias.data.zero_()
            module.weight.data.fill_(1.0)

    def transformer(self, input_ids, past=None):
        past_length = past.get_seq_length() if past is not None else 0
        n = input_ids.size(-1)
        if n == 0:
            raise ValueError("no tokens")
        if past_length + n > self.context:
            raise ValueError(f"{past_length} + {n} tokens exceed {self.context}")
        position_ids = torch.arange(
            past_length, past_length + n, dtype=torch.long, device=input_ids.device
        ).unsqueeze(0)
        hidden = self.token_embedding(input_ids) + self.position_embedding(position_ids)
        for block in self.blocks:
            hidden = block(hidden, past)
        return self.norm(hidden)

    def forward(self, ids):
        return self.lm_head(self.transformer(ids))


def loss(model, ids):
    if ids.size(1) < 2:
        raise ValueError("need two tokens")
    logits = model(ids)
    shift_logits = logits[..., :-1, :].contiguous()
    shift_labels = ids[..., 1:].contiguous()
    return nn.CrossEntropyLoss()(shift_logits.view(-1, shift_logits.size(-1)), shift_labels.view(-1))


def train(model, ids, *, steps, lr):
    was = model.training
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True)
    history = []
    for _ in range(steps):
        value = loss(model, ids)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
        history.append(value.detach().item())
    model.train(was)
    return history


class Sampler:
    def __init__(self, generator, temperature):
        self.generator, self.temperature = generator, temperature

    def __call__(self, logits):
        if self.generator is None or self.temperature == 0.0:
            return torch.argmax(logits, dim=-1)
        probs = nn.functional.softmax(logits / self.temperature, dim=-1)
        return torch.multinomial(probs, num_samples=1, generator=self.generator).squeeze(1)


def _validate(ids, count, temperature):
    if ids.size(1) == 0:
        raise ValueError("empty prompt")
    if count < 0:
        raise ValueError("count")
    if temperature < 0:
        raise ValueError(f"temperature has to be positive, got {temperature}")


@torch.inference_mode()
def generate(model, ids, count, *, generator=None, temperature=1.0):
    was = model.training
    model.eval()
    _validate(ids, count, temperature)
    sampler = Sampler(generator, temperature)
    input_ids = ids
    for _ in range(count):
        cond = input_ids if input_ids.size(1) <= model.context else input_ids[:, -model.context :]
        next_tokens = sampler(model(cond)[:, -1, :])
        input_ids = torch.cat([input_ids, next_tokens[:, None]], dim=-1)
    model.train(was)
    return input_ids


def extend(model, ids, cache=None):
    cache = DynamicCache() if cache is None else cache.copy()
    hidden = model.transformer(ids, cache)
    return model.lm_head(hidden), cache


@torch.inference_mode()
def generate_cached(model, ids, count, *, generator=None, temperature=1.0):
    _validate(ids, count, temperature)
    sampler = Sampler(generator, temperature)
    input_ids, past = ids, None
    for _ in range(count):
        window = input_ids[:, -model.context :]
        if past is None or input_ids.size(1) > model.context:
            past = None
            new = window
        else:
            new = window[:, -1:]
        logits, past = extend(model, new, past)
        input_ids = torch.cat([input_ids, sampler(logits[:, -1])[:, None]], dim=-1)
    return input_ids


class Classifier(nn.Module):
    def __init__(self, gpt, n_classes):
        super().__init__()
        if n_classes < 1:
            raise ValueError("n_classes must be positive")
        self.gpt = gpt
        self.head = nn.Linear(gpt.norm.weight.numel(), n_classes, bias=True)
        self.head.weight.data.normal_(mean=0.0, std=0.02)

    def forward(self, ids, lengths):
        if lengths.shape != (ids.size(0),):
            raise ValueError("lengths")
        if torch.any(lengths < 1) or torch.any(lengths > ids.size(1)):
            raise ValueError("lengths out of range")
        logits = self.head(self.gpt.transformer(ids))
        return logits[torch.arange(ids.size(0)), lengths - 1]
