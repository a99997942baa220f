"""With a window, only the keys in it are touched: each token gathers its own. Without one, the sums over keys are
carried on key by key, as in FlashAttention. Tables become one matrix of rotations a row."""

import torch
from torch import nn


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, n_kv_heads=None, causal=False, rope=None, window=None):
        super().__init__()
        shared = n_heads if n_kv_heads is None else n_kv_heads
        if d_model < 1 or n_heads < 1 or shared < 1 or d_model % n_heads or n_heads % shared:
            raise ValueError(f"d_model {d_model}, n_heads {n_heads}, n_kv_heads {n_kv_heads}")
        if window is not None and (window < 1 or causal is not True):
            raise ValueError(f"window {window} and causal {causal}")
        self.n_heads, self.shared, self.dim = n_heads, shared, d_model // n_heads
        self.causal, self.window, self.turns = causal, window, None
        if rope is not None:
            cos, sin = rope
            if cos.shape != sin.shape or 2 * cos.shape[1] != self.dim:
                raise ValueError(f"cos {cos.shape}, sin {sin.shape}, head_dim {self.dim}")
            c, s = torch.diag_embed(cos.double()), torch.diag_embed(sin.double())
            self.turns = torch.cat([torch.cat([c, -s], 2), torch.cat([s, c], 2)], 1)
        self.wq = nn.Linear(d_model, d_model, bias=False)
        self.wk = nn.Linear(d_model, shared * self.dim, bias=False)
        self.wv = nn.Linear(d_model, shared * self.dim, bias=False)
        self.wo = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x, *, positions=None):
        if x.dim() != 3 or x.size(2) != self.n_heads * self.dim:
            raise ValueError(f"x {tuple(x.shape)}")
        batch, time, _ = x.shape
        wide = torch.promote_types(x.dtype, torch.float32)
        q, k, v = (w(x).to(wide).unflatten(2, (-1, self.dim)) for w in (self.wq, self.wk, self.wv))
        if self.turns is not None:
            turns = self.turns_of(batch, time, positions).to(wide)
            q, k = (torch.einsum("btij,bthj->bthi", turns.expand(batch, -1, -1, -1), y) for y in (q, k))
        index = torch.arange(self.n_heads) // (self.n_heads // self.shared)
        q, k, v = q * self.dim**-0.5, k[:, :, index], v[:, :, index]
        out = self.gathered(q, k, v) if self.window is not None else self.carried(q, k, v)
        return self.wo(out.flatten(2).to(x.dtype))

    def gathered(self, q, k, v):
        """(batch, time, heads, window, dim) of keys and values."""
        time = q.shape[1]
        places = torch.arange(time)[:, None] - torch.arange(min(self.window, time))
        k, v = (y[:, places.clamp(min=0)].transpose(2, 3) for y in (k, v))
        scores = (q.unsqueeze(3) * k).sum(-1).masked_fill((places < 0).unsqueeze(1), float("-inf"))
        return (scores.softmax(-1).unsqueeze(-1) * v).sum(3)

    def carried(self, q, k, v):
        time = q.shape[1]
        top = total = mixed = None
        for j in range(time):
            score = (q * k[:, j : j + 1]).sum(-1, keepdim=True)
            if self.causal:
                score = score.masked_fill(torch.arange(time)[:, None, None] < j, float("-inf"))
            if top is None:  # the first token is seen by all
                top, total, mixed = score, torch.ones_like(score), v[:, :1].expand_as(q)
                continue
            high = torch.maximum(top, score)
            keep, new = (top - high).exp(), (score - high).exp()
            top, total, mixed = high, total * keep + new, mixed * keep + new * v[:, j : j + 1]
        return mixed / total

    def turns_of(self, batch, time, positions):
        length = len(self.turns)
        if positions is None:
            if time > length:
                raise ValueError(f"x has {time} tokens, the tables {length} rows")
            return self.turns[:time].unsqueeze(0)
        shape = tuple(positions.shape)
        if shape != (time,) and shape != (batch, time):
            raise ValueError(f"positions {shape}")
        if bool(((positions < 0) | (positions > length - 1)).any()):
            raise ValueError(f"positions {positions}")
        return self.turns[positions.long()].view(-1, time, self.dim, self.dim)
