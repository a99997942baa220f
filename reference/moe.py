r"""A sparse mixture of SwiGLU experts, with capacity, and balanced by a loss or by a bias.

    logits  = W_r x                                     one for each expert
    S       = the top_k experts by logit + bias         bias = 0 unless update_bias is used
    g_i     = exp(logit_i) / Σ_{j∈S} exp(logit_j)       without the bias
    MoE(x)  = Σ_{i∈S} g_i · W_down,i (silu(W_gate,i x) ⊙ W_up,i x)

The softmax over the chosen logits equals the softmax over all of them, renormalised over the chosen: the
other terms of its denominator cancel.

Dispatch sorts the tokens · top_k assignments by expert. Each expert then has one run of them, gathers its
tokens, does three matrix products and adds its weighted results back at their places. An expert whose run
is empty is passed over. The sort is stable, so that a run is in the order of the tokens, and capacity
cuts it short from the back.

    capacity = ⌈capacity_factor · tokens · top_k / n_experts⌉
    loss     = n_experts · Σ_i f_i P_i      f_i = share of the assignments, P_i = mean probability
    bias_i  += rate · sign(mean load − load_i)

f comes from a choice, which has no slope; the loss teaches through P, and pulls hardest on the busiest
expert. The bias acts on the choice itself and leaves the gradient of the model alone.

Conventions: what is dropped adds zero and the rest is not renormalised, so the residual stream around the
layer carries the token on; tokens count by position, whichever of their choices an expert was; half types
route and add up in float32.

Cost: 3 · tokens · top_k · d_model · d_ff multiply-adds, 3 products a busy expert, one sort of
tokens · top_k numbers, and memory for the activations of one expert at a time (autograd keeps them all).

Sources: Shazeer et al., Outrageously Large Neural Networks, 2017, arXiv:1701.06538, for the sparse gate;
Fedus, Zoph & Shazeer, Switch Transformers, JMLR 2022, arXiv:2101.03961, eq. 3–6, for capacity and the loss
(there for top_k = 1; here f is a share of the assignments, so that balance costs 1 for any top_k); Jiang et
al., Mixtral of Experts, 2024, arXiv:2401.04088, §2.1, for the softmax over the chosen and SwiGLU; Wang et
al., Auxiliary-Loss-Free Load Balancing, 2024, arXiv:2408.15664, Algorithm 1, and DeepSeek-V3, 2024,
arXiv:2412.19437, §2.1.2, for the bias (there beside sigmoid scores, here beside logits).
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import silu


class MoE(nn.Module):
    """Every token goes to ``top_k`` of ``n_experts`` SwiGLU networks, as far as they have room.

    Raises ValueError for a size below 1, more choices than experts, or a capacity that is not positive.
    """

    def __init__(
        self, d_model: int, d_ff: int, n_experts: int, top_k: int, *, capacity_factor: float | None = None
    ) -> None:
        super().__init__()
        if min(d_model, d_ff, n_experts, top_k) < 1 or top_k > n_experts:
            raise ValueError(f"bad sizes: {d_model=}, {d_ff=}, {n_experts=}, {top_k=}")
        if capacity_factor is not None and not capacity_factor > 0:
            raise ValueError(f"capacity_factor must be positive, got {capacity_factor}")
        self.d_model, self.n_experts, self.top_k = d_model, n_experts, top_k
        self.capacity_factor = capacity_factor
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.w_gate = _linears(n_experts, d_ff, d_model)
        self.w_up = _linears(n_experts, d_ff, d_model)
        self.w_down = _linears(n_experts, d_model, d_ff)
        self.register_buffer("bias", torch.zeros(n_experts))

    def route(
        self, x: Float[Tensor, "*batch d_model"]
    ) -> tuple[Float[Tensor, "*batch top_k"], Int[Tensor, "*batch top_k"]]:
        """The weights and the numbers of each token's experts. ValueError if x is not d_model wide."""
        if x.shape[-1:] != (self.d_model,):
            raise ValueError(f"x has shape {tuple(x.shape)}, d_model is {self.d_model}")
        logits = _widened(x) @ _widened(self.router.weight).T
        experts = (logits + self.bias).topk(self.top_k).indices
        return logits.gather(-1, experts).softmax(-1).to(x.dtype), experts

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The weighted sum of each token's experts that had room for it."""
        weights, experts = self.route(x)
        tokens, weights, experts = x.reshape(-1, self.d_model), weights.flatten(), experts.flatten()
        room = self._capacity(len(tokens))
        # Assignment a is one of token a // top_k. The sort keeps those of an expert in the order of tokens.
        runs = experts.argsort(stable=True).split(_load(experts, self.n_experts).tolist())
        out = torch.zeros_like(_widened(tokens))
        for run, gate, up, down in zip(
            runs, self.w_gate.unbind(), self.w_up.unbind(), self.w_down.unbind(), strict=True
        ):
            if not len(run):
                continue
            served = run[:room]
            at = served // self.top_k
            inputs = tokens[at]
            outputs = (silu(inputs @ gate.T) * (inputs @ up.T)) @ down.T
            out.index_add_(0, at, _widened(outputs) * weights[served, None])
        return out.to(x.dtype).reshape(x.shape)

    def update_bias(self, experts: Int[Tensor, "*batch top_k"], *, rate: float = 1e-3) -> None:
        """Make busy experts less and idle ones more likely to be chosen. ValueError for an unknown expert."""
        load = _load(experts, self.n_experts)
        # In whole numbers, of which a half type holds few: n_experts · (mean load − load).
        self.bias += rate * (load.sum() - self.n_experts * load).sign().to(self.bias.dtype)

    def _capacity(self, tokens: int) -> int | None:
        if self.capacity_factor is None:
            return None
        return math.ceil(self.capacity_factor * tokens * self.top_k / self.n_experts)


def load_balancing_loss(
    logits: Float[Tensor, "*batch n_experts"], experts: Int[Tensor, "*batch top_k"]
) -> Float[Tensor, ""]:
    """1 if assignments or probabilities are spread evenly, n_experts if all go to one expert for certain.

    Raises ValueError if the leading dimensions differ or an expert is unknown.
    """
    n_experts = logits.shape[-1]
    if experts.shape[:-1] != logits.shape[:-1]:
        raise ValueError(f"experts {tuple(experts.shape)} do not fit logits {tuple(logits.shape)}")
    probabilities = _widened(logits).softmax(-1).reshape(-1, n_experts).mean(0)
    share = _load(experts, n_experts).to(probabilities.dtype) / experts.numel()
    return (n_experts * (share * probabilities).sum()).to(logits.dtype)


def _load(experts: Tensor, n_experts: int) -> Tensor:
    """How many assignments each expert has."""
    if ((experts < 0) | (experts >= n_experts)).any():
        raise ValueError(f"experts {experts.tolist()} must be in [0, {n_experts})")
    return experts.flatten().bincount(minlength=n_experts)


def _linears(count: int, width: int, fan_in: int) -> nn.Parameter:
    """That many weight matrices, whose products have the variance of what goes in."""
    return nn.Parameter(torch.randn(count, width, fan_in) / math.sqrt(fan_in))


def _widened(x: Tensor) -> Tensor:
    """Half types as float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
