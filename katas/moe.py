"""A mixture of experts: a router sends every token to top_k of n_experts feed-forward networks.

MoE(d_model, d_ff, n_experts, top_k, *, capacity_factor=None) is an nn.Module whose parameters are these,
from which the tests load weights by name (how you initialise them is yours, but no two fresh experts are alike,
in one layer or in two):

    router.weight (n_experts, d_model)          w_gate, w_up (n_experts, d_ff, d_model)
                                                w_down       (n_experts, d_model, d_ff)

x is (..., d_model). It works on any number of leading dimensions, none of them and no tokens included, on
float64, float32 and bfloat16 (the module is cast with .to), and on non-contiguous inputs. Inputs and
parameters are left alone. The dtype out is the dtype in; in float64 everything runs in float64, and for
half types softmax and sums over experts run in float32. Training and evaluation give the same.

Part 1, routing.

    logits = x @ router.weight.T
    .route(x)     (weights, experts), both (..., top_k): for each token the experts with the largest logits
                  (integers, all different; their order and what happens on a tie are open) and the softmax
                  over these logits alone, in the dtype of x. With top_k = 1 the weight is 1.
    .forward(x)   for each token, Σ over its experts e of  weight_e · w_down[e] · (silu(w_gate[e]·x) ⊙ w_up[e]·x)
    load_balancing_loss(logits, experts)
                  n_experts · Σ_i f_i · P_i, a scalar in the dtype of logits. f_i is the share of all
                  (token, expert) assignments that went to expert i, and P_i the mean over tokens of the
                  softmax over all logits. The f_i sum to one, so balanced routing costs exactly 1 for any
                  top_k. Gradients flow through P only. logits (..., n_experts), experts (..., top_k).

- Tokens are dispatched in groups: the number of torch operations does not grow with the number of tokens
  (a loop over experts is fine).
- An expert that no token chose costs nothing: matrix products cost tokens · top_k · 3 · d_model · d_ff
  multiply-adds beside the router's, its weights may be NaN, and its gradient is exactly zero.

Part 2, capacity. With a capacity_factor each expert serves at most

    capacity = ceil(capacity_factor · tokens · top_k / n_experts)

assignments of one call, tokens being all tokens of x. It serves the first of them in the order of the tokens
(x flattened to (tokens, d_model)), whichever of a token's choices it was. The others are dropped: they add
nothing to the output, and the weights of what remains are not renormalised. route is as before.

Part 3, balance without a loss. The buffer bias (n_experts,), zeros at first and saved in the state dict,
is added to the logits to choose experts, and for nothing else: the weights are the softmax over the chosen
logits without it. It gets no gradient.

    .update_bias(experts, *, rate=1e-3)    bias_i += rate · sign(mean load − load_i), in place, where load_i
                                           is how many of the assignments (..., top_k) went to expert i

ValueError, with the values received: a size or top_k below 1, top_k above n_experts, a capacity_factor that
is not positive; x whose last dimension is not d_model; experts whose leading dimensions are not those of
the logits, or that hold a number outside 0 … n_experts − 1 (in load_balancing_loss and update_bias).

Example, with d_model = n_experts = 2, top_k = 1 and router.weight the identity:

    .route(tensor([[3., 1.], [0., 2.]]))   →  weights [[1.], [1.]], experts [[0], [1]]
    load_balancing_loss(zeros(2, 2), tensor([[0], [1]]))  →  2 · (½·½ + ½·½) = 1
    .update_bias(tensor([[0], [0], [1]]))  →  bias [−0.001, 0.001]: the mean load is 1.5
"""

from jaxtyping import Float, Int
from torch import Tensor, nn


class MoE(nn.Module):
    def __init__(
        self, d_model: int, d_ff: int, n_experts: int, top_k: int, *, capacity_factor: float | None = None
    ) -> None:
        raise NotImplementedError

    def route(
        self, x: Float[Tensor, "*batch d_model"]
    ) -> tuple[Float[Tensor, "*batch top_k"], Int[Tensor, "*batch top_k"]]:
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        raise NotImplementedError

    def update_bias(self, experts: Int[Tensor, "*batch top_k"], *, rate: float = 1e-3) -> None:
        raise NotImplementedError


def load_balancing_loss(
    logits: Float[Tensor, "*batch n_experts"], experts: Int[Tensor, "*batch top_k"]
) -> Float[Tensor, ""]:
    raise NotImplementedError
