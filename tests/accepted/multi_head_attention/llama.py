"""As one recalls it from Llama: rotate_half, repeat_kv, an additive mask of the lowest number."""

import torch
import torch.nn.functional as F
from torch import nn


def rotate_half(x):
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def apply_rotary_pos_emb(q, k, cos, sin):
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    qf, kf = (
        q.to(torch.promote_types(q.dtype, torch.float32)),
        k.to(torch.promote_types(k.dtype, torch.float32)),
    )
    return ((qf * cos) + (rotate_half(qf) * sin)).to(q.dtype), ((kf * cos) + (rotate_half(kf) * sin)).to(
        k.dtype
    )


def repeat_kv(hidden_states, n_rep):
    batch, num_key_value_heads, slen, head_dim = hidden_states.shape
    if n_rep == 1:
        return hidden_states
    hidden_states = hidden_states[:, :, None, :, :].expand(batch, num_key_value_heads, n_rep, slen, head_dim)
    return hidden_states.reshape(batch, num_key_value_heads * n_rep, slen, head_dim)


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, n_kv_heads=None, causal=False, rope=None, window=None):
        super().__init__()
        if n_kv_heads is None:
            n_kv_heads = n_heads
        for name, value in (("d_model", d_model), ("n_heads", n_heads), ("n_kv_heads", n_kv_heads)):
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        if d_model % n_heads != 0:
            raise ValueError(f"d_model {d_model} not divisible by n_heads {n_heads}")
        if n_heads % n_kv_heads != 0:
            raise ValueError(f"n_heads {n_heads} not divisible by n_kv_heads {n_kv_heads}")
        if window is not None and window < 1:
            raise ValueError(f"window must be positive, got {window}")
        if window is not None and not causal:
            raise ValueError(f"window={window} needs causal")
        self.head_dim = d_model // n_heads
        if rope is not None:
            if rope[0].shape != rope[1].shape:
                raise ValueError(f"cos {rope[0].shape}, sin {rope[1].shape}")
            if self.head_dim % 2 or rope[0].shape[-1] != self.head_dim // 2:
                raise ValueError(f"tables {rope[0].shape} for head_dim {self.head_dim}")
        self.hidden_size, self.num_heads, self.num_key_value_heads = d_model, n_heads, n_kv_heads
        self.num_key_value_groups = n_heads // n_kv_heads
        self.causal, self.rope, self.sliding_window = causal, rope, window
        self.scaling = self.head_dim**-0.5
        self.wq = nn.Linear(d_model, n_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(d_model, n_kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(d_model, n_kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(n_heads * self.head_dim, d_model, bias=False)

    def forward(self, x, *, positions=None):
        if x.dim() != 3 or x.size(-1) != self.hidden_size:
            raise ValueError(f"expected (batch, time, {self.hidden_size}), got {tuple(x.shape)}")
        bsz, q_len, _ = x.size()
        q = self.wq(x).view(bsz, q_len, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.wk(x).view(bsz, q_len, self.num_key_value_heads, self.head_dim).transpose(1, 2)
        v = self.wv(x).view(bsz, q_len, self.num_key_value_heads, self.head_dim).transpose(1, 2)
        if self.rope is not None:
            cos, sin = self.rope
            if positions is None:
                if q_len > cos.shape[0]:
                    raise ValueError(f"{q_len} tokens, tables of {cos.shape[0]}")
                positions = torch.arange(q_len)
            if positions.dim() == 1:
                if positions.shape[0] != q_len:
                    raise ValueError(f"positions {tuple(positions.shape)}")
                positions = positions.unsqueeze(0)
            elif positions.shape != (bsz, q_len):
                raise ValueError(f"positions {tuple(positions.shape)}")
            if (positions < 0).any() or (positions >= cos.shape[0]).any():
                raise ValueError(f"positions {positions}")
            cos, sin = torch.cat([cos, cos], -1)[positions], torch.cat([sin, sin], -1)[positions]
            q, k = apply_rotary_pos_emb(q, k, cos, sin)
        k, v = repeat_kv(k, self.num_key_value_groups), repeat_kv(v, self.num_key_value_groups)
        attn = torch.matmul(q, k.transpose(2, 3)) * self.scaling
        if self.causal:
            m = torch.full((q_len, q_len), torch.finfo(attn.dtype).min, dtype=attn.dtype).triu(1)
            if self.sliding_window is not None:
                m = m.masked_fill(
                    torch.ones(q_len, q_len).tril(-self.sliding_window).bool(), torch.finfo(attn.dtype).min
                )
            attn = attn + m
        attn = F.softmax(attn, dim=-1, dtype=torch.promote_types(torch.float32, q.dtype)).to(q.dtype)
        out = torch.matmul(attn, v).transpose(1, 2).contiguous().reshape(bsz, q_len, self.hidden_size)
        return self.wo(out)
