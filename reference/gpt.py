r"""A small character-level GPT with everything around it: vocabulary, loss, training loop, generation.

    x_0 = token_embedding[ids] + position_embedding[0 … time − 1]
    x   ← x + out(attend(heads(qkv(norm1(x)))))        in every block
    x   ← x + down(gelu(up(norm2(x))))
    logits = norm(x) · token_embeddingᵀ                row t is about the token after ids[t]
    loss = − mean over t of log softmax(logits_t)[ids_{t+1}]

Conventions: blocks are pre-norm, as in GPT-2; the head is tied to the token embedding; attention is aligned
to the last key, so that queries that come after a cache of keys need no other mask; gelu is the exact one.
Weights start at a standard deviation of 0.02: with a tied head, embeddings of size one would make a new
model's logits as large as √d_model, and its loss far worse than guessing.

The cache holds keys and values of all tokens read, layer by layer. Positions are absolute, so it serves only
while the text fits into the context: once the window slides, every token has another position.

Cost for T tokens and L layers: O(L·T·d·(d + T)) a forward pass; generating n tokens costs n passes over the
window without a cache, and a single pass in all with it.

Sources: Radford et al., Language Models are Unsupervised Multitask Learners, 2019 (GPT-2); Vaswani et al.,
Attention Is All You Need, 2017, arXiv:1706.03762; Press & Wolf, Using the Output Embedding to Improve
Language Models, 2017, arXiv:1608.05859; Loshchilov & Hutter, Decoupled Weight Decay Regularization, 2019,
arXiv:1711.05101. Part 3 follows Radford et al., Improving Language Understanding by Generative
Pre-Training, 2018 (GPT-1, §3.2): the classifier reads the last token's state.
"""

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional as F

Cache = list[tuple[Tensor, Tensor]]


class Tokens:
    """The distinct characters of a text, numbered in sorted order."""

    def __init__(self, text: str) -> None:
        if not text:
            raise ValueError("an empty text has no characters")
        self.chars = sorted(set(text))
        self.ids = {char: i for i, char in enumerate(self.chars)}

    def __len__(self) -> int:
        return len(self.chars)

    def encode(self, text: str) -> Int[Tensor, " time"]:
        """Raises ValueError for a character that is not in the vocabulary."""
        if not set(text) <= self.ids.keys():
            raise ValueError(f"{text!r} has characters other than {''.join(self.chars)!r}")
        return torch.tensor([self.ids[char] for char in text], dtype=torch.long)

    def decode(self, ids: Int[Tensor, " time"]) -> str:
        """Raises ValueError for an id that no character has."""
        if any(not 0 <= i < len(self.chars) for i in ids.tolist()):
            raise ValueError(f"ids {ids.tolist()} must be in [0, {len(self.chars)})")
        return "".join(self.chars[i] for i in ids.tolist())


def attend(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch heads keys head_dim"],
    v: Float[Tensor, "batch heads keys head_dim"],
) -> Float[Tensor, "batch heads queries head_dim"]:
    """Causal attention; the last query sees every key."""
    queries, keys = q.shape[-2], k.shape[-2]
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    past = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    weights = F.softmax(scores.masked_fill(~past, float("-inf")), dim=-1)
    return weights @ v


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "batch time d_model"]:
        q, k, v = self.split(x)
        return self.merge(attend(q, k, v))

    def split(self, x: Float[Tensor, "batch time d_model"]) -> tuple[Tensor, ...]:
        """Queries, keys and values, each (batch, heads, time, head_dim)."""
        batch, time, d_model = x.shape
        shape = batch, time, self.n_heads, d_model // self.n_heads
        return tuple(part.reshape(shape).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))

    def merge(self, y: Float[Tensor, "batch heads time head_dim"]) -> Float[Tensor, "batch time d_model"]:
        """The heads side by side again, and mixed."""
        joined = y.transpose(1, 2).flatten(2)
        return self.out(joined)


class MLP(nn.Module):
    """Two layers, four times as wide in between."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, 4 * d_model)
        self.down = nn.Linear(4 * d_model, d_model)

    def forward(self, x: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "batch time d_model"]:
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """Attention and MLP, each on a normed copy of the stream that it adds to."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attn = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "batch time d_model"]:
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x


