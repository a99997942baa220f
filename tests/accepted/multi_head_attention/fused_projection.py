"""One product for q, k and v, keys turned after they are repeated, everything in float32 or wider until the
end; the sum over heads of each head's own output product, in place of one."""

import torch
from torch import nn

from reference.attention import attention
from reference.rope import apply_rope


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, n_kv_heads=None, causal=False, rope=None, window=None):
        super().__init__()
        if n_kv_heads is None:
            n_kv_heads = n_heads
        if d_model < 1 or n_heads < 1 or n_kv_heads < 1 or d_model % n_heads or n_heads % n_kv_heads:
            raise ValueError(f"d_model {d_model}, n_heads {n_heads}, n_kv_heads {n_kv_heads}")
        D = d_model // n_heads
        if rope is not None:
            cos, sin = rope
            if cos.shape != sin.shape or cos.shape[1] != D / 2:
                raise ValueError(f"cos {cos.shape}, sin {sin.shape}, head_dim {D}")
        if window is not None and (window <= 0 or causal is False):
            raise ValueError(f"window {window}")
        self.h, self.kv, self.d, self.causal, self.rope, self.window = (
            n_heads,
            n_kv_heads,
            D,
            causal,
            rope,
            window,
        )
        self.wq, self.wo = (nn.Linear(d_model, d_model, bias=False) for _ in range(2))
        self.wk, self.wv = (nn.Linear(d_model, D * n_kv_heads, bias=False) for _ in range(2))

    def forward(self, x, *, positions=None):
        if x.ndim != 3 or x.shape[2] != self.h * self.d:
            raise ValueError(f"x {x.shape}")
        wide = torch.promote_types(x.dtype, torch.float32)
        weight = torch.cat([self.wq.weight, self.wk.weight, self.wv.weight]).to(wide)
        every = (x.to(wide) @ weight.T).reshape(*x.shape[:2], self.h + 2 * self.kv, self.d).movedim(2, 1)
        q, k, v = every.split([self.h, self.kv, self.kv], dim=1)
        index = torch.tensor([i // (self.h // self.kv) for i in range(self.h)])
        k, v = k[:, index], v[:, index]
        if self.rope is not None:
            q, k = apply_rope(q, *self.rope, positions), apply_rope(k, *self.rope, positions)
        rows = torch.arange(x.shape[1])
        mask = None if self.window is None else rows > rows[:, None] - self.window
        out = attention(q, k, v, mask=mask, causal=self.causal)
        # The sum over heads of each head's own product with its columns of wo.
        columns = self.wo.weight.to(wide).unflatten(1, (self.h, self.d))
        return torch.einsum("bhtd,mhd->btm", out, columns).to(x.dtype)
