"""Where the conventions coincide, the reference gives what PyTorch's module and Hugging Face's Llama give."""

from __future__ import annotations

import pytest
import torch

from reference.multi_head_attention import MultiHeadAttention
from reference.rope import rope_tables


def inputs(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("causal", [False, True])
def test_the_reference_agrees_with_torch(causal):
    d_model, heads, x = 12, 3, inputs(2, 5, 12)
    mine = MultiHeadAttention(d_model, heads, causal=causal).double()
    theirs = torch.nn.MultiheadAttention(d_model, heads, bias=False, batch_first=True).double()
    theirs.in_proj_weight.data = torch.cat([mine.wq.weight, mine.wk.weight, mine.wv.weight]).data
    theirs.out_proj.weight.data = mine.wo.weight.data
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1) if causal else None
    torch.testing.assert_close(mine(x), theirs(x, x, x, attn_mask=hidden, need_weights=False)[0])


@pytest.mark.parametrize(("heads", "groups"), [(6, 6), (6, 2), (6, 1)])
def test_the_reference_agrees_with_hugging_face(heads, groups):
    llama = pytest.importorskip(
        "transformers.models.llama.modeling_llama",
        reason="transformers is not installed",
        exc_type=ImportError,
    )
    from transformers import LlamaConfig

    head_dim, base, positions = 4, 500.0, torch.tensor([[3, 4, 5, 6, 7], [0, 1, 2, 3, 4]])
    d_model, x = heads * head_dim, inputs(2, 5, heads * head_dim)
    config = LlamaConfig(
        hidden_size=d_model, num_attention_heads=heads, num_key_value_heads=groups, attention_bias=False,
        rope_parameters={"rope_type": "default", "rope_theta": base}, max_position_embeddings=16,
    )  # fmt: skip
    config._attn_implementation = "eager"
    tables = rope_tables(16, head_dim, base=base)
    mine = MultiHeadAttention(d_model, heads, n_kv_heads=groups, causal=True, rope=tables).double()
    theirs = llama.LlamaAttention(config, layer_idx=0).double().eval()
    names = {"wq": "q_proj", "wk": "k_proj", "wv": "v_proj", "wo": "o_proj"}
    theirs.load_state_dict({f"{names[n.split('.')[0]]}.weight": w for n, w in mine.state_dict().items()})
    turns = llama.LlamaRotaryEmbedding(config)(x, positions)
    hidden = torch.full((5, 5), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    want = theirs(x, position_embeddings=turns, attention_mask=hidden)[0]
    # Both hold tables of cosines in float32, made in another order of operations.
    torch.testing.assert_close(mine(x, positions=positions), want, rtol=1e-5, atol=1e-6)
