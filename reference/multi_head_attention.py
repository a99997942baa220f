r"""Multi-head attention, with grouped keys and values, rotary positions and a sliding window.

    head_h = attention(x W_q,hᵀ, x W_k,gᵀ, x W_v,gᵀ)        g = ⌊h · n_kv_heads / n_heads⌋
    out    = [head_0, …, head_{n−1}] W_oᵀ                   head_dim = d_model / n_heads

Each head looks at the tokens through a projection of its own, so that one token can attend to several
others for several reasons. All projections of a kind are one matrix product: head h owns the rows
h · head_dim … (h + 1) · head_dim − 1 of the weight, and a reshape tells the heads apart.

Conventions:
- Weights lie as in ``nn.Linear``, (out, in), without bias; heads in order. So do the checkpoints of Llama,
  from which the names come.
- Grouped queries: each of n_kv_heads key-value heads serves n_heads / n_kv_heads consecutive query heads.
  n_kv_heads = n_heads is plain multi-head attention, n_kv_heads = 1 is multi-query attention.
- Rotary tables are handed in, since all layers share them; queries and keys are turned half-split, after
  the projection and before the keys are repeated. ``positions`` chooses their rows and nothing else.
- Half types: values may be kept in them, but sums run in float32, here inside torch's matrix products and in
  ``attention``. The result is right to a few roundings of the dtype, however long the sequence.
- ``window`` counts the token itself: token t sees t − window + 1 … t. Mistral's window of 4096 is this.

Costs O(time · d_model²) for the projections and O(time² · d_model) for the attention, and memory for
time² weights a head. n_kv_heads shrinks the cache of a decoder, not this memory: here the keys are copied
to each head. The window, too, is a mask here, and saves nothing until a kernel skips what it hides.

Source: Vaswani et al., Attention Is All You Need, 2017, arXiv:1706.03762, §3.2.2. Grouped queries: Ainslie
et al., GQA, 2023, arXiv:2305.13245. Window: Jiang et al., Mistral 7B, 2023, arXiv:2310.06825, §2.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from reference.attention import attention
from reference.rope import apply_rope


class MultiHeadAttention(nn.Module):
    """Self-attention of (batch, time, d_model) in ``n_heads`` heads.

    ``rope`` is a pair (cos, sin) as ``rope_tables`` makes it. Raises ValueError if the sizes do not fit.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        n_kv_heads: int | None = None,
        causal: bool = False,
        rope: tuple[Float[Tensor, "length pairs"], Float[Tensor, "length pairs"]] | None = None,
        window: int | None = None,
    ) -> None:
        super().__init__()
        n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        if min(d_model, n_heads, n_kv_heads) < 1 or d_model % n_heads or n_heads % n_kv_heads:
            raise ValueError(f"d_model {d_model}, {n_heads} heads, {n_kv_heads} key-value heads do not fit")
        if window is not None and (window < 1 or not causal):
            raise ValueError(f"window {window} must be at least 1, and causal, which is {causal}, be true")
        self.head_dim = d_model // n_heads
        if rope is not None:
            cos, sin = rope
            if not cos.shape == sin.shape == (len(cos), self.head_dim / 2):
                raise ValueError(
                    f"cos {tuple(cos.shape)} and sin {tuple(sin.shape)} must have {self.head_dim / 2} columns"
                )

        self.repeats, self.causal, self.window = n_heads // n_kv_heads, causal, window
        # Not buffers: moving the module to a half type would round them.
        self.rope = rope
        self.wq = nn.Linear(d_model, n_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(d_model, n_kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(d_model, n_kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(n_heads * self.head_dim, d_model, bias=False)

    def forward(
        self, x: Float[Tensor, "batch time d_model"], *, positions: Int[Tensor, "*batch time"] | None = None
    ) -> Float[Tensor, "batch time d_model"]:
        """Let every token attend to those it may see. ``positions`` are the table rows of the tokens.

        Raises ValueError if the shapes do not fit or a position is no row of the tables.
        """
        if x.ndim != 3 or x.shape[2] != self.wq.in_features:
            raise ValueError(f"x {tuple(x.shape)} is not (batch, time, {self.wq.in_features})")
        q, k, v = (self._split(w(x)) for w in (self.wq, self.wk, self.wv))  # k and v have fewer heads
        if self.rope is not None:
            cos, sin = (table.to(x.device) for table in self.rope)
            q, k = (apply_rope(heads, cos, sin, positions) for heads in (q, k))
        k, v = (heads.repeat_interleave(self.repeats, dim=1) for heads in (k, v))
        out = attention(q, k, v, mask=self._near(x.shape[1], x.device), causal=self.causal)
        return self.wo(out.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """(batch, time, heads · head_dim) → (batch, heads, time, head_dim)."""
        return x.unflatten(2, (-1, self.head_dim)).transpose(1, 2)

    def _near(self, time: int, device: torch.device) -> Bool[Tensor, "time time"] | None:
        """Where the key is less than a window older than the query; what is younger, causal hides."""
        if self.window is None:
            return None
        return torch.ones(time, time, dtype=torch.bool, device=device).triu(1 - self.window)
