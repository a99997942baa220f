"""The references beside what others wrote: the largest difference of results and gradients, on the same weights.

    python -m benchmarks.agreement [KATA ...]

The peers are torch.nn.functional, torch.nn and torch.optim, and Hugging Face transformers (Llama and Mixtral,
the warpers of generate), which need ``pip install -e '.[peers]'``. A difference is given relative to the largest
entry of the peer's result, beside the epsilon of the dtype that the two computed in. Where two conventions
part, the comparison is made where they coincide: the docstring of each reference says where that is. Exit code 1
if a difference is above a hundred epsilons.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dojo import catalogue

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton, as torch.optim may

ALLOWED = 100
Pair = tuple[Tensor, Tensor]
Comparison = Callable[[], Iterator[Pair]]
COMPARISONS: dict[tuple[str, str], Comparison] = {}


def beside(kata: str, peer: str) -> Callable[[Comparison], Comparison]:
    """Register a comparison, which yields pairs: what the reference gives, what the peer gives."""

    def register(compare: Comparison) -> Comparison:
        COMPARISONS[kata, peer] = compare
        return compare

    return register


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


def with_gradients(ours: Tensor, theirs: Tensor, *inputs: Tensor) -> Iterator[Pair]:
    """The two results, and the gradients that they pass to the inputs."""
    yield ours, theirs
    upstream = torch.cos(torch.arange(float(ours.numel()))).reshape(ours.shape).to(ours)
    yield from zip(
        torch.autograd.grad(ours, inputs, upstream),
        torch.autograd.grad(theirs, inputs, upstream),
        strict=True,
    )


# --- torch ------------------------------------------------------------------------------------------------


@beside("softmax", "F.softmax, F.log_softmax, F.cross_entropy")
def _softmax() -> Iterator[Pair]:
    from reference.softmax import cross_entropy, log_softmax, softmax

    x, targets = noise(40, 17), torch.arange(40) % 17
    targets[::5] = -100
    yield from with_gradients(softmax(x, 0), F.softmax(x, 0), x)
    yield from with_gradients(log_softmax(x, 1), F.log_softmax(x, 1), x)
    yield from with_gradients(cross_entropy(x, targets), F.cross_entropy(x, targets), x)


@beside("rmsnorm", "F.rms_norm")
def _rmsnorm() -> Iterator[Pair]:
    from reference.rmsnorm import rmsnorm

    x, weight = noise(5, 64), noise(64, seed=1)
    yield from with_gradients(rmsnorm(x, weight, eps=1e-5), F.rms_norm(x, (64,), weight, 1e-5), x, weight)


@beside("layernorm", "nn.LayerNorm, nn.BatchNorm1d")
def _layernorm() -> Iterator[Pair]:
    from reference.layernorm import BatchNorm1d, LayerNorm

    x = noise(8, 6)
    for mine, theirs in ((LayerNorm(6), nn.LayerNorm(6)), (BatchNorm1d(6), nn.BatchNorm1d(6))):
        mine, theirs = mine.double(), theirs.double()
        for _ in range(3):
            yield from with_gradients(mine(x), theirs(x), x)
        mine.eval(), theirs.eval()
        yield from with_gradients(mine(x), theirs(x), x)


@beside("feed_forward", "F.gelu, F.silu and F.linear")
def _feed_forward() -> Iterator[Pair]:
    from reference.feed_forward import SwiGLU, gelu

    x = noise(9, 12)
    for form in ("none", "tanh"):
        yield from with_gradients(gelu(x, approximate=form), F.gelu(x, approximate=form), x)
    ff = SwiGLU(12, 20).double()
    gate, up, down = ff.w_gate.weight, ff.w_up.weight, ff.w_down.weight
    theirs = F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)
    yield from with_gradients(ff(x), theirs, x, gate, up, down)


@beside("adamw", "torch.optim.AdamW, 100 steps")
def _adamw() -> Iterator[Pair]:
    from reference.adamw import AdamW

    options = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    for foreach in (False, True):
        mine, theirs = ([noise(n, 3, seed=n) for n in (4, 4, 7)] for _ in range(2))
        ours, other = AdamW(mine, **options, foreach=foreach), torch.optim.AdamW(theirs, **options)
        for step in range(100):
            for n, (a, b) in enumerate(zip(mine, theirs, strict=True)):
                a.grad = noise(*a.shape, seed=100 * n + step).detach()
                b.grad = a.grad.clone()
            ours.step(), other.step()
        yield from zip(mine, theirs, strict=True)


@beside("attention", "F.scaled_dot_product_attention")
def _attention() -> Iterator[Pair]:
    from reference.attention import attention

    q, k, v = noise(2, 3, 9, 8), noise(2, 3, 9, 8, seed=1), noise(2, 3, 9, 5, seed=2)
    mask = noise(9, 9, seed=3) > 0
    mask[:, 0] = True
    sdpa = F.scaled_dot_product_attention
    yield from with_gradients(attention(q, k, v), sdpa(q, k, v), q, k, v)
    yield from with_gradients(attention(q, k, v, causal=True), sdpa(q, k, v, is_causal=True), q, k, v)
    yield from with_gradients(
        attention(q, k, v, mask=mask, scale=0.3), sdpa(q, k, v, attn_mask=mask, scale=0.3), q, k, v
    )


@beside("flash_attention", "F.scaled_dot_product_attention")
def _flash_attention() -> Iterator[Pair]:
    from reference.flash_attention import flash_attention

    q, k, v = noise(2, 3, 21, 8), noise(2, 3, 21, 8, seed=1), noise(2, 3, 21, 5, seed=2)
    for causal in (False, True):
        ours = flash_attention(q, k, v, causal=causal, block_q=4, block_k=8)
        yield from with_gradients(ours, F.scaled_dot_product_attention(q, k, v, is_causal=causal), q, k, v)


@beside("triton_flash", "F.scaled_dot_product_attention")
def _triton_flash() -> Iterator[Pair]:
    where = "cuda" if torch.cuda.is_available() else "cpu"
    from reference.triton_flash import triton_flash

    q, k, v = (
        noise(1, heads, 40, 16, seed=seed, dtype=torch.float32).detach().to(where).requires_grad_()
        for seed, heads in enumerate((4, 2, 2))
    )
    theirs = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    yield from with_gradients(triton_flash(q, k, v, causal=True), theirs, q, k, v)


@beside("multi_head_attention", "nn.MultiheadAttention")
def _multi_head_attention() -> Iterator[Pair]:
    from reference.multi_head_attention import MultiHeadAttention

    x, mine = noise(2, 5, 12), MultiHeadAttention(12, 3, causal=True).double()
    theirs = nn.MultiheadAttention(12, 3, bias=False, batch_first=True).double()
    theirs.in_proj_weight.data = torch.cat([mine.wq.weight, mine.wk.weight, mine.wv.weight]).data
    theirs.out_proj.weight.data = mine.wo.weight.data
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    yield from with_gradients(mine(x), theirs(x, x, x, attn_mask=hidden, need_weights=False)[0], x)


# --- Hugging Face transformers ----------------------------------------------------------------------------


@beside("rope", "transformers Llama")
def _rope_llama() -> Iterator[Pair]:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    from reference.rope import apply_rope, rope_tables

    q, k = noise(2, 3, 30, 8, dtype=torch.float32), noise(2, 3, 30, 8, seed=1, dtype=torch.float32)
    config = LlamaConfig(
        hidden_size=24, num_attention_heads=3, rope_parameters={"rope_type": "default", "rope_theta": 500.0}
    )
    turns = LlamaRotaryEmbedding(config)(q, torch.arange(30)[None])
    theirs = apply_rotary_pos_emb(q, k, *turns)
    tables = rope_tables(30, 8, base=500.0)
    yield from with_gradients(apply_rope(q, *tables), theirs[0], q)
    yield from with_gradients(apply_rope(k, *tables), theirs[1], k)


@beside("transformer_block", "transformers LlamaForCausalLM")
def _decoder_llama() -> Iterator[Pair]:
    """All of Llama at once: embedding, RMSNorm, RoPE, grouped heads, SwiGLU, tied head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from reference.transformer_block import Config, DecoderLM

    mine = DecoderLM(
        Config(d_model=24, n_heads=6, n_layers=3, d_ff=40, vocab_size=50, n_kv_heads=2, rope_base=500.0)
    )
    config = LlamaConfig(
        hidden_size=24, num_attention_heads=6, num_key_value_heads=2, num_hidden_layers=3, intermediate_size=40,
        vocab_size=50, rms_norm_eps=1e-6, tie_word_embeddings=True, attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": 500.0}, max_position_embeddings=64,
    )  # fmt: skip
    theirs = LlamaForCausalLM(config).eval()
    renamed = {
        "attn.wq": "self_attn.q_proj", "attn.wk": "self_attn.k_proj", "attn.wv": "self_attn.v_proj",
        "attn.wo": "self_attn.o_proj", "attn_norm": "input_layernorm", "ff_norm": "post_attention_layernorm",
        "ff.w_gate": "mlp.gate_proj", "ff.w_up": "mlp.up_proj", "ff.w_down": "mlp.down_proj",
        "embed.": "embed_tokens.", "blocks.": "layers.",
    }  # fmt: skip
    weights = {}
    for name, weight in mine.state_dict().items():
        for ours, other in renamed.items():
            name = name.replace(ours, other)
        weights[f"model.{name}"] = weight
    theirs.load_state_dict(weights, strict=False)
    tokens = torch.arange(40).reshape(2, 20) * 7 % 50
    yield mine(tokens), theirs(tokens).logits


