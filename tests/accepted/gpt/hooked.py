"""A cache object that is copied, additive masks, padding labels, draws by the cumulative sum, a classifier that hooks the norm."""

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


class DynamicCache:
    def __init__(self, layers=()):
        self.layers = list(layers)

    def get_seq_length(self):
        return self.layers[0][0].shape[-2] if self.layers else 0

    def copy(self):
        return DynamicCache(self.layers)

    def update(self, k, v, i):
        if i < len(self.layers):
            pk, pv = self.layers[i]
            self.layers[i] = (torch.cat([pk, k], -2), torch.cat([pv, v], -2))
        else:
            self.layers.append((k, v))
        return self.layers[i]


class SelfAttention(nn.Module):
    def __init__(self, d, h, i):
        super().__init__()
        self.qkv = nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, d)
        self.h, self.i, self.scaling = h, i, (d // h) ** -0.5

    def forward(self, x, cache):
        B, T, D = x.shape
        q, k, v = [z.view(B, T, self.h, -1).transpose(1, 2) for z in self.qkv(x).split(D, -1)]
        if cache is not None:
            k, v = cache.update(k, v, self.i)
        w = torch.matmul(q, k.transpose(2, 3)) * self.scaling
        S = k.shape[-2]
        causal = torch.full((T, S), torch.finfo(w.dtype).min, dtype=w.dtype).triu(S - T + 1)
        w = nn.functional.softmax(w + causal, dim=-1)
        return self.out((w @ v).transpose(1, 2).reshape(B, T, D).contiguous())


class FeedForward(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.up, self.act, self.down = nn.Linear(d, 4 * d), F.gelu, nn.Linear(4 * d, d)

    def forward(self, x):
        return self.down(self.act(self.up(x)))


class DecoderLayer(nn.Module):
    def __init__(self, d, h, i):
        super().__init__()
        self.norm1 = nn.LayerNorm(d, 1e-5)
        self.attn = SelfAttention(d, h, i)
        self.norm2 = nn.LayerNorm(d, 1e-5)
        self.mlp = FeedForward(d)

    def forward(self, x, cache=None):
        residual = x
        x = self.attn(self.norm1(x), cache)
        x = residual + x
        residual = x
        x = self.mlp(self.norm2(x))
        return residual + x


class GPT(nn.Module):
    def __init__(self, vocab_size, context, d_model, n_heads, n_layers):
        nn.Module.__init__(self)
        for s in (vocab_size, context, d_model, n_heads, n_layers):
            if s <= 0:
                raise ValueError(s)
        if d_model % n_heads:
            raise ValueError((d_model, n_heads))
        self.context = context
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.position_embedding = nn.Embedding(context, d_model)
        self.blocks = nn.ModuleList([DecoderLayer(d_model, n_heads, i) for i in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        self.post_init()

    @torch.no_grad()
    def post_init(self):
        for m in self.modules():
            match m:
                case nn.Linear():
                    m.weight.normal_(0, 0.02)
                    m.bias.zero_()
                case nn.Embedding():
                    m.weight.normal_(0, 0.02)

    def forward(self, ids, past_key_values=None, use_cache=False):
        seen = past_key_values.get_seq_length() if past_key_values else 0
        if ids.shape[1] == 0:
            raise ValueError("empty")
        if seen + ids.shape[1] > self.context:
            raise ValueError("too long")
        cache = past_key_values.copy() if past_key_values else (DynamicCache() if use_cache else None)
        pos = torch.arange(seen, seen + ids.shape[1]).unsqueeze(0).expand(ids.shape)
        x = self.token_embedding(ids) + self.position_embedding(pos)
        for b in self.blocks:
            x = b(x, cache)
        x = self.norm(x)
        logits = F.linear(x, self.token_embedding.weight)
        return (logits, cache) if use_cache else logits


def extend(model, ids, cache=None):
    return model(ids, past_key_values=cache, use_cache=True)


class Classifier(nn.Module):
    """Reads the trunk's last state through a hook on its norm."""

    def __init__(self, gpt, n_classes):
        super().__init__()
        self.gpt = gpt
        self.head = nn.Linear(gpt.norm.weight.numel(), n_classes)
        self.head.to(gpt.norm.weight.dtype)

    def forward(self, ids, lengths):
        if lengths.shape != (ids.shape[0],):
            raise ValueError(f"{lengths.shape}")
        if lengths.lt(1).any() or lengths.gt(ids.shape[1]).any():
            raise ValueError(f"{lengths}")
        kept = []
        handle = self.gpt.norm.register_forward_hook(lambda m, i, o: kept.append(o))
        try:
            self.gpt(ids)
        finally:
            handle.remove()
        return torch.stack([self.head(h[n - 1]) for h, n in zip(kept[0], lengths)])


def loss(model, ids):
    labels = ids.clone()
    if labels.shape[1] < 2:
        raise ValueError("labels")
    logits = model(ids)
    shift_logits = logits[..., :-1, :].contiguous()
    shift_labels = labels[..., 1:].contiguous()
    fct = nn.CrossEntropyLoss()
    return fct(shift_logits.view(-1, shift_logits.size(-1)), shift_labels.view(-1))


def train(model, ids, *, steps, lr):
    opt = torch.optim.AdamW(
        (p for p in model.parameters()), lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, fused=False
    )
    with torch.enable_grad():
        return [_step(model, ids, opt) for _ in range(steps)]


def _step(model, ids, opt):
    opt.zero_grad(set_to_none=False)
    value = loss(model, ids)
    value.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    torch.nn.utils.clip_grads_with_norm_(list(model.parameters()), 1.0, torch.nn.utils.get_total_norm(grads))
    opt.step()
    return value.detach().cpu().item()


class _Sampling:
    def __init__(self, model, ids, count, generator, temperature):
        if ids.dim() != 2 or ids.shape[1] == 0:
            raise ValueError("ids")
        if count < 0:
            raise ValueError("count")
        if temperature < 0:
            raise ValueError("temperature")
        self.model, self.ids, self.count, self.g, self.t = model, ids, count, generator, temperature

    def next(self, logits):
        if self.g is None or self.t == 0:
            return torch.sort(logits, dim=-1, descending=True, stable=True).indices[:, :1]
        p = torch.exp(torch.log_softmax(logits.float() / self.t, -1))
        u = torch.rand(p.shape[0], 1, generator=self.g)
        return (p.cumsum(-1) <= u).sum(-1, keepdim=True).clamp_max(p.shape[-1] - 1)

    def run(self, read):
        before = [m.training for m in self.model.modules()]
        self.model.eval()
        out = [self.ids]
        try:
            with torch.no_grad():
                for _ in range(self.count):
                    out.append(self.next(read(torch.cat(out, 1))))
        finally:
            for m, t in zip(self.model.modules(), before):
                m.training = t
        return torch.cat(out, 1)


def generate(model, ids, count, *, generator=None, temperature=1.0):
    return _Sampling(model, ids, count, generator, temperature).run(
        lambda text: model(text[:, -model.context :])[:, -1]
    )


def generate_cached(model, ids, count, *, generator=None, temperature=1.0):
    cache, read = None, 0

    def step(text):
        nonlocal cache, read
        if text.shape[1] > model.context:
            cache, read = None, text.shape[1] - model.context
        logits, cache = extend(model, text[:, read:], cache)
        read = text.shape[1]
        return logits[:, -1]

    return _Sampling(model, ids, count, generator, temperature).run(step)
