r"""A KV cache, contiguous or a ring, and the attention of new tokens over it.

    token t:    o_t = attention(q_t, [k_0 … k_t], [v_0 … v_t])

In a causal decoder the keys and values of a token never change once it is computed: later tokens cannot
reach back. So they are kept, and a new token costs one row of scores in place of a whole triangle. A prompt
goes in at once (prefill), then token after token (decode); any split gives the same rows.

Conventions:
- Layout (batch, n_kv_heads, slot, head_dim). Tokens of a head lie one after the other, as attention reads
  them, and ``view`` is a slice. The heads are those of grouped queries; the copies for the query heads of a
  group are made when they are read, and never stored.
- All memory is taken at the start. Growing with ``torch.cat`` copies the whole cache for every token, which
  is quadratic in the end, and for a moment holds it twice.
- The new tokens are the last positions of the sequence, so that the causal triangle is aligned to the last
  key: query i of n sees the keys 0 … length − n + i.
- ``WindowKVCache`` is a ring: token t lies in slot t mod window. Of a chunk, the first query sees tokens that
  the last ones push out, so the chunk attends before it is written.
- Keys are stored as they come, rotary positions applied: each is turned once, by its position in the
  sequence, which is ``length`` and not the slot.

Costs a copy of the new tokens for each append. A decode step reads the whole cache,
2 · batch · n_kv_heads · length · head_dim numbers a layer, and does two multiplications or so with each: it
is bound by memory and not by arithmetic, which is what grouped queries and windows are for.

Source: Shazeer, Fast Transformer Decoding, 2019, arXiv:1911.02150, §2.4 (incremental attention and what it
reads); Pope et al., Efficiently Scaling Transformer Inference, 2022, arXiv:2211.05102, §3.3 and Table 1.
The ring: Jiang et al., Mistral 7B, 2023, arXiv:2310.06825, §2 (rolling buffer cache).
"""

import copy

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reference.attention import attention


class CacheFull(Exception):
    """The cache has no room for the tokens of an append."""


class KVCache:
    """Room for ``max_len`` tokens of a batch of sequences, of which ``length`` are taken.

    Raises ValueError if a size is below 1.
    """

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
        self._kv = _room(batch, n_kv_heads, max_len, head_dim, dtype, device)
        self.max_len, self.length = max_len, 0

    def append(
        self,
        k: Float[Tensor, "batch n_kv_heads tokens head_dim"],
        v: Float[Tensor, "batch n_kv_heads tokens head_dim"],
    ) -> None:
        """Add tokens behind those held. Raises ValueError for shapes that do not fit, or CacheFull."""
        _check(self._kv, k, v)
        stop = self.length + k.shape[2]
        if stop > self.max_len:
            raise CacheFull(f"{k.shape[2]} tokens behind {self.length}, there is room for {self.max_len}")
        new = slice(self.length, stop)
        self._kv[0, :, :, new], self._kv[1, :, :, new] = k.detach(), v.detach()
        self.length = stop

    def view(
        self,
    ) -> tuple[
        Float[Tensor, "batch n_kv_heads length head_dim"], Float[Tensor, "batch n_kv_heads length head_dim"]
    ]:
        """The keys and values held, in the cache's own memory."""
        k, v = self._kv[:, :, :, : self.length]
        return k, v

    def clone(self) -> "KVCache":
        """An independent cache that holds the same: another branch of the sequence."""
        return copy.deepcopy(self)

    def reset(self) -> None:
        """Forget all tokens. The memory stays, and is written over."""
        self.length = 0

    def _extended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, None]:
        self.append(k, v)
        return *self.view(), None


