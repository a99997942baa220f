"""mistake: tile-of-the-last-key-skipped

The loop over keys breaks where a tile begins with the last key seen."""

import math

import torch


class FlashAttn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, causal, Br, Bc):
        B, H, N, D = q.shape
        M, Dv = v.shape[2:]
        acc_t = torch.float32 if q.dtype in (torch.float16, torch.bfloat16) else q.dtype
        O = torch.zeros(B, H, N, Dv, dtype=q.dtype, device=q.device)
        L = torch.full((B, H, N), float("-inf"), dtype=acc_t, device=q.device)
        scale = 1.0 / math.sqrt(D)
        shift = M - N
        for i in range(0, N, Br):
            Qi = q[:, :, i : i + Br].to(acc_t)
            n = Qi.size(2)
            m = Qi.new_full((B, H, n), float("-inf"))
            l = Qi.new_zeros((B, H, n))
            acc = Qi.new_zeros((B, H, n, Dv))
            for j in range(0, M, Bc):
                if causal and j >= i + n - 1 + shift and j > 0:
                    break
                Kj, Vj = k[:, :, j : j + Bc].to(acc_t), v[:, :, j : j + Bc].to(acc_t)
                S = torch.einsum("bhid,bhjd->bhij", Qi, Kj) * scale
                if causal and j + Kj.size(2) - 1 > i + shift:
                    qi = torch.arange(i, i + n, device=q.device)[:, None]
                    kj = torch.arange(j, j + Kj.size(2), device=q.device)[None]
                    S = S.masked_fill(kj > qi + shift, float("-inf"))
                m_new = torch.maximum(m, S.max(-1).values)
                safe = m_new.masked_fill(m_new == float("-inf"), 0.0)
                P = torch.exp(S - safe[..., None])
                alpha = torch.exp(m - safe)
                l = alpha * l + P.sum(-1)
                acc = acc * alpha[..., None] + torch.einsum("bhij,bhjd->bhid", P, Vj)
                m = m_new
            seen = l > 0
            O[:, :, i : i + n] = (acc / l.masked_fill(~seen, 1.0)[..., None]).to(q.dtype)
            L[:, :, i : i + n] = torch.where(
                seen, m + l.clamp(min=1e-30).log(), torch.full_like(m, float("inf"))
            )
        ctx.save_for_backward(q, k, v, O, L)
        ctx.args = causal, Br, Bc, scale, shift
        return O

    @staticmethod
    def backward(ctx, dO):
        q, k, v, O, L = ctx.saved_tensors
        causal, Br, Bc, scale, shift = ctx.args
        t = L.dtype
        dQ, dK, dV = (torch.zeros(x.shape, dtype=t, device=x.device) for x in (q, k, v))
        N, M = q.size(2), k.size(2)
        Dl = (dO.to(t) * O.to(t)).sum(-1)
        for j in range(0, M, Bc):
            Kj, Vj = k[:, :, j : j + Bc].to(t), v[:, :, j : j + Bc].to(t)
            for i in range(0, N, Br):
                Qi, dOi = q[:, :, i : i + Br].to(t), dO[:, :, i : i + Br].to(t)
                n = Qi.size(2)
                if causal and j > i + n - 1 + shift:
                    continue
                S = Qi @ Kj.transpose(-1, -2) * scale
                P = torch.exp(S - L[:, :, i : i + n, None])
                if causal:
                    qi = torch.arange(i, i + n, device=q.device)[:, None]
                    kj = torch.arange(j, j + Kj.size(2), device=q.device)[None]
                    P = P.masked_fill(kj > qi + shift, 0.0)
                dV[:, :, j : j + Bc] += P.transpose(-1, -2) @ dOi
                dP = dOi @ Vj.transpose(-1, -2)
                dS = P * (dP - Dl[:, :, i : i + n, None]) * scale
                dQ[:, :, i : i + n] += dS @ Kj
                dK[:, :, j : j + Bc] += dS.transpose(-1, -2) @ Qi
        return dQ.to(q.dtype), dK.to(k.dtype), dV.to(v.dtype), None, None, None


def flash_attention(q, k, v, *, causal=False, block_q, block_k):
    B, H, N, D = q.shape
    if k.shape[:2] != (B, H) or v.shape[:2] != (B, H) or k.shape[3] != D or k.shape[2] != v.shape[2]:
        raise ValueError(f"shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}")
    if block_q < 1 or block_k < 1:
        raise ValueError(f"blocks {block_q}, {block_k}")
    return FlashAttn.apply(q, k, v, causal, block_q, block_k)
