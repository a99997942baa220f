"""Multi-head attention with grouped keys and values, rotary positions and a sliding window.

Write one nn.Module. It splits d_model into n_heads heads of head_dim = d_model / n_heads channels each.

    MultiHeadAttention(d_model, n_heads, *, n_kv_heads=None, causal=False, rope=None, window=None)
    forward(x, *, positions=None)        x is (batch, time, d_model), and so is the result

- Its parameters are these four, laid out as nn.Linear without a bias lays out its weight, (out, in); its
  state_dict() holds nothing else:
      wq.weight   (n_heads · head_dim, d_model)
      wk.weight   (n_kv_heads · head_dim, d_model)
      wv.weight   (n_kv_heads · head_dim, d_model)
      wo.weight   (d_model, n_heads · head_dim)
  Heads come in order: head h has the rows h · head_dim … (h + 1) · head_dim − 1 of wq, wk and wv, and the
  columns of these numbers of wo. How the weights start out is open.
- Each head attends by softmax(q·k / √head_dim); the heads side by side go through wo. Scores of up to 1e6 in
  size, where the dtype holds them, give finite results, and a token that is not seen never has a weight.
- causal: a token sees itself and the tokens before it in x. Otherwise it sees all tokens.
- rope is a pair of float32 tables (cos, sin), each (length, head_dim / 2), as reference.rope makes them. The
  queries and keys of every head, not the values, are turned by the row of their token, half-split: the
  channels i and i + head_dim / 2, (a, b), become (a · cos − b · sin, a · sin + b · cos). The tables are no
  part of the state dict, and are used as given, whatever made them.
- positions holds the table row of each token, int32 or int64, (time,) for all sequences or (batch, time).
  None stands for 0 … time − 1. It chooses rows of the tables and nothing else: causal and window go by the
  order in x, and without rope positions has no effect.

Part 2. With n_kv_heads there are that many heads of keys and values only, each for n_heads / n_kv_heads
consecutive query heads: of 6 heads with n_kv_heads=2, the heads 0, 1, 2 share the first one. None stands
for n_heads.

Part 3. With window, a token sees the last `window` tokens, itself included.

- The module may be moved to float64, float32, float16 or bfloat16; x has its dtype, and so has the result.
  For half types what is judged is the result: right to a few roundings of the dtype, over 1,030 tokens or
  600 channels, too. Values may be kept in the half type, but sums must not run in it: torch's matmul and
  softmax add up in float32 inside, a running total in bfloat16 does not.
- batch may be 0, every other size is at least 1. x may be non-contiguous and is left alone. Gradients flow to
  x and to the weights by autograd, and weights that are loaded or changed count from the next call on.
- ValueError, with the values received, for
    a d_model, n_heads, n_kv_heads or window below 1; an n_heads that does not divide d_model; an n_kv_heads
    that does not divide n_heads; a window without causal; tables that differ in shape or do not have
    head_dim / 2 columns (all these when the module is made);
    an x that is not (batch, time, d_model); with rope, an x longer than the tables where there are no
    positions, positions of another shape, or one that is no row of the tables.

Example, with d_model 2, n_heads 2, and every weight the identity:

    forward([[[log 3, 0], [0, 1]]])                    first head: q = k = v = log 3, 0 (head_dim is 1)
        → [[[0.8457, 0.5], [0.5493, 0.7311]]]          0.8457 = log 3 · σ(log² 3), 0.5493 = log 3 / 2
    with causal=True
        → [[[1.0986, 0], [0.5493, 0.7311]]]            0.7311 = σ(1)
    with causal=True, window=1
        → [[[1.0986, 0], [0, 1]]]
"""

from jaxtyping import Float, Int
from torch import Tensor, nn


class MultiHeadAttention(nn.Module):
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
        raise NotImplementedError

    def forward(
        self, x: Float[Tensor, "batch time d_model"], *, positions: Int[Tensor, "*batch time"] | None = None
    ) -> Float[Tensor, "batch time d_model"]:
        raise NotImplementedError
