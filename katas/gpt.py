"""A small character-level GPT that learns one sentence by heart.

Write the vocabulary, the model, its loss, its training loop and generation.

    Tokens(text)                    the distinct characters of text, numbered 0, 1, … in sorted order
    len(tokens)                     how many there are
    tokens.encode(text)             int64 ids, (time,); tokens.decode(ids) is the text again
    GPT(vocab_size, context, d_model, n_heads, n_layers)
                                    an nn.Module; gpt.context is the longest text it can read
    gpt(ids)                        logits (batch, time, vocab); row t is about the token after ids[:, t]
    loss(model, ids)                the mean of −log softmax(logits)[next token] over all batch · (time − 1)
                                    next tokens: a scalar of the logits' dtype
    train(model, ids, *, steps, lr) `steps` times on the same ids: gradients of the loss, clipped to a total
                                    norm of 1 over all parameters, and a step of torch's AdamW with its defaults
                                    but lr; returns the losses, each from before its step
    generate(model, ids, count, *, generator=None, temperature=1.0)
                                    ids (batch, time) and `count` more tokens in every row: int64,
                                    (batch, time + count). The likeliest tokens without a generator or at
                                    temperature 0, else drawn from softmax(logits / temperature)

- The model is pre-norm: x = token + position embedding; in every block x += attn(norm1(x)), then
  x += mlp(norm2(x)); logits = norm(x) · token_embedding.weightᵀ. Attention is causal, its scores are divided
  by √(d_model / n_heads); mlp is down(gelu(up(x))) with the exact gelu; norms are LayerNorms with eps 1e-5.
- Its parameters are named, for i in 0 … n_layers − 1, and shaped as nn.Linear, nn.Embedding and nn.LayerNorm do:
      token_embedding.weight (vocab_size, d_model)    position_embedding.weight (context, d_model)
      blocks.i.norm1, blocks.i.norm2, norm            .weight and .bias (d_model,)
      blocks.i.attn.qkv                               .weight (3·d_model, d_model), .bias: the rows are those of
                                                      q, of k, of v; within each, head by head
      blocks.i.attn.out  (d_model, d_model)   blocks.i.mlp.up  (4·d_model, d_model)   blocks.i.mlp.down: back
  Weights of linear layers and embeddings start with standard deviation 0.02, biases at 0, norms as the identity.
- Logits have the parameters' dtype, float32 or float64. Inputs are left alone and may have any memory layout.
- loss, train and generate use nothing of a model but what every nn.Module has, a call, and (generate)
  model.context, which bounds the tokens in a call: the model sees the last `context` tokens. Each token drawn
  is read before the next. train knows nothing of gradients left from before. generate leaves the model as it was.
- Draws come from the generator alone; nothing but GPT() and Classifier() touches torch's global random state.
- ValueError: a size below 1; d_model that n_heads does not divide; ids with no token or more than `context`;
  a character or id that Tokens does not know, and a Tokens of an empty text; loss of fewer than two tokens;
  generate from no token, with a negative count or temperature. An id that GPT does not know raises IndexError
  or ValueError.

Part 2. extend(model, ids, cache=None) reads ids (batch, new) after what the cache holds (None: nothing), without
reading that again, and returns their logits (batch, new, vocab) and a cache that holds them too, of any type.
Every cache stays usable: it can be continued in several ways. ValueError if there is no new token, or cached and
new tokens exceed the context. generate_cached returns what generate does for the same arguments and an equal
generator, of any length, refuses the same, and reads no token twice while the text fits in the context.

Part 3. Classifier(gpt, n_classes) has the parameters of the gpt given, which it shares and leaves as they are, as
`gpt.…`, and of a linear layer `head`. classifier(ids, lengths) is (batch, n_classes): head(norm(x)) at the last
token of each row, of which only the first lengths[i] ids are text and the rest padding, any ids of the vocabulary.
ValueError if lengths is not (batch,) or not within 1 … time.

Example:

    tokens = Tokens("abca")                  len(tokens) is 3
    ids = tokens.encode("abca")[None]        [[0, 1, 2, 0]]
    gpt = GPT(3, 4, 16, 2, 1)                loss(gpt, ids) is about log 3 = 1.10
    train(gpt, ids, steps=40, lr=0.03)       40 losses, the last of them below 0.1
    generate(gpt, ids[:, :1], 3)             [[0, 1, 2, 0]]
"""

from typing import Any

from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

Cache = Any


class Tokens:
    def __init__(self, text: str) -> None:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def encode(self, text: str) -> Int[Tensor, " time"]:
        raise NotImplementedError

    def decode(self, ids: Int[Tensor, " time"]) -> str:
        raise NotImplementedError


class GPT(nn.Module):
    def __init__(self, vocab_size: int, context: int, d_model: int, n_heads: int, n_layers: int) -> None:
        raise NotImplementedError

    def forward(self, ids: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time vocab"]:
        raise NotImplementedError


def loss(model: nn.Module, ids: Int[Tensor, "batch time"]) -> Float[Tensor, ""]:
    raise NotImplementedError


def train(model: nn.Module, ids: Int[Tensor, "batch time"], *, steps: int, lr: float) -> list[float]:
    raise NotImplementedError


def generate(
    model: nn.Module,
    ids: Int[Tensor, "batch time"],
    count: int,
    *,
    generator: Generator | None = None,
    temperature: float = 1.0,
) -> Int[Tensor, "batch longer"]:
    raise NotImplementedError


def extend(
    model: GPT, ids: Int[Tensor, "batch new"], cache: Cache | None = None
) -> tuple[Float[Tensor, "batch new vocab"], Cache]:
    raise NotImplementedError


def generate_cached(
    model: GPT,
    ids: Int[Tensor, "batch time"],
    count: int,
    *,
    generator: Generator | None = None,
    temperature: float = 1.0,
) -> Int[Tensor, "batch longer"]:
    raise NotImplementedError


class Classifier(nn.Module):
    def __init__(self, gpt: GPT, n_classes: int) -> None:
        raise NotImplementedError

    def forward(
        self, ids: Int[Tensor, "batch time"], lengths: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch n_classes"]:
        raise NotImplementedError
