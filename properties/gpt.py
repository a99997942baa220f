"""The laws of a small GPT: every row of logits is a function of the tokens up to it and of their places,
through heads that do not mix; the loss is a plain mean over next tokens; training is AdamW on clipped
gradients; generation reads the end of the text and draws from its generator alone.

Weights are noise from a seed, put into the model by the names of its parameters. Many claims silence what
they are not about (an output layer of zeros silences attention or MLP), and loss, training and generation are tried on
small models of our own, so that one bug breaks few claims and several bugs can be told apart."""

import math
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

import torch

# AdamW imports this when it is first made, which takes seconds: here it is done before any child is forked.
import torch._dynamo
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dojo.close import (
    Mismatch,
    assert_close,
    assert_equal,
    assert_tensor,
    assert_true,
    epsilon,
    gradients,
    refuses,
    tolerance,
    untouched,
)
from dojo.draw import examples, laid_out

MODELS = ((3, 4, 1, 4), (2, 5, 2, 3), (5, 6, 3, 2), (3, 9, 4, 2), (4, 7, 2, 4))
"""Vocabulary, context, heads and head_dim, all different in each, so that none can stand in for another."""
WIDE = (torch.float64, torch.float32)
SEEDS = st.integers(0, 2**16)
LAYOUTS = ("contiguous", "transposed", "strided")
MANY = (2, 3, 4, 5, 7)
"""Lengths of texts in which there is something before something else."""

ROUNDINGS = 1000
"""Roundings that may add up in three blocks: some twenty operations each on sums of up to 32 terms, and a norm
divides what came before by a standard deviation that may be well below one."""
SURPRISE = 30.0
"""A count fails if its probability under the law is below 2·exp(−30) = 2e-13 (Chernoff); with at most nine outcomes,
40 examples and two claims, a right answer is refused once in 7e9 verdicts."""


# --- what is drawn -------------------------------------------------------------------------------


@dataclass
class Case:
    """A model's sizes, the seed of its weights, and texts for it."""

    vocab_size: int
    context: int
    n_heads: int
    head_dim: int
    n_layers: int
    ids: Tensor
    seed: int
    dtype: torch.dtype = torch.float64
    training: bool = True

    @property
    def d_model(self):
        return self.n_heads * self.head_dim

    @property
    def sizes(self):
        return self.vocab_size, self.context, self.d_model, self.n_heads, self.n_layers


@dataclass
class Labelled:
    """What a model says about each place of a text, whatever the text, and the text."""

    logits: Tensor
    ids: Tensor


@dataclass
class Lesson:
    """Training of a small model of our own."""

    table: Tensor
    bias: Tensor
    gain: float
    ids: Tensor
    steps: int
    lr: float
    model: str = "logits = gain · table[ids] + bias"


@dataclass
class Prompt:
    """A model whose next token depends on all that it is shown, in order; and what to ask of it."""

    rule: Tensor
    context: int
    ids: Tensor
    count: int
    options: dict
    model: str = "logits after s tokens = rule[(1·(ids[0] + 1) + … + s·(ids[s − 1] + 1)) mod len(rule)]"


