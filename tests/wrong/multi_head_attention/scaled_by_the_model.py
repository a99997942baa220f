"""mistake: root-of-d-model

One loop over the heads, each with its slice of the weights; softmax written out.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, n_kv_heads=None, causal=False, rope=None, window=None):
        super().__init__()
        kv = n_heads if n_kv_heads is None else n_kv_heads
        if d_model <= 0 or n_heads <= 0 or kv <= 0 or d_model % n_heads != 0 or n_heads % kv != 0:
            raise ValueError(f"d_model={d_model}, n_heads={n_heads}, n_kv_heads={n_kv_heads}")
        if window is not None and (window <= 0 or not causal):
            raise ValueError(f"window={window}, causal={causal}")
        self.d_model, self.n_heads, self.kv, self.dim = d_model, n_heads, kv, d_model // n_heads
        self.causal, self.window = causal, window
        if rope is not None:
            cos, sin = rope
            if cos.shape != sin.shape or cos.size(1) * 2 != self.dim:
                raise ValueError(f"cos {tuple(cos.shape)}, sin {tuple(sin.shape)}")
        self.rope = rope
        self.wq = nn.Linear(d_model, d_model, bias=False)
        self.wk = nn.Linear(d_model, kv * self.dim, bias=False)
        self.wv = nn.Linear(d_model, kv * self.dim, bias=False)
        self.wo = nn.Linear(d_model, d_model, bias=False)

    def rotate(self, x, positions):
        cos, sin = self.rope
        time, length = x.shape[1], cos.shape[0]
        if positions is None:
            if time > length:
                raise ValueError(f"{time} tokens, {length} rows")
            positions = torch.arange(time)
        elif positions.shape != (time,) and positions.shape != (x.shape[0], time):
            raise ValueError(f"positions {tuple(positions.shape)}")
        elif positions.min() < 0 or positions.max() >= length:
            raise ValueError(f"positions {positions}")
        cos, sin = cos[positions.long()], sin[positions.long()]
        first, second = x[..., : self.dim // 2], x[..., self.dim // 2 :]
        return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)

    def forward(self, x, *, positions=None):
        if x.dim() != 3 or x.size(-1) != self.d_model:
            raise ValueError(f"x {tuple(x.shape)}")
        time = x.size(1)
        outputs = []
        for head in range(self.n_heads):
            shared = head // (self.n_heads // self.kv)
            mine, theirs = (slice(n * self.dim, (n + 1) * self.dim) for n in (head, shared))
            q = F.linear(x, self.wq.weight[mine])
            k = F.linear(x, self.wk.weight[theirs])
            v = F.linear(x, self.wv.weight[theirs])
            if self.rope is not None and len(x):
                q, k = self.rotate(q, positions), self.rotate(k, positions)
            scores = torch.bmm(q.float() if q.itemsize < 4 else q, (k.float() if k.itemsize < 4 else k).mT)
            scores = scores / math.sqrt(self.d_model)
            if self.causal:
                scores = scores + torch.full((time, time), float("-inf"), dtype=scores.dtype).triu(1)
            if self.window is not None:
                scores = scores + torch.full((time, time), float("-inf"), dtype=scores.dtype).tril(
                    -self.window
                )
            weights = torch.exp(scores - scores.amax(-1, keepdim=True))
            weights = weights / weights.sum(-1, keepdim=True)
            outputs.append(torch.bmm(weights, v.to(weights.dtype)).to(x.dtype))
        return self.wo(torch.cat(outputs, dim=-1))