@beside("moe", "transformers Mixtral")
def _moe_mixtral() -> Iterator[Pair]:
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    from reference.moe import MoE

    config = MixtralConfig(
        hidden_size=12,
        intermediate_size=20,
        num_local_experts=6,
        num_experts_per_tok=2,
        router_jitter_noise=0.0,
    )
    config._experts_implementation = "eager"
    mine, theirs = MoE(12, 20, 6, 2), MixtralSparseMoeBlock(config)
    with torch.no_grad():
        theirs.gate.weight.copy_(mine.router.weight)
        theirs.experts.gate_up_proj.copy_(torch.cat([mine.w_gate, mine.w_up], dim=1))
        theirs.experts.down_proj.copy_(mine.w_down)
    x = noise(3, 11, 12, dtype=torch.float32)
    yield from with_gradients(mine(x), theirs(x), x)


@beside("sampling", "transformers logits warpers")
def _sampling_warpers() -> Iterator[Pair]:
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    from reference.sampling import min_p, temperature, top_k, top_p

    logits = 3 * noise(7, 500).detach()
    pairs = (
        (temperature(logits, 0.7), TemperatureLogitsWarper(0.7)), (top_k(logits, 40), TopKLogitsWarper(40)),
        (top_p(logits, 0.9), TopPLogitsWarper(0.9)), (min_p(logits, 0.1), MinPLogitsWarper(0.1)),
    )  # fmt: skip
    for ours, warper in pairs:
        # Dropped tokens are −inf in both; as zeros of a distribution they can be subtracted.
        yield ours.softmax(-1), warper(None, logits.clone()).softmax(-1)