def noise(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_ids(seed, vocab, *shape):
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def drawn_case(draw, models, texts, forms):
    (vocab, context, n_heads, head_dim), n_layers = draw(models)
    (batch, time), (layout, dtype, training), seed = draw(texts), draw(forms), draw(SEEDS)
    ids = laid_out(some_ids(seed, vocab, batch, min(time, context)), layout)
    return Case(vocab, context, n_heads, head_dim, n_layers, ids, seed, dtype, training)


def cases(*, models=MODELS, layers=(1,), batch=(1, 2, 3), time=(1, 2, 3, 4, 5, 7), dtypes=(torch.float64,)):
    """Texts of at most the context of their model. Few sizes, so that models can be used again."""
    return drawn_case(
        st.sampled_from(list(product(models, layers))),
        st.sampled_from(sorted(product(batch, time), key=math.prod)),
        st.sampled_from(list(product(LAYOUTS, dtypes, (True, False)))),
    )


@st.composite
def labelled(draw):
    batch, time, vocab, seed = (
        draw(st.integers(1, 3)),
        draw(st.integers(2, 5)),
        draw(st.integers(2, 6)),
        draw(SEEDS),
    )
    loud = draw(st.sampled_from((1.0, 1000.0)))
    ids = laid_out(some_ids(seed, vocab, batch, time), draw(st.sampled_from(LAYOUTS)))
    return Labelled(noise(seed, batch, time, vocab) * loud, ids)


@st.composite
def lessons(draw, steps=(1, 4), gains=(1.0, 0.2)):
    batch, time, vocab, seed = (
        draw(st.integers(1, 2)),
        draw(st.integers(2, 5)),
        draw(st.integers(2, 4)),
        draw(SEEDS),
    )
    ids = laid_out(some_ids(seed, vocab, batch, time), draw(st.sampled_from(LAYOUTS)))
    table, bias = noise(seed, vocab, vocab), noise(seed + 1, vocab)
    gain, lr = draw(st.sampled_from(gains)), draw(st.sampled_from((0.1, 0.5, 0.01)))
    return Lesson(table, bias, gain, ids, draw(st.integers(*steps)), lr)


@st.composite
def prompts(
    draw, time=(1, 4), count=(0, 4), context=(1, 8), options=({}, {"temperature": 1.0}, {"temperature": 0.0})
):
    vocab, seed, batch = draw(st.integers(2, 5)), draw(SEEDS), draw(st.integers(1, 3))
    ids = laid_out(some_ids(seed, vocab, batch, draw(st.integers(*time))), draw(st.sampled_from(LAYOUTS)))
    rule = noise(seed, 5, vocab)
    return Prompt(
        rule,
        draw(st.integers(*context)),
        ids,
        draw(st.integers(*count)),
        dict(draw(st.sampled_from(options))),
    )


# --- weights, and the definition in float64 ------------------------------------------------------


def shapes(case):
    """The parameters' names and shapes."""
    d = case.d_model
    found = {"token_embedding.weight": (case.vocab_size, d), "position_embedding.weight": (case.context, d)}
    for i in range(case.n_layers):
        layers = {"norm1": (d,), "attn.qkv": (3 * d, d), "attn.out": (d, d), "norm2": (d,)}
        layers |= {"mlp.up": (4 * d, d), "mlp.down": (d, 4 * d)}
        for name, shape in layers.items():
            found |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
    return found | {"norm.weight": (d,), "norm.bias": (d,)}


def weights(case):
    """Noise: of size one in embeddings, norms around the identity, linear layers that neither damp nor blow up."""
    every = shapes(case)
    parts = noise(case.seed, sum(map(math.prod, every.values()))).split([*map(math.prod, every.values())])
    found = {}
    for (name, shape), part in zip(every.items(), parts, strict=True):
        part = part.reshape(shape)
        if "norm" in name and name.endswith("weight"):
            part = 1 + 0.3 * part
        elif len(shape) == 1:
            part = 0.5 * part
        elif name.startswith("blocks"):
            part = part * (1.5 / math.sqrt(shape[1]))
        found[name] = part
    return found


def without(found, *parts):
    """The weights with attention or MLP silenced in every block: their last layer gives zeros."""
    last = tuple({"attention": "attn.out.", "mlp": "mlp.down."}[part] for part in parts)
    return {n: torch.zeros_like(w) if any(p in n for p in last) else w for n, w in found.items()}


def put(model, found):
    """Set the parameters by name; a Mismatch tells which are missing, left over or of another shape."""
    own = dict(model.named_parameters())
    assert_equal(
        {n: tuple(p.shape) for n, p in sorted(own.items())},
        {n: tuple(w.shape) for n, w in sorted(found.items())},
        "the set of named parameters",
    )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(found[name])
    return model


def built(subject, case, found=None):
    """The model on trial with the given weights."""
    model = made(subject.GPT, case.sizes, case.dtype).train(case.training)
    return put(model, weights(case) if found is None else found)


@lru_cache(maxsize=64)
def made(kind, sizes, dtype):
    """A model of these sizes, used again with other weights: making one takes longer than running it."""
    return kind(*sizes).to(dtype)


def normed(x, found, name):
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * found[f"{name}.weight"] + found[f"{name}.bias"]


def linear(x, found, name):
    return x @ found[f"{name}.weight"].T + found[f"{name}.bias"]


def true_states(case, found, ids):
    """norm(x) for each place, straight from the definition."""
    time, D = ids.shape[1], case.head_dim
    future = torch.arange(time)[None, :] > torch.arange(time)[:, None]
    x = found["token_embedding.weight"][ids] + found["position_embedding.weight"][:time]
    for i in range(case.n_layers):
        at = f"blocks.{i}."
        mixed = linear(normed(x, found, at + "norm1"), found, at + "attn.qkv")
        q, k, v = (part.unflatten(-1, (case.n_heads, D)) for part in mixed.split(case.d_model, -1))
        scores = (torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(D)).masked_fill(future, -1e30)
        odds = (scores - scores.amax(-1, keepdim=True)).exp()
        seen = torch.einsum("bhqk,bkhd->bqhd", odds / odds.sum(-1, keepdim=True), v).flatten(2)
        x = x + linear(seen, found, at + "attn.out")
        up = linear(normed(x, found, at + "norm2"), found, at + "mlp.up")
        x = x + linear(up * (1 + torch.erf(up / math.sqrt(2))) / 2, found, at + "mlp.down")
    return normed(x, found, "norm")


def true_logits(case, found, ids=None):
    return true_states(case, found, case.ids if ids is None else ids) @ found["token_embedding.weight"].T


def true_loss(logits, ids):
    """−log p, straight from the definition, and its gradient in the logits."""
    log_p = (logits - logits.logsumexp(-1, keepdim=True))[:, :-1]
    right = nn.functional.one_hot(ids[:, 1:], logits.shape[-1]).double()
    slope = torch.zeros_like(logits)
    slope[:, :-1] = (log_p.exp() - right) / right.sum()
    return -(log_p * right).sum() / right.sum(), slope


def agree(got, want, case, name="the tensor of logits"):
    assert_close(got, want, dtype=case.dtype, steps=ROUNDINGS, magnitude=1 + want.abs().max(), name=name)


def changed(a, b, case):
    """By how much two results differ beyond what rounding explains; 0 where they are the same."""
    a, b = a.detach().double(), b.detach().double()
    gap = (a - b).abs()
    return gap * (gap > tolerance(case.dtype, steps=ROUNDINGS, magnitude=1 + float(b.abs().max())))


def next_id(case, row, place):
    """The texts with another token in one place."""
    ids = case.ids.clone()
    ids[row, place] = (ids[row, place] + 1) % case.vocab_size
    return ids


# --- models of our own ---------------------------------------------------------------------------
# Their logits are contiguous, as those of a linear layer are: a view of them is right.


class Says(nn.Module):
    """Says the same about each place, whatever the text is."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.context = nn.Parameter(logits.clone()), logits.shape[1]

    def forward(self, ids):
        return self.logits[: ids.shape[0], : ids.shape[1]].contiguous()


class Bigram(nn.Module):
    """logits = gain · table[ids] + bias; ``unused`` never gets a gradient."""

    def __init__(self, table, bias=None, gain=1.0, context=9):
        super().__init__()
        self.table, self.gain, self.context = nn.Parameter(table.clone()), gain, context
        self.bias = nn.Parameter(torch.zeros_like(table[0]) if bias is None else bias.clone())
        self.unused = nn.Parameter(torch.ones(2, dtype=table.dtype))

    def forward(self, ids):
        return (self.gain * self.table[ids] + self.bias).contiguous()


class Rule(nn.Module):
    """Row t of the logits is a row of a table, chosen by the tokens up to t and their places."""

    def __init__(self, rule, context):
        super().__init__()
        self.rule, self.context = nn.Parameter(rule.clone()), context

    def forward(self, ids):
        time = ids.shape[1]
        assert_true(
            1 <= time <= self.context,
            f"the model was shown {time} tokens, its context is {self.context}",
            got=ids,
        )
        return self.rule[((torch.arange(time) + 1) * (ids + 1)).cumsum(1) % len(self.rule)].contiguous()


def asked(subject, case, model=None, **more):
    return subject.generate(
        model or Rule(case.rule, case.context), case.ids, case.count, **case.options, **more
    )


def likeliest(case):
    """The greedy continuation, one row and token at a time."""
    model, rows = Rule(case.rule, case.context), case.ids.tolist()
    for row in rows:
        for _ in range(case.count):
            row.append(int(model(torch.tensor([row[-case.context :]]))[0, -1].argmax()))
    return torch.tensor(rows)


def trained(subject, case, model=None):
    model = model or Bigram(case.table, case.bias, case.gain)
    losses = subject.train(model, case.ids, steps=case.steps, lr=case.lr)
    assert_true(isinstance(losses, (list, tuple)), "the losses are no list", expected="a list", got=losses)
    return losses, model


def true_training(case):
    """Losses and parameters after AdamW (Loshchilov & Hutter, algorithm 2) with torch's defaults."""
    own = [case.table.clone(), case.bias.clone()]
    first, second = ([torch.zeros_like(p) for p in own] for _ in range(2))
    losses = []
    for step in range(1, case.steps + 1):
        value, slope = true_loss(case.gain * own[0][case.ids] + own[1], case.ids)
        losses.append(float(value))
        table = torch.zeros_like(own[0]).index_add_(0, case.ids.flatten(), case.gain * slope.flatten(0, 1))
        grads = [table, slope.sum((0, 1))]
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
        for p, m, s, g in zip(own, first, second, grads, strict=True):
            g = g / max(norm, 1.0)
            m.mul_(0.9).add_(g, alpha=0.1)
            s.mul_(0.999).add_(g * g, alpha=0.001)
            p.mul_(1 - 0.01 * case.lr)
            p.sub_(case.lr * (m / (1 - 0.9**step)) / ((s / (1 - 0.999**step)).sqrt() + 1e-8))
    return losses, own


def slack(case):
    """torch divides by norm + 1e-6 when it clips, others by norm: that may move each step by 1e-6 of lr."""
    return 1 + case.steps * case.gain * case.lr * 1e-6 / epsilon(torch.float64)


def learned(case, model):
    """The parameters are those of the definition."""
    _, (table, bias) = true_training(case)
    for name, due in (("table", table), ("bias", bias)):
        assert_close(
            getattr(model, name),
            due,
            dtype=torch.float64,
            magnitude=slack(case) * 9,
            name=f"the parameter {name}",
        )
    assert_equal(
        model.unused.detach(), torch.ones(2, dtype=torch.float64), "a parameter that gets no gradient"
    )


# --- part 1: the vocabulary ----------------------------------------------------------------------


TEXTS = st.lists(st.sampled_from("abBA éÉ\n☃"), min_size=1, max_size=9).map("".join)


@examples(quick=3, full=24)
@given(text=TEXTS, order=st.permutations(range(4)))
def test_characters_are_numbered_in_sorted_order(subject, text, order):
    """Each distinct character has its rank as id, and decoding gives the text back.

    Catches ids by first appearance, by the order of a set (another in every process), or by place in the text, and
    capitals taken for small letters."""
    tokens = subject.Tokens(text)
    ranks = sorted(set(text))
    assert_equal(len(tokens), len(ranks), "the number of characters")
    other = "".join(ranks[i % len(ranks)] for i in order)
    for each in (text, other, ""):
        ids = tokens.encode(each)
        assert_equal(
            ids, torch.tensor([ranks.index(c) for c in each], dtype=torch.int64), f"the ids of {each!r}"
        )
        assert_equal(tokens.decode(ids), each, "the text decoded")


@examples(quick=3, full=24)
@given(text=TEXTS)
def test_unknown_characters_and_ids_are_refused(subject, text):
    """ValueError for a character or an id outside the vocabulary, and for an empty vocabulary.

    Catches a KeyError that escapes, unknown characters dropped, and −1 read as the last character."""
    tokens, size = subject.Tokens(text), len(set(text))
    refuses(ValueError, lambda: tokens.encode(text + "z"), because="'z' is unknown")
    for bad in (size, -1):
        refuses(
            ValueError,
            lambda i=bad: tokens.decode(torch.tensor([0, i])),
            because=f"{size} ids are known, not {bad}",
        )
    refuses(ValueError, lambda: subject.Tokens(""), because="an empty text has no characters")


# --- part 1: the model ---------------------------------------------------------------------------


@examples(quick=3, full=15)
@given(case=cases(layers=(1, 2, 3)))
def test_the_parameters_have_their_names_and_shapes(subject, case):
    """The parameters are the named ones and no others, a block's own in every block, and all are trained.

    Catches blocks in a plain list, one block repeated, an untied head, and biases left out."""
    model = subject.GPT(*case.sizes)
    put(model, weights(case))
    assert_equal(model.context, case.context, "gpt.context")
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert_equal(frozen, [], "the parameters without a gradient")


@examples(quick=1, full=5)
@given(heads=st.sampled_from((1, 2, 4)), layers=st.integers(1, 2), seed=SEEDS)
def test_a_new_model_is_undecided(subject, heads, layers, seed):
    """A new model has small random weights, so that its loss is about log(vocab_size): it guesses.

    Catches nn.Embedding left at standard deviation 1, with which a tied head is sure of nonsense, and layers before a
    residual that start smaller. The bounds are 25% for standard deviations of 512 or more draws: eight of their
    standard errors."""
    torch.manual_seed(seed)
    model = subject.GPT(16, 24, 32, heads, layers)
    for name, p in model.named_parameters():
        p = p.detach()
        if p.ndim == 1:
            want = torch.full_like(p, float("norm" in name and name.endswith("weight")))
            assert_equal(p, want, f"{name} of a new model")
        else:
            spread = float(p.std())
            assert_true(
                0.015 < spread < 0.025, f"{name} starts with standard deviation {spread:.3g}", expected=0.02
            )
    ids = some_ids(seed, 16, 1, 24)
    gap = float(true_loss(model(ids).detach().double(), ids)[0]) - math.log(16)
    assert_true(abs(gap) < 0.25, f"the loss of a new model is log(16) + {gap:.3g}", expected="about log(16)")


@examples(quick=3, full=24)
@given(case=cases())
def test_token_and_position_embeddings_are_added(subject, case):
    """With attention and MLP silent, the logits are norm(token + position) · token_embeddingᵀ.

    Catches embeddings scaled by √d_model, a norm left out, and probabilities in place of logits."""
    found = without(weights(case), "attention", "mlp")
    agree(built(subject, case, found)(case.ids), true_logits(case, found), case)


@examples(quick=3, full=24)
@given(case=cases(time=MANY), place=st.integers(0, 9))
def test_each_place_has_its_own_position_embedding(subject, case, place):
    """Row s of the position table is added at place s of every text, and nowhere else.

    Catches positions counted from the end, from one, along the batch, by token, or not at all."""
    place %= case.context
    found = without(weights(case), "attention", "mlp")
    model = built(subject, case, found)
    before = model(case.ids)
    moved = found | {"position_embedding.weight": found["position_embedding.weight"].clone()}
    moved["position_embedding.weight"][place] += noise(case.seed + 1, case.d_model)
    rows = changed(put(model, moved)(case.ids), before, case).amax(-1) > 0
    want = (torch.arange(case.ids.shape[1]) == place).expand(case.ids.shape)
    if not torch.equal(rows, want):
        raise Mismatch(f"another embedding of position {place} moves other rows", expected=want, got=rows)


@examples(quick=3, full=24)
@given(case=cases(layers=(1, 2), time=MANY), row=st.integers(0, 9), place=st.integers(0, 9))
def test_the_future_never_matters(subject, case, row, place):
    """Another token in one place leaves all rows before it, and all other texts, as they were.

    Catches a mask that lets a token see the next one: training becomes copying, and generation fails."""
    row, place = row % case.ids.shape[0], place % case.ids.shape[1]
    model = built(subject, case)
    moved = changed(model(next_id(case, row, place)), model(case.ids), case).amax(-1)
    assert_true(
        moved[row, place] > 0,
        f"another token in place {place} of text {row} does not change its own row",
        expected=f"a change in place {place} of text {row}",
        got=moved,
    )
    other = torch.arange(len(moved)) != row
    early = bool(moved[row, :place].any() or moved[other].any())
    assert_true(
        not early,
        f"another token in place {place} of text {row} changes rows that may not see it, each by so much",
        expected=f"0 before place {place}" + " and in all other texts" * (len(moved) > 1),
        got=moved,
    )


@examples(quick=3, full=24)
@given(case=cases(time=MANY), place=st.integers(0, 9))
def test_every_earlier_token_matters(subject, case, place):
    """Another token in one place changes the logits in every later place, through a single block.

    Catches a mask turned round, an attention that is left out, and a window of one."""
    place %= case.ids.shape[1] - 1
    found = without(weights(case), "mlp")
    model = built(subject, case, found)
    moved = changed(model(next_id(case, 0, place)), model(case.ids), case).amax(-1)[0, place:]
    assert_true(
        bool((moved > 0).all()),
        f"another token in place {place} does not change every row from there on: by so much they change",
        expected="no 0",
        got=moved,
    )


@examples(quick=3, full=24)
@given(case=cases(time=MANY))
def test_attention_weights_sum_to_one(subject, case):
    """If all values are equal, attention gives that value, whatever the scores are.

    Catches a mask laid over the weights after the softmax, and a softmax over queries or heads."""
    found = without(weights(case), "mlp")
    found["blocks.0.attn.qkv.weight"][2 * case.d_model :] = 0
    agree(built(subject, case, found)(case.ids), true_logits(case, found), case)


@examples(quick=4, full=24)
@given(case=cases(models=MODELS[1:], time=MANY), pick=st.integers(0, 9))
def test_heads_do_not_mix(subject, case, pick):
    """If the output layer reads one head alone, the queries, keys and values of the others have no effect.

    Catches a view as (batch, heads, time, …) without the transpose, and heads joined in another order."""
    heads, D, d = case.n_heads, case.head_dim, case.d_model
    mine, other = pick % heads, (pick // heads + 1 + pick) % heads
    other = (mine + 1) % heads if other == mine else other
    found = without(weights(case), "mlp")
    mask = torch.arange(d) // D == mine
    found["blocks.0.attn.out.weight"] = found["blocks.0.attn.out.weight"] * mask
    model = built(subject, case, found)
    before = model(case.ids)
    for head, effect in ((other, False), (mine, True)):
        moved = found | {n: found[n].clone() for n in ("blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias")}
        rows = [s * d + head * D + j for s in range(3) for j in range(D)]
        moved["blocks.0.attn.qkv.weight"][rows] += noise(case.seed + 1, len(rows), d)
        moved["blocks.0.attn.qkv.bias"][rows] += noise(case.seed + 2, len(rows))
        gap = changed(put(model, moved)(case.ids), before, case)
        verb = "has no effect" if effect else "has an effect"
        assert_true(
            bool(gap.any()) is effect,
            f"the output layer reads head {mine}, and head {head} {verb}: the logits change by so much",
            expected="not 0 everywhere" if effect else "0 everywhere",
            got=gap,
        )


@examples(quick=3, full=24)
@given(case=cases(time=MANY))
def test_attention_equals_its_definition(subject, case):
    """With the MLP silent, one block gives value by value what attention's definition gives.

    Catches scores not scaled, scaled by √d_model, a mask off by one, and the output layer left out."""
    found = without(weights(case), "mlp")
    agree(built(subject, case, found)(case.ids), true_logits(case, found), case)


@examples(quick=3, full=24)
@given(case=cases())
def test_the_mlp_equals_its_definition(subject, case):
    """With attention silent, one block adds down(gelu(up(norm2(x)))) to x.

    Catches no activation, ReLU, gelu's tanh approximation, a norm left out, and a residual left out."""
    found = without(weights(case), "attention")
    agree(built(subject, case, found)(case.ids), true_logits(case, found), case)


@examples(quick=2, full=15)
@given(case=cases(time=MANY), sign=st.sampled_from((-1, 1)))
def test_large_scores_change_nothing(subject, case, sign):
    """What is added to all scores of a query alike drops out, be it 90000 times the root of head_dim, up or down.

    Catches exp without the maximum taken off, which overflows, and a mask that is a mere −100, −10000 or −65504."""
    found = without(weights(case), "mlp")
    d, reach = case.d_model, 300
    found["blocks.0.attn.qkv.bias"][:d] += reach
    found["blocks.0.attn.qkv.bias"][d : 2 * d] += reach * sign
    want = true_logits(case, found)
    # A score of 90000 is a sum of terms of 90000, and its rounding error is that much larger.
    size = reach**2 * (1 + want.abs().max())
    got = built(subject, case, found)(case.ids)
    assert_close(got, want, dtype=case.dtype, steps=ROUNDINGS, magnitude=size, name="the tensor of logits")


@examples(quick=0, full=2)
@given(seed=SEEDS, batch=st.integers(1, 2))
def test_long_texts_equal_the_definition(subject, seed, batch):
    """A text of 80 tokens of 70 kinds has the logits of the definition, all of it.

    Catches a window, a mask or a table of a fixed size."""
    case = Case(70, 80, 2, 1, 1, some_ids(seed, 70, batch, 80), seed)  # few heads: some loop over them
    agree(built(subject, case)(case.ids), true_logits(case, weights(case)), case)


@examples(quick=3, full=20)
@given(case=cases(layers=(1, 2), batch=(2, 3, 4)))
def test_the_texts_of_a_batch_are_independent(subject, case):
    """A text in a batch has the logits that it has alone.

    Catches reshapes that mix batch and time, which a batch of one never shows."""
    model = built(subject, case)
    alone = torch.cat([model(row[None]) for row in case.ids])
    got = model(case.ids)
    assert_tensor(
        got, shape=(*case.ids.shape, case.vocab_size), dtype=case.dtype, name="the tensor of logits"
    )
    agree(got, alone.double(), case)


@examples(quick=4, full=25)
@given(case=cases(layers=(2, 1, 3), dtypes=WIDE))
def test_logits_equal_the_definition(subject, case):
    """The whole model gives value by value what its definition gives, in float64 and in float32.

    Catches residuals left out or taken of the normed stream, post-norm, parallel branches, norms swapped."""
    before, model = case.ids.clone(), built(subject, case)
    agree(model(case.ids), true_logits(case, weights(case)), case)
    untouched({"ids": before}, {"ids": case.ids})


@examples(quick=3, full=15)
@given(case=cases(layers=(1, 2), time=MANY))
def test_gradients_equal_the_definition(subject, case):
    """Every parameter gets the gradient that the definition gives it.

    Catches a branch that is detached, and an embedding whose row 0 is left untrained as padding."""
    found = {n: w.clone().requires_grad_() for n, w in weights(case).items()}
    upstream = noise(case.seed + 3, *case.ids.shape, case.vocab_size)
    want = gradients(true_logits(case, found), list(found.values()), upstream)
    model = built(subject, case)
    own = dict(model.named_parameters())
    got = gradients(model(case.ids), [own[name] for name in found], upstream)
    largest = 1 + max(float(g.abs().max()) for g in want)
    for name, due, has in zip(found, want, got, strict=True):
        assert_close(
            has,
            due,
            dtype=case.dtype,
            steps=10 * ROUNDINGS,
            magnitude=largest,
            name=f"the gradient of {name}",
        )


@examples(quick=3, full=20)
@given(case=cases(), at=st.integers(0, 4), size=st.sampled_from((0, -1)))
def test_sizes_and_texts_that_do_not_fit_are_refused(subject, case, at, size):
    """ValueError for a size below one, heads that do not divide d_model, and a text that does not fit.

    Catches a context that bounds nothing, rounding in d_model // n_heads, and −1 read as the last token."""
    sizes = list(case.sizes)
    sizes[at] = size
    refuses(ValueError, lambda: subject.GPT(*sizes), because=f"a size in {sizes} is {size}")
    V, C, d, _, L = case.sizes
    refuses(
        ValueError, lambda: subject.GPT(V, C, d * 3, d * 2, L), because=f"{d * 2} heads do not divide {d * 3}"
    )
    model = built(subject, case)
    for time in (0, C + 1):
        refuses(
            ValueError,
            lambda t=time: model(some_ids(0, V, 2, t)),
            because=f"{time} tokens, the context is {C}",
        )
    for bad in (V, -1):
        ids = torch.tensor([[0, bad], [0, 0]])[:, -C:]
        refuses(
            (IndexError, ValueError),
            lambda i=ids: model(i),
            because=f"the vocabulary has {V} tokens, not {bad}",
        )


# --- part 1: the loss ----------------------------------------------------------------------------


@examples(quick=3, full=24)
@given(case=labelled())
def test_the_loss_is_the_mean_over_all_next_tokens(subject, case):
    """The loss is the mean of −log softmax(logits[:, t])[ids[:, t + 1]] over texts and t = 0 … time − 2.

    Catches no shift, a shift the wrong way or by two, a sum, a token id that is ignored, logits that go through
    softmax twice, and the logarithm of a probability that is 0 already."""
    before = case.ids.clone()
    got = subject.loss(Says(case.logits), case.ids)
    want, _ = true_loss(case.logits, case.ids)
    assert_close(
        got, want, dtype=torch.float64, length=30, magnitude=case.logits.abs().max(), name="the loss"
    )
    untouched({"ids": before}, {"ids": case.ids})


@examples(quick=3, full=24)
@given(case=labelled())
def test_every_next_token_pulls_with_the_same_weight(subject, case):
    """The gradient in the logits is (softmax − one-hot of the next token) / count, and 0 in the last place.

    Catches a loss with the right value at one point only, one that is detached, and texts weighted unevenly."""
    model = Says(case.logits)
    (got,) = gradients(subject.loss(model, case.ids), [model.logits])
    _, want = true_loss(case.logits, case.ids)
    assert_close(
        got, want, dtype=torch.float64, length=30, magnitude=1 + case.logits.abs().max(), name="the gradient"
    )


@examples(quick=3, full=24)
@given(case=labelled())
def test_a_text_without_a_next_token_is_refused(subject, case):
    """ValueError if the texts hold fewer than two tokens; two are enough.

    Catches the mean over nothing, which is NaN and spreads into every weight."""
    refuses(
        ValueError, lambda: subject.loss(Says(case.logits), case.ids[:, :1]), because="there is no next token"
    )
    want, _ = true_loss(case.logits[:, :2], case.ids[:, :2])
    got = subject.loss(Says(case.logits), case.ids[:, :2])
    assert_close(
        got, want, dtype=torch.float64, length=30, magnitude=case.logits.abs().max(), name="the loss"
    )


# --- part 1: training ----------------------------------------------------------------------------


@examples(quick=3, full=25)
@given(case=lessons(steps=(1, 1)))
def test_the_first_step_is_one_of_adamw(subject, case):
    """One step moves the parameters by lr against the gradient's sign, and decays them by 0.01 · lr.

    Catches plain SGD or Adam, an lr that is ignored, other weight decay, a step before the gradient is there or after
    it is zeroed, and gradients that go up the hill."""
    learned(case, trained(subject, case)[1])


@examples(quick=3, full=25)
@given(case=lessons(steps=(2, 5)))
def test_steps_follow_one_another(subject, case):
    """Several steps are those of one AdamW, each with the gradient of its own step.

    Catches gradients that add up because nobody zeroes them, and an optimiser made anew in every step."""
    learned(case, trained(subject, case)[1])


@examples(quick=3, full=25)
@given(case=lessons(steps=(2, 5), gains=(8.0, 30.0)))
def test_gradients_are_clipped_to_norm_one(subject, case):
    """Gradients of a total norm above 1 are scaled down to it, all by the same factor, before the step.

    Catches no clipping, clipping after the step or before the backward pass, by value, or one parameter at a time.
    AdamW shows it only from the second step on: its first is the same for gradients of any size."""
    learned(case, trained(subject, case)[1])


@examples(quick=3, full=25)
@given(case=lessons(steps=(0, 4), gains=(1.0, 0.2, 8.0)))
def test_losses_are_those_before_each_step(subject, case):
    """The list holds one number a step: the loss that its gradient was taken of. No steps change nothing.

    Catches the loss after the step, one step too many or too few, training that stops once the loss is small, and
    tensors that keep their graphs alive."""
    losses, _ = trained(subject, case)
    wrong = [type(x).__name__ for x in losses if not isinstance(x, float)]
    assert_equal(wrong, [], "the types of losses that are not float")
    assert_equal(len(losses), case.steps, "the number of losses")
    want, _ = true_training(case)
    got = torch.tensor(losses, dtype=torch.float64)
    want = torch.tensor(want, dtype=torch.float64)
    assert_close(got, want, dtype=torch.float64, magnitude=slack(case) * 30, name="the list of losses")
    known = Bigram(torch.tensor([[0.0, 14.0], [14.0, 0.0]], dtype=torch.float64))
    losses = subject.train(known, torch.tensor([[0, 1, 0]]), steps=case.steps, lr=case.lr)
    assert_equal(len(losses), case.steps, "the number of losses, of a text that is known from the start")


@examples(quick=3, full=15)
@given(case=lessons())
def test_old_gradients_do_not_count(subject, case):
    """Gradients that the parameters bring along, from another loss, are zeroed before the first step.

    Catches zeroing at the end of each step only."""
    model = Bigram(case.table, case.bias, case.gain)
    model.table.grad, model.bias.grad = 3 * noise(1, *case.table.shape), noise(2, *case.bias.shape)
    learned(case, trained(subject, case, model)[1])


@examples(quick=2, full=10)
@given(case=cases(layers=(1, 2), time=MANY))
def test_every_parameter_of_the_model_learns(subject, case):
    """One step on a GPT moves all its parameters, embeddings and norms included, the way AdamW does.

    Catches an optimiser that is given some of the parameters, and a model left as it was."""
    found = {n: w.clone().requires_grad_() for n, w in weights(case).items()}
    logits = true_logits(case, found)
    slope = true_loss(logits.detach(), case.ids)[1]
    grads = gradients(logits, list(found.values()), slope)
    norm = max(1.0, math.sqrt(sum(float(g.square().sum()) for g in grads)))
    model, lr = put(subject.GPT(*case.sizes).to(case.dtype), weights(case)), 0.1
    state, before = torch.random.get_rng_state(), case.ids.clone()
    subject.train(model, case.ids, steps=1, lr=lr)
    assert_true(torch.equal(torch.random.get_rng_state(), state), "training moved the global random state")
    untouched({"ids": before}, {"ids": case.ids})
    own = dict(model.named_parameters())
    for (name, start), g in zip(found.items(), grads, strict=True):
        # Where the gradient is nothing but rounding, its sign is too; 1e-6 is far above that and far below the rest.
        clear = (g.abs() > 1e-6) | (g == 0)
        g = g / norm
        want = start.detach() * (1 - 0.01 * lr) - lr * g / (g.abs() + 1e-8)
        got = torch.where(clear, own[name].detach(), want)
        # The update changes by lr · δ · eps / g² if g changes by δ: 1e-14 · 1e-8 / 1e-12 of lr at most.
        assert_close(got, want, dtype=torch.float64, magnitude=1e6, name=f"{name} after a step")


# --- part 1: generation --------------------------------------------------------------------------


@examples(quick=3, full=24)
@given(case=prompts(), draws=st.booleans(), training=st.booleans())
def test_generation_continues_the_text_and_leaves_the_model(subject, case, draws, training):
    """The result is the text that came in and ``count`` more tokens; model and text are as before.

    Catches results without the text, one token too many or too few, and a model left in another mode, frozen,
    or with gradients switched off."""
    model, before = Rule(case.rule, case.context).train(training), case.ids.clone()
    slope = torch.ones_like(case.rule) if draws else None
    model.rule.grad = slope
    got = asked(subject, case, model, generator=torch.Generator().manual_seed(1) if draws else None)
    batch, time = case.ids.shape
    assert_tensor(got, shape=(batch, time + case.count), dtype=torch.int64, name="the text")
    assert_equal(got[:, :time], before, "the beginning of the text")
    known = bool(((got >= 0) & (got < case.rule.shape[1])).all())
    assert_true(known, "there are tokens outside of the vocabulary", got=got)
    untouched({"ids": before, "weights": case.rule}, {"ids": case.ids, "weights": model.rule})
    assert_left(model, training)
    assert_equal(model.rule.grad, slope, "the gradient of the model's weights")


def assert_left(model, training):
    """Generation leaves a model in its mode, and ready to be trained."""
    modes = {m.training for m in model.modules()}
    assert_equal(sorted(modes), [training], "model.training, of the model and its parts")
    assert_true(torch.is_grad_enabled(), "gradients are switched off after generation")
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert_equal(frozen, [], "the parameters without a gradient after generation")


@examples(quick=3, full=24)
@given(case=prompts(count=(1, 5), context=(9, 9)), draws=st.booleans())
def test_greedy_generation_takes_the_likeliest_token(subject, case, draws):
    """Without a generator, or at temperature 0, every new token is the likeliest after all those before it.

    Catches the row of the wrong place, new tokens that are never read, and a generator that is heard at
    temperature 0."""
    if draws:
        case = replace(case, options={"temperature": 0.0, "generator": torch.Generator().manual_seed(1)})
    assert_equal(asked(subject, case), likeliest(case), "the greedy text")


CLOSE = torch.tensor([[0.0, 1.0, 2.0], [2.0, 0.0, 1.0], [1.0, 2.0, 0.0]], dtype=torch.float64) / 100000
"""After each token the one before it is the likeliest, by little; after 0 it is the last."""


@dataclass
class Close:
    """A text, and the logits after each token, of which one is the largest by little."""

    logits: Tensor
    ids: Tensor
    count: int
    draws: bool


def closely(rows, batch, draws):
    return Close(CLOSE, torch.tensor(rows[:batch])[:, None], 12, draws)


@examples(quick=2, full=10)
@given(case=st.builds(closely, st.permutations(range(3)), st.integers(1, 3), st.booleans()))
def test_a_small_lead_is_enough(subject, case):
    """Without a generator, or at temperature 0, the token whose logit is the largest by a hundred-thousandth is taken.

    Catches a temperature of 0 that is taken for a small number, and logits rounded to a half type."""
    options = {"generator": torch.Generator().manual_seed(1), "temperature": 0.0} if case.draws else {}
    got = subject.generate(Bigram(case.logits), case.ids, case.count, **options)
    want = (case.ids - torch.arange(case.count + 1)) % 3
    assert_equal(got, want, "the greedy text")


@examples(quick=3, full=24)
@given(case=prompts(time=(1, 6), count=(1, 5), context=(1, 4)))
def test_the_model_sees_the_last_context_tokens(subject, case):
    """Once the text is longer than the context, each token follows from the last ``context`` ones.

    Catches the first tokens in place of the last, one token too few, and a window that stops at the prompt."""
    assert_equal(asked(subject, case), likeliest(case), "the greedy text")


ROWS = torch.tensor([[0.0, 2.0, -2.0], [-2.0, 0.0, 2.0], [1.0, -1.5, 0.0]], dtype=torch.float64)


def surprise(count, calls, chance):
    """calls · KL(count/calls ‖ chance): so far out, on one side, comes a binomial with probability exp(−this)."""
    total = 0.0
    for seen, due in ((count, calls * chance), (calls - count, calls * (1 - chance))):
        if seen:
            total += seen * math.log(seen / due) if due > 0 else math.inf
    return total


def assert_as_likely(rows, law, what):
    seen, calls = Counter(map(tuple, rows.tolist())), len(rows)

    def off(outcome):
        return surprise(seen.get(outcome, 0), calls, law.get(outcome, 0.0))

    worst = max({**law, **seen}, key=off)
    if off(worst) > SURPRISE:
        raise Mismatch(
            f"{what} {list(worst)} came {seen.get(worst, 0)} times in {calls}",
            expected={str(list(o)): round(calls * p, 1) for o, p in sorted(law.items())},
            got={str(list(o)): n for o, n in sorted(seen.items())},
        )


def law_of(first, temperature, count):
    """The probability of each continuation of a text that ends with ``first``."""
    p = (ROWS / temperature).softmax(-1).tolist()
    law = {(): 1.0}
    for _ in range(count):
        law = {(*o, x): c * p[o[-1] if o else first][x] for o, c in law.items() for x in range(3)}
    return law


@dataclass
class Draws:
    """A model that looks at the last token alone, which one that is, and how to draw."""

    logits_after: dict
    last: int
    temperature: float | None
    seed: int


def draws(*temperatures):
    told = {token: [*row] for token, row in enumerate(ROWS.tolist())}
    return st.builds(Draws, st.just(told), st.integers(0, 2), st.sampled_from(temperatures), SEEDS)


@examples(quick=3, full=15)
@given(case=draws(0.5, 2.0, 1.0, None))
def test_draws_follow_the_temperature(subject, case):
    """Tokens are drawn as softmax(logits / temperature) has it; temperature is 1 if not given.

    Catches logits multiplied by the temperature, a temperature ignored, one applied to probabilities, and
    argmax in spite of a generator. A count is refused if less likely than 2e-13."""
    last, temperature, seed = case.last, case.temperature, case.seed
    options = {} if temperature is None else {"temperature": temperature}
    # The first rows end otherwise, so that what is drawn for them does not do for the others.
    ids = torch.tensor([[0, (last + 1) % 3]] * 50 + [[0, last]] * 800)
    generator = torch.Generator().manual_seed(seed)
    got = subject.generate(Bigram(ROWS), ids, 1, generator=generator, **options)
    assert_tensor(got, shape=(850, 3), dtype=torch.int64, name="the batch of texts")
    assert_as_likely(got[50:, 2:], law_of(last, temperature or 1.0, 1), f"after {last}, the token")
    if temperature is None:
        generator.manual_seed(seed)
        same = subject.generate(Bigram(ROWS), ids, 1, generator=generator, temperature=1.0)
        assert_equal(got, same, "the text drawn at no temperature, which is 1")


@examples(quick=2, full=10)
@given(case=draws(None))
def test_every_token_of_every_text_is_drawn_anew(subject, case):
    """Two tokens in a row, in 800 texts, have the probability of the one times that of the other.

    Catches one draw shared by all texts, and a generator that starts again with every token."""
    generator = torch.Generator().manual_seed(case.seed)
    got = subject.generate(Bigram(ROWS), torch.full((800, 1), case.last), 2, generator=generator)
    assert_tensor(got, shape=(800, 3), dtype=torch.int64, name="the batch of texts")
    assert_as_likely(got[:, 1:], law_of(case.last, 1.0, 2), f"after {case.last}, the tokens")


@examples(quick=1, full=2)
@given(seed=SEEDS)
def test_no_token_is_too_unlikely_to_be_drawn(subject, seed):
    """Of 64 tokens that are about equally likely, each is drawn at least once in 2000 draws.

    Catches a top-k that nobody asked for. A right answer misses one with probability 64 · (1 − 0.9/64)^2000 < 4e-11."""
    model = Bigram(noise(seed, 1, 64).expand(64, 64) / 100)
    ids = some_ids(seed, 64, 2000, 1)
    got = subject.generate(model, ids, 1, generator=torch.Generator().manual_seed(seed))
    assert_tensor(got, shape=(2000, 2), dtype=torch.int64, name="the batch of texts")
    missing = sorted(set(range(64)) - set(got[:, 1].tolist()))
    assert_equal(missing, [], "the tokens that never came in 2000 draws of 64 about equally likely ones")


@examples(quick=3, full=20)
@given(case=prompts(count=(1, 4)), seed=SEEDS)
def test_the_generator_is_the_only_source_of_randomness(subject, case, seed):
    """Equal generators give equal texts and move on; torch's global random state is neither used nor moved.

    Catches multinomial without the generator, which draws from global state."""
    case = replace(case, options={"temperature": 1.0}, ids=case.ids[:1].repeat(20, 1))
    texts = []
    for world in (0, 1):
        torch.manual_seed(world)
        state, generator = torch.random.get_rng_state(), torch.Generator().manual_seed(seed)
        texts.append(asked(subject, case, generator=generator))
        assert_true(torch.equal(torch.random.get_rng_state(), state), "the global random state was moved")
        start = torch.Generator().manual_seed(seed).get_state()
        assert_true(not torch.equal(generator.get_state(), start), "the generator was not used")
    assert_tensor(
        texts[0], shape=(20, case.ids.shape[1] + case.count), dtype=torch.int64, name="the batch of texts"
    )
    assert_equal(texts[1], texts[0], "the text drawn with an equal generator")


@examples(quick=3, full=24)
@given(case=prompts(count=(1, 3)))
def test_what_cannot_be_generated_is_refused(subject, case):
    """ValueError for a text without a token, a negative count and a negative temperature; the model is then as
    it was.

    Catches a temperature that turns the likeliest token into the least likely, an empty text, and a model put into
    eval mode, or gradients switched off, before the arguments are looked at."""
    model = Rule(case.rule, case.context)
    refuses(
        ValueError,
        lambda: subject.generate(model, case.ids[:, :0], 1),
        because="there is no token to start from",
    )
    refuses(ValueError, lambda: subject.generate(model, case.ids, -1), because="count is negative")
    for generator in (None, torch.Generator().manual_seed(1)):
        refuses(
            ValueError,
            lambda g=generator: subject.generate(model, case.ids, 1, generator=g, temperature=-0.5),
            because="temperature is negative",
        )
    assert_left(model, True)


SENTENCES = ("a rose is a rose", "tic tac toe", "no, no, Nora", "the cat sat")


@examples(quick=0, full=1)
@given(sentence=st.sampled_from(SENTENCES), layers=st.sampled_from((1, 2)), seed=st.integers(0, 49))
def test_a_sentence_is_learned_by_heart(subject, sentence, layers, seed):
    """Within 40 steps the loss on one sentence falls from log(vocab_size) to nearly nothing, and greedy
    generation says the sentence from its first character.

    Catches whatever the other claims miss: all parts have to work together."""
    tokens = subject.Tokens(sentence)
    ids = tokens.encode(sentence)[None]
    torch.manual_seed(seed)
    model = subject.GPT(len(set(sentence)), ids.shape[1], 16, 2, layers)
    losses = subject.train(model, ids, steps=40, lr=0.03)
    chance = math.log(len(set(sentence)))
    assert_true(
        abs(losses[0] - chance) < 0.25,
        "the first loss is not that of a guess",
        expected=chance,
        got=losses[0],
    )
    assert_true(losses[-1] < 0.1, "the last loss is not near zero", expected="below 0.1", got=losses[-1])
    said = tokens.decode(subject.generate(model, ids[:, :1], ids.shape[1] - 1)[0])
    assert_equal(said, sentence, "the sentence said")


# --- part 2: the cache ---------------------------------------------------------------------------


def read(subject, case, model, pieces):
    """The logits of a text that is read in pieces, and the cache at the end."""
    rows, cache, start = [], None, 0
    for piece in pieces:
        piece_ids = case.ids[:, start : start + piece]
        logits, cache = subject.extend(model, piece_ids, *([cache] if start else []))
        rows.append(logits)
        start += piece
    return torch.cat(rows, 1), cache


def cut(time, cuts):
    """Piece lengths of a text: a cut after each place whose bit is set."""
    ends = [t + 1 for t in range(time - 1) if cuts >> t & 1] + [time]
    return [b - a for a, b in zip([0, *ends], ends, strict=False)]


@dataclass
class Pieces:
    """How many tokens are read at a time."""

    pieces: list[int]


@st.composite
def in_pieces(draw, least=1, more=0, **options):
    """Texts, and how they are cut; ``more`` tokens are added at the end, as far as the context allows."""
    case = draw(cases(**options))
    time = min(case.ids.shape[1] + more, case.context)
    return case, Pieces(cut(time, draw(st.integers(least, 63))))


LONG = {"layers": (2, 1, 3), "time": (2, 3, 5, 6, 7)}


@examples(quick=4, full=25)
@given(case=in_pieces(**LONG, dtypes=WIDE))
def test_reading_in_pieces_equals_reading_at_once(subject, case):
    """However a text is cut, its pieces have the logits that the whole text has.

    Catches positions that start again with every piece, a mask aligned to the first key, and layers that share a cache."""
    case, text = case
    got, _ = read(subject, case, built(subject, case), text.pieces)
    agree(got, true_logits(case, weights(case)), case)


@examples(quick=3, full=15)
@given(case=in_pieces(**LONG, more=1))
def test_a_cache_can_be_continued_twice(subject, case):
    """A cache serves any number of continuations: each has the logits of its own text.

    Catches keys appended in place to a cache that somebody else still holds, and keys written into a buffer that
    two continuations share."""
    case, text = case
    model, ids, pieces = built(subject, case), case.ids, text.pieces
    ids = torch.cat([ids, ids[:, :1]], 1)[:, : case.context]
    start = sum(pieces[:-1]) or 1
    _, trunk = read(subject, replace(case, ids=ids[:, :start]), model, pieces[:-1] or [1])
    branches = [torch.cat([ids[:, :start], (ids[:, start:] + i) % case.vocab_size], 1) for i in (0, 1)]
    # Both branches grow by a token and then by the rest, in turns.
    caches = [trunk, trunk]
    for begin, end in ((start, start + 1), (start + 1, ids.shape[1])):
        for i, text in enumerate(branches):
            if begin < end:
                got, caches[i] = subject.extend(model, text[:, begin:end], caches[i])
                agree(got, true_logits(case, weights(case), text[:, :end])[:, begin:], case)
    got, _ = subject.extend(model, ids[:, start:], trunk)
    agree(got, true_logits(case, weights(case), ids)[:, start:], case)


@examples(quick=3, full=20)
@given(case=in_pieces(least=0, time=MANY))
def test_the_context_bounds_the_cache(subject, case):
    """ValueError as soon as cached and new tokens outgrow the context, and for no new token; what just fits is read,
    after a refusal too.

    Catches a bound on the new tokens alone, and a cache that a refused piece has changed."""
    case, text = case
    case = replace(case, context=case.ids.shape[1])
    model = built(subject, case)
    got, cache = read(subject, case, model, text.pieces)
    agree(got, true_logits(case, weights(case)), case)
    refuses(ValueError, lambda: subject.extend(model, case.ids[:, :1], cache), because="the context is full")
    refuses(ValueError, lambda: subject.extend(model, case.ids[:, :0]), because="there is no token to read")
    _, short = subject.extend(model, case.ids[:, :1])
    refuses(
        ValueError, lambda: subject.extend(model, case.ids[:, :0], short), because="there is no token to read"
    )
    refuses(ValueError, lambda: subject.extend(model, case.ids, short), because="one token is cached already")
    got, _ = subject.extend(model, case.ids[:, 1:], short)
    agree(got, true_logits(case, weights(case))[:, 1:], case)


def assert_greedy(case, got, start):
    """Every token from ``start`` on is the likeliest after the last ``context`` ones."""
    found, want = weights(case), got.clone()
    inside = true_logits(case, found, got[:, : case.context]).argmax(-1)
    for t in range(start, got.shape[1]):
        window = got[:, max(0, t - case.context) : t]
        want[:, t] = (
            inside[:, t - 1] if t <= case.context else true_logits(case, found, window)[:, -1].argmax(-1)
        )
    assert_equal(got, want, "the greedy text")


def continued(subject, case, count, **options):
    got = subject.generate_cached(built(subject, case), case.ids, count, **options)
    batch, time = case.ids.shape
    assert_tensor(got, shape=(batch, time + count), dtype=torch.int64, name="the text")
    assert_equal(got[:, :time], case.ids, "the beginning of the text")
    known = bool(((got >= 0) & (got < case.vocab_size)).all())
    assert_true(known, "there are tokens outside of the vocabulary", got=got)
    return got.clone()  # what comes out of inference mode may not go into a pass with gradients


@examples(quick=3, full=20)
@given(case=cases(layers=(1, 2), time=(1, 2, 3)))
def test_cached_generation_takes_the_likeliest_token(subject, case):
    """While the text fits into the context, every token is the likeliest after all those before it.

    The same text is then continued once more, with other weights in the model. Catches a cache that lacks the last
    token or holds one twice, and one that is kept from call to call."""
    count = case.context - case.ids.shape[1]
    for case.seed in (case.seed, case.seed + 1):  # noqa: B020
        assert_greedy(case, continued(subject, case, count), case.ids.shape[1])


@examples(quick=2, full=12)
@given(case=cases(layers=(1, 2), time=(1, 2, 3)), count=st.integers(1, 6), draws=st.booleans())
def test_cached_generation_leaves_the_model(subject, case, count, draws):
    """Model and text are as before generate_cached, as they are before generate.

    Catches a model left in another mode, frozen, or with gradients switched off."""
    model, before = built(subject, case), case.ids.clone()
    continued(subject, case, count, generator=torch.Generator().manual_seed(1) if draws else None)
    untouched({"ids": before} | weights(case), {"ids": case.ids} | dict(model.named_parameters()))
    assert_left(model, case.training)


@examples(quick=3, full=30)
@given(
    case=cases(layers=(2, 1), batch=(1, 2, 3, 5)),
    context=st.sampled_from((2, 3, 4, 1)),
    count=st.integers(1, 7),
)
def test_cached_generation_goes_on_beyond_the_context(subject, case, context, count):
    """Once the text outgrows the context, each token is the likeliest after the last ``context`` ones, as read anew.

    Catches keys kept while the window slides: they hold positions that no longer are theirs."""
    case = replace(case, context=context)
    for most in sorted({1, count}):
        assert_greedy(case, continued(subject, case, most), case.ids.shape[1])


@examples(quick=3, full=20)
@given(
    case=cases(time=(1, 2, 3)), count=st.integers(0, 5), temperature=st.sampled_from((1.0, 0.5, 0.0, None))
)
def test_cached_draws_are_the_uncached_ones(subject, case, count, temperature):
    """With an equal generator generate_cached draws the text that generate draws.

    Catches a temperature or a generator that is not handed on."""
    options = {} if temperature is None else {"temperature": temperature}
    case = replace(case, ids=case.ids[:1].repeat(8, 1))
    built(subject, case)  # a model that has to be made first moves the global random state, as it may
    state = torch.random.get_rng_state()
    got = continued(subject, case, count, generator=torch.Generator().manual_seed(case.seed), **options)
    assert_true(torch.equal(torch.random.get_rng_state(), state), "the global random state was moved")
    generator = torch.Generator().manual_seed(case.seed)
    want = subject.generate(built(subject, case), case.ids, count, generator=generator, **options)
    assert_equal(got, want, "the text drawn with an equal generator")


@examples(quick=2, full=10)
@given(case=cases(time=(1, 2, 3)))
def test_cached_generation_refuses_what_generation_refuses(subject, case):
    """ValueError for a text without a token, a negative count and a negative temperature, with a cache too.

    Catches checks that stand in generate alone, and a model that a refusal leaves in another mode."""
    model = built(subject, case)
    for ids, count, options, because in (
        (case.ids[:, :0], 1, {}, "there is no token to start from"),
        (case.ids, -1, {}, "count is negative"),
        (case.ids, 1, {"temperature": -0.5}, "temperature is negative"),
    ):
        refuses(
            ValueError,
            lambda i=ids, c=count, o=options: subject.generate_cached(model, i, c, **o),
            because=because,
        )
    assert_left(model, case.training)


class Products(TorchDispatchMode):
    """Counts the multiplications of matrix products."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        if name in ("mm", "bmm", "addmm", "baddbmm", "linear"):
            self.count += out.numel() * args[1 if name in ("addmm", "baddbmm") else 0].shape[-1]
        return out


def products(call):
    with torch.no_grad(), Products() as counted:
        result = call()
    return counted.count, result


@examples(quick=1, full=2)
@given(case=cases(layers=(1, 2), batch=(1, 2), time=(1, 2)))
def test_no_token_is_read_twice(subject, case):
    """Generating twelve tokens with a cache takes hardly more products than reading the text at once, and
    reading one token after twelve a fraction of that.

    Catches a cache that keeps the text and reads all of it again for every token."""
    case, time = replace(case, context=13), case.ids.shape[1]
    model = built(subject, case)
    used, got = products(lambda: continued(subject, case, case.context - time + 1))
    assert_greedy(case, got, time)
    got = got[:, :-1]  # the last token is written, but not read
    once, _ = products(lambda: model(got))
    most = once * 3 // 2
    assert_true(used <= most, "too much is computed again", expected=f"at most {most} products", got=used)
    _, cache = subject.extend(model, got[:, :-1])
    used, (logits, _) = products(lambda: subject.extend(model, got[:, -1:], cache))
    agree(logits, true_logits(case, weights(case), got)[:, -1:], case)
    assert_true(
        used <= once / 4, "too much is computed again", expected=f"at most {once // 4} products", got=used
    )


# --- part 3: the classifier ----------------------------------------------------------------------


@dataclass
class Scored:
    """Texts with their lengths, and the weights of the head."""

    lengths: Tensor
    weight: Tensor
    bias: Tensor


@st.composite
def scored(draw, **options):
    case = draw(cases(**({"layers": (1, 2)} | options)))
    classes, seed = draw(st.sampled_from((2, 3, 1, 7))), case.seed + 5
    lengths = some_ids(seed, case.ids.shape[1], case.ids.shape[0]) + 1
    return case, Scored(lengths, noise(seed, classes, case.d_model), noise(seed + 1, classes))


def classifier(subject, case, head):
    model = subject.Classifier(made(subject.GPT, case.sizes, case.dtype), len(head.bias)).to(case.dtype)
    found = {f"gpt.{n}": w for n, w in weights(case).items()}
    return put(model, found | {"head.weight": head.weight, "head.bias": head.bias})


def true_scores(case, head, found=None):
    states = true_states(case, weights(case) if found is None else found, case.ids)
    last = torch.stack([row[n - 1] for row, n in zip(states, head.lengths.tolist(), strict=True)])
    return last @ head.weight.T + head.bias


@examples(quick=3, full=15)
@given(case=scored())
def test_the_classifier_shares_the_model(subject, case):
    """The classifier's ``gpt`` is the model that it was given, not a copy: what one learns, the other knows.

    Catches a deepcopy, a new GPT of the same sizes, a trunk that is no submodule, and one that is initialised again."""
    case, head = case
    model = built(subject, case)
    scores = subject.Classifier(model, len(head.bias)).to(case.dtype)
    own, given_ = dict(scores.named_parameters()), dict(model.named_parameters())
    assert_equal(
        sorted(own), sorted([*(f"gpt.{n}" for n in shapes(case)), "head.weight", "head.bias"]), "the names"
    )
    apart = [name for name, p in given_.items() if own[f"gpt.{name}"] is not p]
    assert_equal(apart, [], "the parameters that are not shared")
    moved = [name for name, w in weights(case).items() if not torch.equal(given_[name].detach(), w)]
    assert_equal(moved, [], "the model's parameters that the classifier set anew")
    frozen = [name for name, p in own.items() if not p.requires_grad]
    assert_equal(frozen, [], "the parameters without a gradient")


@examples(quick=4, full=24)
@given(case=scored(dtypes=WIDE))
def test_the_last_token_of_a_text_is_scored(subject, case):
    """Row i is head(norm(x)) at place lengths[i] − 1 of text i.

    Catches the first or the last place, a mean over places, lengths used as places, and states before the norm."""
    case, head = case
    before, lengths = case.ids.clone(), head.lengths.clone()
    agree(
        classifier(subject, case, head)(case.ids, head.lengths),
        true_scores(case, head),
        case,
        "the tensor of scores",
    )
    untouched({"ids": before, "lengths": lengths}, {"ids": case.ids, "lengths": head.lengths})


@examples(quick=3, full=20)
@given(case=scored(time=MANY, batch=(2, 3)))
def test_padding_never_matters(subject, case):
    """Any tokens after lengths[i] leave row i as it is, and so do the other texts; the text's own do not.

    Catches padding that is pooled or attended to, and rows of one text mixed with the lengths of another."""
    case, head = case
    model = classifier(subject, case, head)
    past = torch.arange(case.ids.shape[1]) >= head.lengths[:, None]
    padded = replace(case, ids=torch.where(past, (case.ids + 1) % case.vocab_size, case.ids))
    agree(model(padded.ids, head.lengths), true_scores(case, head), case, "the tensor of scores")


@examples(quick=2, full=12)
@given(case=scored())
def test_the_classifier_trains_its_trunk(subject, case):
    """The scores have their gradient in the head and in every parameter of the trunk.

    Catches a trunk run without gradients, and a head on detached states."""
    case, head = case
    found = {n: w.clone().requires_grad_() for n, w in weights(case).items()}
    upstream = noise(case.seed + 3, len(case.ids), len(head.bias))
    want = gradients(true_scores(case, head, found), list(found.values()), upstream)
    model = classifier(subject, case, head)
    own = dict(model.named_parameters())
    got = gradients(model(case.ids, head.lengths), [own[f"gpt.{name}"] for name in found], upstream)
    largest = 1 + max(float(g.abs().max()) for g in want)
    for name, due, has in zip(found, want, got, strict=True):
        assert_close(
            has,
            due,
            dtype=case.dtype,
            steps=10 * ROUNDINGS,
            magnitude=largest,
            name=f"the gradient of {name}",
        )


@examples(quick=3, full=20)
@given(case=scored())
def test_lengths_that_do_not_fit_are_refused(subject, case):
    """ValueError for lengths below 1 or beyond the text, and for more or fewer of them than texts.

    Catches length 0, which reads the last place of all, and one length for a whole batch."""
    case, head = case
    model, (batch, time) = classifier(subject, case, head), case.ids.shape
    for bad in (0, time + 1, -1):
        lengths = head.lengths.clone()
        lengths[-1] = bad
        refuses(
            ValueError, lambda n=lengths: model(case.ids, n), because=f"a text of {time} has no length {bad}"
        )
    for lengths in (head.lengths.repeat(2), head.lengths[:, None], head.lengths[0]):
        refuses(
            ValueError,
            lambda n=lengths: model(case.ids, n),
            because=f"{tuple(lengths.shape)} lengths for {batch} texts",
        )


# --- what tells one mistake from another ---------------------------------------------------------


def probes(subject):
    """Calls whose results differ from mistake to mistake, by name.

    Draws are told by what can come and what cannot: every way of drawing gives the same, whatever it does with
    the generator."""
    ids = torch.tensor([[0, 2, 1, 1, 3], [4, 1, 0, 2, 2]])
    case = Case(5, 6, 2, 4, 2, ids, 7)
    one = replace(case, n_layers=1)
    lesson = Lesson(noise(1, 3, 3), noise(2, 3), 8.0, torch.tensor([[0, 1, 2, 2, 0]]), 4, 0.3)
    # So loud that even who draws takes the likeliest.
    prompt = Prompt(1e4 * noise(3, 41, 4), 9, torch.tensor([[0, 1], [3, 2]]), 6, {})
    head = Scored(torch.tensor([2, 5]), noise(4, 3, 8), noise(5, 3))
    tokens = "To be or not"

    def logits(which, *silent, texts=ids):
        return lambda: built(subject, which, without(weights(which), *silent))(texts)

    def own(model, *names):
        parameters = dict(model.named_parameters())
        return [parameters[name] for name in names]

    def slopes():
        model = built(subject, case)
        names = ("token_embedding.weight", "blocks.0.norm1.weight", "blocks.1.norm2.bias")
        return gradients(model(ids[:1]), own(model, *names), noise(6, 1, 5, 5))

    def new():
        torch.manual_seed(3)
        embedding, out = own(
            subject.GPT(8, 6, 32, 2, 1), "token_embedding.weight", "blocks.0.attn.out.weight"
        )
        spreads = [float(p.detach().std()) for p in (embedding, out)]
        return [0.015 < spread < 0.025 for spread in spreads] + [spreads[0] > 0.5]

    def lost(labels=ids[:, :4], loud=1.0):
        model = Says(noise(8, 2, 4, 5) * loud)
        value = subject.loss(model, labels)
        return value, gradients(value, [model.logits])[0]

    def learnt(gain, steps, old=False):
        def call():
            model = Bigram(lesson.table, lesson.bias, gain)
            if old:
                model.table.grad, model.bias.grad = noise(1, 3, 3), noise(2, 3)
            losses = subject.train(model, lesson.ids, steps=steps, lr=lesson.lr)
            # torch divides by norm + 1e-6 when it clips, others by norm.
            return (
                [round(float(x), 5) for x in losses],
                model.table.detach().float(),
                model.bias.detach().float(),
            )

        return call

    def learnt_all():
        model = put(subject.GPT(*one.sizes).to(one.dtype), weights(one))
        subject.train(model, ids, steps=1, lr=0.1)
        names = ("token_embedding.weight", "norm.weight", "blocks.0.mlp.up.weight")
        return [p.detach().float() for p in own(model, *names)]

    def seen(table, temperature, vocab=2):
        """Which tokens come after each token, in eighty draws each."""

        def call():
            ids, generator = torch.arange(vocab).repeat(80)[:, None], torch.Generator().manual_seed(9)
            got = subject.generate(Bigram(table), ids, 1, generator=generator, temperature=temperature)
            return [sorted(set(got[got[:, 0] == i, 1].tolist())) for i in range(vocab)]

        return call

    def spread():
        """How many of sixty about equally likely tokens come."""
        table, generator = noise(4, 1, 60).expand(60, 60) / 100, torch.Generator().manual_seed(9)
        ids = torch.zeros(1200, 1, dtype=torch.int64)
        return len(subject.generate(Bigram(table), ids, 1, generator=generator)[:, 1].unique())

    def moved(generator):
        def call():
            torch.manual_seed(5)
            state, mine = torch.random.get_rng_state(), torch.Generator().manual_seed(9)
            options = {"generator": mine} if generator else {}
            subject.generate(Bigram(ROWS), torch.tensor([[0], [1]]), 2, **options)
            start = torch.Generator().manual_seed(9).get_state()
            return torch.equal(torch.random.get_rng_state(), state), torch.equal(mine.get_state(), start)

        return call

    def branched():
        model = built(subject, case)
        _, cache = subject.extend(model, ids[:, :2])
        first, grown = subject.extend(model, ids[:, 2:3], cache)
        second, _ = subject.extend(model, 4 - ids[:, 2:4], cache)
        return first, second, subject.extend(model, ids[:, 3:4], grown)[0]

    def shared():
        model = built(subject, one)
        (weight,), before = own(model, "norm.weight"), model(ids)
        found = any(p is weight for p in subject.Classifier(model, 2).parameters())
        return found, torch.equal(model(ids), before)

    def large(sign, reach=30):
        found = without(weights(one), "mlp")
        found["blocks.0.attn.qkv.bias"][: one.d_model] += reach
        found["blocks.0.attn.qkv.bias"][one.d_model : 2 * one.d_model] += reach * sign
        return lambda: built(subject, one, found)(ids)

    def long():
        case = Case(70, 80, 2, 1, 1, some_ids(7, 70, 1, 80), 7)
        return built(subject, case)(case.ids)[0, -1]

    def gradients_afterwards():
        subject.generate(Bigram(ROWS), torch.tensor([[0]]), 1)
        return torch.is_grad_enabled()

    def scores_slope():
        model = classifier(subject, one, head)
        return gradients(model(ids, head.lengths), own(model, "gpt.token_embedding.weight"))

    def work_to_the_end():
        """Is each token read once until the context is full?"""
        model = built(subject, one)
        used, got = products(lambda: subject.generate_cached(model, ids[:1, :1], 6))
        return used <= products(lambda: model(got[:, :6]))[0] * 3 // 2

    def left(call):
        """The model after a text was generated: its mode, and what can be trained."""
        model = built(subject, one)
        call(model, ids[:, :2], 2)
        modes = sorted({m.training for m in model.modules()})
        return modes, all(p.requires_grad for p in model.parameters()), torch.is_grad_enabled()

    def refused_and_left():
        """The model after a refusal: its mode, and whether gradients are on."""
        model = built(subject, one)
        with suppress(ValueError):
            subject.generate(model, ids[:, :2], -1)
        return model.training, torch.is_grad_enabled()

    def cached_twice():
        """The same text continued with one set of weights, and with another."""
        texts = some_ids(2, 5, 8, 3)
        built(subject, replace(one, seed=8))
        subject.generate_cached(built(subject, one), texts, 3)
        return subject.generate_cached(built(subject, replace(one, seed=8)), texts, 3)

    def cached_draws():
        """Are the tokens drawn with a cache those drawn without?"""
        model, texts = built(subject, one), ids[:, :3].repeat(4, 1)
        calls = subject.generate, subject.generate_cached
        got = [call(model, texts, 3, generator=torch.Generator().manual_seed(9)) for call in calls]
        return torch.equal(*got)

    def frozen():
        """Can the model still be trained once it has a classifier?"""
        model = made(subject.GPT, one.sizes, one.dtype)
        subject.Classifier(model, 2)
        trained = all(p.requires_grad for p in model.parameters())
        model.requires_grad_(True)
        return trained

    def close():
        """Tokens that are almost equally likely, without a generator and with one at temperature 0."""
        texts, generator = torch.tensor([[0], [1], [2]] * 3), torch.Generator().manual_seed(9)
        want = (texts + torch.tensor([0, 2, 1, 0, 2])) % 3
        options = {}, {"generator": generator, "temperature": 0.0}
        return [torch.equal(subject.generate(Bigram(CLOSE), texts, 4, **o), want) for o in options]

    def known():
        """How many losses training gives on a text that is known from the start."""
        model = Bigram(torch.tensor([[0.0, 14.0], [14.0, 0.0]], dtype=torch.float64))
        return len(subject.train(model, torch.tensor([[0, 1, 0]]), steps=3, lr=0.1))

    def work():
        return products(lambda: subject.generate_cached(built(subject, one), ids[:, :1], 4))[0] > 12000

    def refused(call):
        def probe():
            try:
                call()
            except NotImplementedError:
                raise
            except ValueError:
                return True
            except Exception:
                return False
            return False

        return probe

    def cached(which, context, length, count):
        def call():
            model = built(subject, replace(which, context=context))
            return subject.generate_cached(model, some_ids(2, 5, 8, length), count)

        return call

    def cold():
        """At a temperature near zero the likeliest tokens are drawn, with a cache as without."""
        model, generator = built(subject, one), torch.Generator().manual_seed(9)
        got = subject.generate_cached(
            model, ids[:, :1].repeat(9, 1), 5, generator=generator, temperature=1e-9
        )
        return torch.equal(got, subject.generate_cached(model, ids[:, :1].repeat(9, 1), 5))

    def generated(call, **options):
        return refused(lambda: call(built(subject, one), ids[:, :1], 1, **options))

    def kept(call):
        """Whatever a probe does to torch's switches, the next one finds them as they were."""

        def probe():
            with torch.enable_grad():
                return call()

        return probe

    found = {
        "ids": lambda: subject.Tokens(tokens).encode("not be To"),
        "decoded": lambda: subject.Tokens(tokens).decode(torch.tensor([1, 3, 2])),
        "decoded −1": refused(lambda: subject.Tokens(tokens).decode(torch.tensor([-1]))),
        "names": lambda: sorted(n for n, _ in subject.GPT(*case.sizes).named_parameters()),
        "new": new,
        "blocks silent": logits(one, "attention", "mlp"),
        "blocks silent, one text": logits(one, "attention", "mlp", texts=ids[:1]),
        "attention": logits(one, "mlp"),
        "mlp": logits(one, "attention"),
        "two blocks": logits(case),
        "evaluating": logits(replace(one, training=False)),
        "large scores": large(1),
        "large negative scores": large(-1),
        "larger negative scores": large(-1, 120),
        "largest negative scores": large(-1, 300),
        "long text": long,
        "gradients": slopes,
        "loss": lost,
        "loss, loud": lambda: lost(loud=1000.0),
        "step": learnt(1.0, 1),
        "steps": learnt(0.2, 4),
        "clipped steps": learnt(8.0, 4),
        "old gradients": learnt(1.0, 1, old=True),
        "all learn": learnt_all,
        "greedy": lambda: asked(subject, prompt),
        "greedy, beyond": lambda: asked(subject, replace(prompt, context=3)),
        "seen when hot": seen(torch.tensor([[0.0, 600.0], [0.6, 0.0]], dtype=torch.float64), 1000.0),
        "seen when cold": seen(torch.tensor([[0.0, 0.6], [0.6, 0.0]], dtype=torch.float64), 0.001),
        "seen of one": seen(torch.tensor([[0.0, -900.0], [0.0, -900.0]], dtype=torch.float64), 1.0),
        "spread": spread,
        "gradients afterwards": gradients_afterwards,
        "random states": moved(True),
        "random states, greedy": moved(False),
        "no next token": refused(lambda: lost(ids[:, :1])),
        "pieces": lambda: read(subject, case, built(subject, case), [2, 1, 2])[0],
        "branched": branched,
        "cached": cached(one, 6, 1, 5),
        "cached, beyond": cached(case, 3, 2, 9),
        "cached, cold": cold,
        "close at temperature 0": close,
        "known from the start": known,
        "left": lambda: left(subject.generate),
        "left, refused": refused_and_left,
        "cached, again": cached_twice,
        "cached, drawn": cached_draws,
        "frozen": frozen,
        "left, cached": lambda: left(subject.generate_cached),
        "work": work,
        "work, to the end": work_to_the_end,
        "read to the end": lambda: read(
            subject, replace(one, ids=ids.repeat(1, 2)[:, :6]), built(subject, one), [3, 3]
        )[0],
        "nothing new": refused(
            lambda: subject.extend(
                built(subject, one), ids[:, :0], subject.extend(built(subject, one), ids)[1]
            )
        ),
        "size below 0": refused(lambda: subject.GPT(5, 6, 8, 2, -1)),
        "scores": lambda: classifier(subject, one, head)(ids, head.lengths),
        "shared": shared,
        "scores, gradients": scores_slope,
        "text too long": refused(lambda: built(subject, one)(ids.repeat(1, 2))),
        "heads that do not fit": refused(lambda: subject.GPT(5, 6, 6, 4, 1)),
        "cache too long": refused(
            lambda: read(subject, replace(one, ids=ids.repeat(1, 2)), built(subject, one), [5, 2])
        ),
        "length below 0": refused(lambda: classifier(subject, one, head)(ids, torch.tensor([-1, 5]))),
        "length 0": refused(lambda: classifier(subject, one, head)(ids, torch.tensor([0, 5]))),
        "temperature below 0": generated(subject.generate, temperature=-1.0),
        "temperature below 0, cached": generated(subject.generate_cached, temperature=-1.0),
    }
    return {label: kept(call) for label, call in found.items()}
