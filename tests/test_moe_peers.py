"""The moe reference against Hugging Face's sparse block of Mixtral, where the conventions coincide.

They do without capacity and bias: the weights are the probabilities renormalised over the chosen, gate comes
before up in their stacked projection, and their balance loss is a share of the tokens and not of the
assignments, so it is top_k times ours."""

import pytest
import torch

from reference.moe import MoE, load_balancing_loss

D_MODEL, D_FF, N_EXPERTS = 12, 20, 6


@pytest.fixture(scope="module")
def mixtral():
    pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare with")
    name = "transformers.models.mixtral.modeling_mixtral"
    return pytest.importorskip(name, reason="this version of transformers has no Mixtral at the known place")


@pytest.fixture
def peers(request, mixtral):
    """Both layers with the same weights, for a top_k."""
    from transformers import MixtralConfig

    torch.manual_seed(3)
    config = MixtralConfig(
        hidden_size=D_MODEL, intermediate_size=D_FF, num_local_experts=N_EXPERTS,
        num_experts_per_tok=request.param, router_jitter_noise=0.0,
    )  # fmt: skip
    config._experts_implementation = "eager"
    theirs = mixtral.MixtralSparseMoeBlock(config)
    ours = MoE(D_MODEL, D_FF, N_EXPERTS, request.param)
    if not hasattr(theirs.experts, "gate_up_proj"):
        pytest.skip("this version of transformers keeps Mixtral's experts in another layout")
    with torch.no_grad():
        theirs.gate.weight.copy_(ours.router.weight)
        theirs.experts.gate_up_proj.copy_(torch.cat([ours.w_gate, ours.w_up], dim=1))
        theirs.experts.down_proj.copy_(ours.w_down)
    return ours, theirs


@pytest.mark.parametrize("peers", [1, 2, 3, N_EXPERTS], indirect=True)
def test_the_output_and_its_gradients_equal_mixtrals(peers):
    ours, theirs = peers
    mine, other = (torch.randn(3, 11, D_MODEL, generator=seeded(5)).requires_grad_() for _ in range(2))
    got, want = ours(mine), theirs(other)
    torch.testing.assert_close(got, want)
    (got.sin().sum()).backward()
    (want.sin().sum()).backward()
    stacked = torch.cat([ours.w_gate.grad, ours.w_up.grad], dim=1)
    torch.testing.assert_close(mine.grad, other.grad)
    torch.testing.assert_close(stacked, theirs.experts.gate_up_proj.grad)
    torch.testing.assert_close(ours.w_down.grad, theirs.experts.down_proj.grad)
    torch.testing.assert_close(ours.router.weight.grad, theirs.gate.weight.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_the_balance_loss_times_top_k_is_mixtrals(mixtral, top_k):
    logits = torch.randn(17, N_EXPERTS, generator=seeded(7))
    want = mixtral.load_balancing_loss_func((logits,), num_experts=N_EXPERTS, top_k=top_k)
    got = load_balancing_loss(logits, logits.topk(top_k).indices)
    torch.testing.assert_close(top_k * got, want)


def seeded(seed):
    return torch.Generator().manual_seed(seed)