# --- the table --------------------------------------------------------------------------------------------


def difference(compare: Comparison) -> tuple[float, float, int]:
    """The largest relative difference, the epsilon of the coarsest dtype, and how many tensors were compared."""
    worst, epsilon, count = 0.0, 0.0, 0
    for ours, theirs in compare():
        if ours.shape != theirs.shape:
            raise SystemExit(f"shapes differ: {tuple(ours.shape)} and {tuple(theirs.shape)}")
        scale = theirs.abs().max().clamp(min=torch.finfo(theirs.dtype).tiny)
        worst = max(worst, float(((ours - theirs).abs().max() / scale).detach()))
        epsilon = max(epsilon, torch.finfo(theirs.dtype).eps)
        count += 1
    return worst, epsilon, count


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each comparison."""
    parser = argparse.ArgumentParser("benchmarks.agreement", description=__doc__.splitlines()[0])
    parser.add_argument("katas", nargs="*", metavar="KATA", help="only these")
    asked = parser.parse_args(arguments)
    known = sorted({kata for kata, _ in COMPARISONS})
    if unknown := sorted(set(asked.katas) - set(known)):
        print(f"nothing to compare {', '.join(unknown)} with; there is {', '.join(known)}", file=sys.stderr)
        return 2
    peers = importlib.util.find_spec("transformers")
    versions = [f"torch {torch.__version__}"] + [f"transformers {metadata.version('transformers')}"] * bool(
        peers
    )
    print(f"{', '.join(versions)}; python -m benchmarks.agreement {' '.join(asked.katas)}".rstrip())
    print(f"{'kata':<22}{'beside':<44}{'tensors':>8}{'difference':>12}{'epsilon':>10}")
    failed = False
    for (kata, peer), compare in COMPARISONS.items():
        if asked.katas and kata not in asked.katas:
            continue
        if catalogue.lacking(kata) or (peer.startswith("transformers") and not peers):
            print(f"{kata:<22}{peer:<44}  not installed, nothing compared")
            continue
        worst, epsilon, count = difference(compare)
        failed |= worst > ALLOWED * epsilon
        print(f"{kata:<22}{peer:<44}{count:>8}{worst:>12.1e}{epsilon:>10.1e}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
