"""mistake: positions-start-again

Every piece is read from the first position on."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Tokens:
    def __init__(self, text):
        if len(text) == 0:
            raise ValueError("empty")
        self.itos = dict(enumerate(sorted(set(text))))
        self.stoi = {c: i for i, c in self.itos.items()}

    def __len__(self):
        return len(self.itos)

    def encode(self, text):
        try:
            return torch.tensor([self.stoi[c] for c in text], dtype=torch.int64)
        except KeyError as e:
            raise ValueError(str(e)) from None

    def decode(self, ids):
        try:
            return "".join(self.itos[int(i)] for i in ids)
        except KeyError as e:
            raise ValueError(str(e)) from None


class SelfAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x, past=None):
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        if past is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            n = past[0].size(2)
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
            i, j = torch.arange(T)[:, None], torch.arange(n + T)[None]
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=j <= i + n)
        return self.out(y.transpose(1, 2).contiguous().view(B, T, C)), (k, v)


class FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.act, self.down = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)

    def forward(self, x):
        return self.down(self.act(self.up(x)))


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = SelfAttention(width, heads), FeedForward(width)

    def forward(self, x, past=None):
        y, kept = self.attn(self.norm1(x), past)
        x = x + y
        return x + self.mlp(self.norm2(x)), kept


class GPT(nn.Module):
    def __init__(self, vocab_size, context, d_model, n_heads, n_layers):
        super().__init__()
        for size in (vocab_size, context, d_model, n_heads, n_layers):
            if size <= 0:
                raise ValueError(f"{size}")
        if d_model % n_heads != 0:
            raise ValueError(f"{d_model} {n_heads}")
        self.context = context
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.position_embedding = nn.Embedding(context, d_model)
        self.blocks = nn.ModuleList()
        for _ in range(n_layers):
            self.blocks.append(Layer(d_model, n_heads))
        self.norm = nn.LayerNorm(d_model)
        self.lm_head = nn.Linear(d_model, vocab_size, bias=False)
        self.lm_head.weight = self.token_embedding.weight
        for name, p in self.named_parameters():
            if p.dim() == 2:
                torch.nn.init.trunc_normal_(p, std=0.02)
            elif name.endswith("bias"):
                p.data.zero_()

    def states(self, ids, past=None):
        start = past[0][0].size(2) if past else 0
        stop = start + ids.size(1)
        if ids.size(1) == 0 or stop > self.context:
            raise ValueError(f"{start} + {ids.size(1)} > {self.context}")
        x = self.token_embedding(ids) + self.position_embedding.weight[: ids.size(1)]
        kept = []
        for i, layer in enumerate(self.blocks):
            x, kv = layer(x, past[i] if past else None)
            kept.append(kv)
        return self.norm(x), tuple(kept)

    def forward(self, ids):
        return self.lm_head(self.states(ids)[0])


def loss(model, ids):
    if ids.size(1) < 2:
        raise ValueError(f"{tuple(ids.shape)}")
    logits = model(ids[:, :-1])
    return F.cross_entropy(logits.reshape(-1, logits.size(-1)), ids[:, 1:].reshape(-1))


def train(model, ids, *, steps, lr):
    opt = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    history = [0.0] * steps
    for i in range(steps):
        l = loss(model, ids)
        history[i] = float(l.detach())
        opt.zero_grad(set_to_none=True)
        l.backward()
        torch.nn.utils.clip_grad_norm_(list(model.parameters()), 1.0)
        opt.step()
    return history


def pick(logits, generator, temperature):
    if generator is None or temperature == 0:
        return logits.max(-1).indices[:, None]
    return torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator)


def check(ids, count, temperature):
    if ids.size(1) == 0 or count < 0 or temperature < 0:
        raise ValueError(f"{tuple(ids.shape)} {count} {temperature}")


def generate(model, ids, count, *, generator=None, temperature=1.0):
    check(ids, count, temperature)
    mode = model.training
    model.eval()
    with torch.no_grad():
        for _ in range(count):
            cond = ids if ids.size(1) <= model.context else ids[:, -model.context :]
            ids = torch.cat((ids, pick(model(cond)[:, -1, :], generator, temperature)), dim=1)
    model.train(mode)
    return ids


def extend(model, ids, cache=None):
    x, cache = model.states(ids, cache)
    return model.lm_head(x), cache


def generate_cached(model, ids, count, *, generator=None, temperature=1.0):
    check(ids, count, temperature)
    cache = None
    with torch.inference_mode():
        for _ in range(count):
            if cache is None or cache[0][0].size(2) == model.context:
                logits, cache = extend(model, ids[:, -model.context :])
            else:
                logits, cache = extend(model, ids[:, -1:], cache)
            ids = torch.cat((ids, pick(logits[:, -1], generator, temperature)), 1)
    return ids


class Classifier(nn.Module):
    def __init__(self, gpt, n_classes):
        super().__init__()
        self.gpt = gpt
        self.head = nn.Linear(gpt.norm.normalized_shape[0], n_classes)

    def forward(self, ids, lengths):
        if (
            lengths.dim() != 1
            or lengths.numel() != ids.size(0)
            or lengths.min() < 1
            or lengths.max() > ids.size(1)
        ):
            raise ValueError(f"{lengths.tolist()} {tuple(ids.shape)}")
        x, _ = self.gpt.states(ids)
        index = (lengths.long() - 1)[:, None, None].expand(-1, 1, x.size(-1))
        return self.head(x.gather(1, index).squeeze(1))
