"""PyTorch's attention with enable_gqa and an additive mask, heads split by chunk and cat; complex rope."""

import torch
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention


class Weight(nn.Module):
    def __init__(self, out, into):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, into) / into**0.5)


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, n_kv_heads=None, causal=False, rope=None, window=None):
        super().__init__()
        kv = n_kv_heads if n_kv_heads is not None else n_heads
        if any(n < 1 for n in (d_model, n_heads, kv, 1 if window is None else window)):
            raise ValueError(f"{d_model} {n_heads} {kv} {window}")
        if (
            d_model != d_model // n_heads * n_heads
            or n_heads != n_heads // kv * kv
            or (window and not causal)
        ):
            raise ValueError(f"{d_model} {n_heads} {kv} {window} {causal}")
        self.n_heads, self.kv, self.d = n_heads, kv, d_model // n_heads
        self.causal, self.window = causal, window
        self.turns = None
        if rope is not None:
            if rope[0].size() != rope[1].size() or rope[0].size(1) * 2 != self.d:
                raise ValueError(f"{rope[0].size()} {rope[1].size()} {self.d}")
            self.turns = torch.complex(*(t.double() for t in rope))
        self.wo = Weight(d_model, d_model)
        self.wv = Weight(kv * self.d, d_model)
        self.wk = Weight(kv * self.d, d_model)
        self.wq = Weight(d_model, d_model)

    def heads(self, x, weight):
        return torch.stack(linear(x, weight).split(self.d, dim=2), dim=1)

    def turn(self, x, positions):
        rows = torch.arange(x.size(2)) if positions is None else positions
        if list(rows.shape) not in ([x.size(2)], [x.size(0), x.size(2)]):
            raise ValueError(f"{rows.shape}")
        if ((rows >= len(self.turns)) | (rows < 0)).any():
            raise ValueError(f"{rows}")
        by = self.turns[rows.long()]
        by = by if by.ndim == 2 else by[:, None]
        y = torch.complex(*x.double().chunk(2, dim=-1)) * by
        return torch.cat([y.real, y.imag], dim=-1).to(x.dtype)

    def forward(self, x, *, positions=None):
        if x.ndim != 3 or x.shape[2] != self.n_heads * self.d:
            raise ValueError(f"{x.shape}")
        q, k, v = self.heads(x, self.wq.weight), self.heads(x, self.wk.weight), self.heads(x, self.wv.weight)
        if self.turns is not None:
            q, k = self.turn(q, positions), self.turn(k, positions)
        T, bias = x.shape[1], None
        if self.window is not None:
            bias = torch.full((T, T), -torch.inf).triu(1) + torch.full((T, T), -torch.inf).tril(-self.window)
            bias = bias.to(x.dtype)
        out = scaled_dot_product_attention(
            q, k, v, attn_mask=bias, is_causal=self.causal and bias is None, enable_gqa=self.kv < self.n_heads
        )
        return linear(torch.cat(out.unbind(1), dim=-1), self.wo.weight)
