"""A KV cache: the keys and values of a sequence as it grows, and the attention of new tokens over them.

CacheFull is given. Write the caches and the attention.

    KVCache(batch, n_kv_heads, max_len, head_dim, *, dtype=None, device=None)
                                sizes of at least 1; dtype and device as in torch.empty
    cache.max_len, cache.length how many tokens it has room for, and how many it holds
    cache.append(k, v)          adds n ≥ 0 tokens: k and v are (batch, n_kv_heads, n, head_dim)
    cache.view()                the keys and the values held, oldest first,
                                each (batch, n_kv_heads, length, head_dim)
    cache.clone()               an independent cache that holds the same
    cache.reset()               forgets all tokens, for the next sequence

    attend_with_cache(q, k, v, cache, *, scale=None)
                                appends k and v, n ≥ 1 tokens, and lets their queries attend causally:
                                query i of the n sees all tokens held before, and of the new ones its own
                                and those before it. Scores are multiplied by scale, 1/√head_dim unless
                                given. q and the result are (batch, n_heads, n, head_dim); consecutive
                                query heads share a key-value head: h uses ⌊h · n_kv_heads / n_heads⌋.

- append raises CacheFull if there is no room for all its tokens. ValueError, with the values received, is due
  for a size below 1, for shapes that do not fit the cache or each other, and for an n_heads that n_kv_heads
  does not divide. A call that raises changes nothing.
- The cache's memory is taken when it is made: append copies the new tokens into it and nothing else, and view
  copies nothing (what it gives is the cache's own memory).
- k, v, q and all results have the cache's dtype: float64, float32, float16 or bfloat16; for half types, sums
  run in float32. view returns bit for bit what was appended. Inputs may have any memory layout, are left
  alone, and share no memory with the cache.
- The cache keeps numbers and no graph: what view returns requires no gradient, whatever was appended.
- What was held before a reset, NaN included, has no influence afterwards.

Part 2. WindowKVCache(batch, n_kv_heads, window, head_dim, *, dtype=None, device=None) is for layers in which
a token sees the last `window` tokens only, itself included. It never is full, and has no max_len.

- length counts all tokens since the last reset. view gives the last min(length, window) of them, oldest
  first; it may copy.
- attend_with_cache takes it as well: each query sees the last `window` tokens up to its own, however many
  tokens come at once.
- It never holds memory for more than 2 · window tokens, and append copies nothing but the new tokens.

Example, with one head, head_dim 1, and all keys 0, so that every token averages the values it sees:

    cache = KVCache(1, 1, 4, 1)
    attend_with_cache(q, k, v, cache)      v = 1, 3   →  1, 2       length is 2
    attend_with_cache(q, k, v, cache)      v = 8, 0   →  4, 3       length is 4; any more is CacheFull
    the same with WindowKVCache(1, 1, 2, 1)           →  1, 2, then 5.5, 4; view holds 8, 0
"""

import torch
from jaxtyping import Float
from torch import Tensor


class CacheFull(Exception):
    """The cache has no room for the tokens of an append."""


class KVCache:
    max_len: int
    length: int

    def __init__(
        self,
        batch: int,
        n_kv_heads: int,
        max_len: int,
        head_dim: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        raise NotImplementedError

    def append(
        self,
        k: Float[Tensor, "batch n_kv_heads tokens head_dim"],
        v: Float[Tensor, "batch n_kv_heads tokens head_dim"],
    ) -> None:
        raise NotImplementedError

    def view(
        self,
    ) -> tuple[
        Float[Tensor, "batch n_kv_heads length head_dim"], Float[Tensor, "batch n_kv_heads length head_dim"]
    ]:
        raise NotImplementedError

    def clone(self) -> "KVCache":
        raise NotImplementedError

    def reset(self) -> None:
        raise NotImplementedError


class WindowKVCache:
    window: int
    length: int

    def __init__(
        self,
        batch: int,
        n_kv_heads: int,
        window: int,
        head_dim: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        raise NotImplementedError

    def append(
        self,
        k: Float[Tensor, "batch n_kv_heads tokens head_dim"],
        v: Float[Tensor, "batch n_kv_heads tokens head_dim"],
    ) -> None:
        raise NotImplementedError

    def view(
        self,
    ) -> tuple[
        Float[Tensor, "batch n_kv_heads held head_dim"], Float[Tensor, "batch n_kv_heads held head_dim"]
    ]:
        raise NotImplementedError

    def clone(self) -> "WindowKVCache":
        raise NotImplementedError

    def reset(self) -> None:
        raise NotImplementedError


def attend_with_cache(
    q: Float[Tensor, "batch n_heads tokens head_dim"],
    k: Float[Tensor, "batch n_kv_heads tokens head_dim"],
    v: Float[Tensor, "batch n_kv_heads tokens head_dim"],
    cache: KVCache | WindowKVCache,
    *,
    scale: float | None = None,
) -> Float[Tensor, "batch n_heads tokens head_dim"]:
    raise NotImplementedError