class WindowKVCache:
    """A ring of the last ``window`` tokens; ``length`` counts all since the last reset.

    Raises ValueError if a size is below 1.
    """

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
        self._kv = _room(batch, n_kv_heads, window, head_dim, dtype, device)
        self.window, self.length = window, 0

    def append(
        self,
        k: Float[Tensor, "batch n_kv_heads tokens head_dim"],
        v: Float[Tensor, "batch n_kv_heads tokens head_dim"],
    ) -> None:
        """Add tokens, which push out the oldest. Raises ValueError for shapes that do not fit."""
        _check(self._kv, k, v)
        self.length += k.shape[2]
        # Of a chunk longer than the window the first tokens are pushed out at once; no slot is met twice.
        pushed_out = max(k.shape[2] - self.window, 0)
        slots = self._slots(k.shape[2] - pushed_out)
        self._kv[0, :, :, slots] = k[:, :, pushed_out:].detach()
        self._kv[1, :, :, slots] = v[:, :, pushed_out:].detach()

    def view(
        self,
    ) -> tuple[
        Float[Tensor, "batch n_kv_heads held head_dim"], Float[Tensor, "batch n_kv_heads held head_dim"]
    ]:
        """The keys and values of the last tokens, copied into order."""
        k, v = self._kv[:, :, :, self._slots(min(self.length, self.window))]
        return k, v

    def clone(self) -> "WindowKVCache":
        """An independent cache that holds the same: another branch of the sequence."""
        return copy.deepcopy(self)

    def reset(self) -> None:
        """Forget all tokens. The memory stays, and is written over."""
        self.length = 0

    def _slots(self, count: int) -> Tensor:
        """Where the last ``count`` tokens lie, oldest first."""
        return torch.arange(self.length - count, self.length, device=self._kv.device) % self.window

    def _extended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Bool[Tensor, "queries keys"]]:
        # Taken before the append, which writes over keys that the first of the new queries see.
        past_k, past_v = self.view()
        self.append(k, v)
        keys, values = torch.cat((past_k, k), dim=2), torch.cat((past_v, v), dim=2)
        last = keys.shape[2] - k.shape[2]  # the index of the first query's own key
        near = torch.ones(k.shape[2], keys.shape[2], dtype=torch.bool, device=k.device)
        return keys, values, near.triu(last + 1 - self.window)


def attend_with_cache(
    q: Float[Tensor, "batch n_heads tokens head_dim"],
    k: Float[Tensor, "batch n_kv_heads tokens head_dim"],
    v: Float[Tensor, "batch n_kv_heads tokens head_dim"],
    cache: KVCache | WindowKVCache,
    *,
    scale: float | None = None,
) -> Float[Tensor, "batch n_heads tokens head_dim"]:
    """Append the keys and values of new tokens, and let their queries attend to all that they may see.

    Raises ValueError if the shapes do not fit, or CacheFull; either leaves the cache as it was.
    """
    _check(cache._kv, k, v)
    fit = q.ndim == 4 and q.shape[0] == k.shape[0] and q.shape[2:] == k.shape[2:]
    if not fit or q.shape[1] % k.shape[1]:
        raise ValueError(f"q {tuple(q.shape)} does not fit k {tuple(k.shape)} and v {tuple(v.shape)}")
    keys, values, near = cache._extended(k, v)
    keys, values = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (keys, values))
    return attention(q, keys, values, mask=near, causal=True, scale=scale)


def _room(batch: int, heads: int, tokens: int, dim: int, dtype: torch.dtype | None, device: object) -> Tensor:
    if min(batch, heads, tokens, dim) < 1:
        raise ValueError(f"no cache for batch {batch}, {heads} heads, {tokens} tokens, head_dim {dim}")
    return torch.zeros(2, batch, heads, tokens, dim, dtype=dtype, device=device)


def _check(room: Tensor, k: Tensor, v: Tensor) -> None:
    _, batch, heads, _, dim = room.shape
    if k.ndim != 4 or k.shape != v.shape or k.shape != (batch, heads, k.shape[2], dim):
        raise ValueError(f"k {tuple(k.shape)} and v {tuple(v.shape)} are not ({batch}, {heads}, n, {dim})")