class GPT(nn.Module):
    """The model; ``context`` is the longest text that it can read."""

    def __init__(self, vocab_size: int, context: int, d_model: int, n_heads: int, n_layers: int) -> None:
        super().__init__()
        sizes = vocab_size, context, d_model, n_heads, n_layers
        if min(sizes) < 1 or d_model % n_heads:
            raise ValueError(f"sizes {sizes} must be positive, and d_model a multiple of n_heads")
        self.context = context
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.position_embedding = nn.Embedding(context, d_model)
        self.blocks = nn.ModuleList(Block(d_model, n_heads) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model)
        self.apply(_initialise)

    def forward(self, ids: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time vocab"]:
        return self.unembed(self.trunk(ids))

    def trunk(self, ids: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time d_model"]:
        """The states after the last norm. Raises ValueError if the text does not fit into the context."""
        batch, time = ids.shape
        if not 1 <= time <= self.context:
            raise ValueError(f"ids {(batch, time)} must hold 1 to {self.context} tokens a row")
        positions = torch.arange(time, device=ids.device)
        x = self.token_embedding(ids) + self.position_embedding(positions)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def unembed(self, x: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "batch time vocab"]:
        """How much each state looks like each token: the head is tied to the embedding."""
        return x @ self.token_embedding.weight.T


def loss(model: nn.Module, ids: Int[Tensor, "batch time"]) -> Float[Tensor, ""]:
    """Cross-entropy of every token but the first, given those before it. Raises ValueError if time < 2."""
    if ids.shape[1] < 2:
        raise ValueError(f"ids {tuple(ids.shape)} hold no next token")
    logits, targets = model(ids)[:, :-1], ids[:, 1:]
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def train(model: nn.Module, ids: Int[Tensor, "batch time"], *, steps: int, lr: float) -> list[float]:
    """AdamW on the same text again and again, gradients clipped to norm 1. Returns each step's loss."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        value = loss(model, ids)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimiser.step()
        losses.append(value.item())
    return losses


@torch.no_grad()
def generate(
    model: nn.Module,
    ids: Int[Tensor, "batch time"],
    count: int,
    *,
    generator: Generator | None = None,
    temperature: float = 1.0,
) -> Int[Tensor, "batch longer"]:
    """``ids`` and ``count`` more tokens: the likeliest ones without a generator or at temperature 0.

    Raises ValueError if there is no token to start from, or count or temperature is negative.
    """
    _check(ids, count, temperature)
    for _ in range(count):
        window = ids[:, -model.context :]
        logits = model(window)[:, -1]
        ids = torch.cat([ids, choose(logits, generator, temperature)], dim=1)
    return ids


def choose(
    logits: Float[Tensor, "batch vocab"], generator: Generator | None, temperature: float
) -> Int[Tensor, "batch 1"]:
    """The next token of each row, drawn from softmax(logits / temperature) or the likeliest."""
    if generator is None or temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    probs = F.softmax(logits / temperature, dim=-1)
    return torch.multinomial(probs, num_samples=1, generator=generator)


def extend(
    model: GPT, ids: Int[Tensor, "batch new"], cache: Cache | None = None
) -> tuple[Float[Tensor, "batch new vocab"], Cache]:
    """Read ``ids`` after the tokens in the cache: their logits, and a cache that holds them too.

    The cache that came in still holds what it held. Raises ValueError if the text outgrows the context.
    """
    start = 0 if cache is None else cache[0][0].shape[2]
    end = start + ids.shape[1]
    if not start < end <= model.context:
        raise ValueError(f"{start} cached and {ids.shape[1]} new tokens, the context is {model.context}")
    x = model.token_embedding(ids) + model.position_embedding(torch.arange(start, end, device=ids.device))
    grown = []
    for layer, block in enumerate(model.blocks):
        q, k, v = block.attn.split(block.norm1(x))
        if cache is not None:
            k, v = (torch.cat(pair, dim=2) for pair in zip(cache[layer], (k, v), strict=True))
        grown.append((k, v))
        x = x + block.attn.merge(attend(q, k, v))
        x = x + block.mlp(block.norm2(x))
    return model.unembed(model.norm(x)), grown


@torch.no_grad()
def generate_cached(
    model: GPT,
    ids: Int[Tensor, "batch time"],
    count: int,
    *,
    generator: Generator | None = None,
    temperature: float = 1.0,
) -> Int[Tensor, "batch longer"]:
    """What ``generate`` returns, but while the text fits into the context each token is read only once."""
    _check(ids, count, temperature)
    unread, cache = ids[:, -model.context :], None
    for _ in range(count):
        logits, cache = extend(model, unread, cache)
        unread = choose(logits[:, -1], generator, temperature)
        ids = torch.cat([ids, unread], dim=1)
        if ids.shape[1] > model.context:
            # The window slides: every token moves to another position, so no key of it can be kept.
            unread, cache = ids[:, -model.context :], None
    return ids


class Classifier(nn.Module):
    """Scores a text, padded on the right, by the state of its last token."""

    def __init__(self, gpt: GPT, n_classes: int) -> None:
        super().__init__()
        self.gpt = gpt
        self.head = nn.Linear(gpt.token_embedding.embedding_dim, n_classes)

    def forward(
        self, ids: Int[Tensor, "batch time"], lengths: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch n_classes"]:
        """Row i scores ids[i, :lengths[i]]. Raises ValueError if the lengths do not fit the texts."""
        batch, time = ids.shape
        if lengths.shape != (batch,) or ((lengths < 1) | (lengths > time)).any():
            raise ValueError(f"lengths {lengths.tolist()} do not fit ids {(batch, time)}")
        states = self.gpt.trunk(ids)
        return self.head(states[torch.arange(batch, device=ids.device), lengths - 1])


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def _check(ids: Tensor, count: int, temperature: float) -> None:
    if ids.shape[1] < 1 or count < 0 or temperature < 0:
        raise ValueError(f"got ids {tuple(ids.shape)}, count {count} and temperature {temperature}")
