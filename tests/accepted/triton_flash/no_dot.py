"""No tl.dot: tiles are multiplied out in three dimensions and summed, all in float32, the maximum and the sum are
saved apart, and heads of keys are repeated for the queries that share them."""

import torch
import triton
import triton.language as tl


def blocks(D):
    """How many rows a tile has: all its products, rows · rows · D, are held at once."""
    return 512 // D


@triton.jit
def rows_by_rows(a, b):
    return tl.sum(a.to(tl.float32)[:, None, :] * b.to(tl.float32)[None, :, :], axis=2)


@triton.jit
def rows_by_columns(a, b):
    # Summed along the last axis: of a sum along the middle one Triton makes a dot of its own, in TF32.
    return rows_by_rows(a, tl.trans(b))


@triton.jit
def fwd(q_ptr, k_ptr, v_ptr, o_ptr, l_ptr, T_q, T_k, group, scale, window,
        D: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    block, bh = tl.program_id(0), tl.program_id(1)
    i = block * BM + tl.arange(0, BM)
    d = tl.arange(0, D)
    q_offset = (bh * T_q + i)[:, None].to(tl.int64) * D + d[None, :]
    row_ok = i[:, None] < T_q
    q = tl.load(q_ptr + q_offset, mask=row_ok, other=0.0)
    m = tl.full((BM,), -1.0e38, dtype=tl.float32)
    l = tl.zeros((BM,), dtype=tl.float32)
    acc = tl.zeros((BM, D), dtype=tl.float32)
    begin, end = 0, T_k
    if CAUSAL:
        end = tl.maximum(tl.minimum(T_k, (block + 1) * BM + T_k - T_q), 0)
    if WINDOW:
        begin = tl.maximum(block * BM + T_k - T_q - window + 1, 0)
    for start in range(begin, end, BN):
        j = start + tl.arange(0, BN)
        kv_offset = (bh * T_k + j)[:, None].to(tl.int64) * D + d[None, :]
        k = tl.load(k_ptr + kv_offset, mask=j[:, None] < T_k, other=0.0)
        s = rows_by_rows(q, k) * scale
        ok = row_ok & (j[None, :] < T_k)
        if CAUSAL:
            ok = ok & (j[None, :] <= i[:, None] + T_k - T_q)
        if WINDOW:
            ok = ok & (j[None, :] > i[:, None] + T_k - T_q - window)
        s = tl.where(ok, s, -1.0e38)
        m_new = tl.maximum(m, tl.max(s, axis=1))
        p = tl.where(ok, tl.exp(s - m_new[:, None]), 0.0)
        alpha = tl.exp(m - m_new)
        v = tl.load(v_ptr + kv_offset, mask=j[:, None] < T_k, other=0.0)
        l = l * alpha + tl.sum(p, axis=1)
        acc = acc * alpha[:, None] + rows_by_columns(p, v)
        m = m_new
    empty = l == 0.0
    l = tl.where(empty, 1.0, l)
    tl.store(o_ptr + q_offset, (acc / l[:, None]).to(o_ptr.dtype.element_ty), mask=row_ok)
    tl.store(l_ptr + 2 * (bh * T_q + i), tl.where(empty, 0.0, m), mask=i < T_q)
    tl.store(l_ptr + 2 * (bh * T_q + i) + 1, l, mask=i < T_q)


@triton.jit
def bwd(q_ptr, k_ptr, v_ptr, g_ptr, l_ptr, delta_ptr, dq_ptr, dk_ptr, dv_ptr, T_q, T_k, group, scale, window,
        D: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    block, bh = tl.program_id(0), tl.program_id(1)
    j = block * BN + tl.arange(0, BN)
    d = tl.arange(0, D)
    col_ok = j[:, None] < T_k
    kv_offset = (bh * T_k + j)[:, None].to(tl.int64) * D + d[None, :]
    k = tl.load(k_ptr + kv_offset, mask=col_ok, other=0.0)
    v = tl.load(v_ptr + kv_offset, mask=col_ok, other=0.0)
    dk = tl.zeros((BN, D), dtype=tl.float32)
    dv = tl.zeros((BN, D), dtype=tl.float32)
    begin, end = 0, T_q
    if CAUSAL:
        begin = tl.maximum(block * BN - (T_k - T_q), 0)
    if WINDOW:
        end = tl.minimum(T_q, tl.maximum(block * BN + BN - 1 + window - (T_k - T_q), 0))
    for start in range(begin, end, BM):
        i = start + tl.arange(0, BM)
        row_ok = i[:, None] < T_q
        q_offset = (bh * T_q + i)[:, None].to(tl.int64) * D + d[None, :]
        q = tl.load(q_ptr + q_offset, mask=row_ok, other=0.0)
        g = tl.load(g_ptr + q_offset, mask=row_ok, other=0.0)
        top = tl.load(l_ptr + 2 * (bh * T_q + i), mask=i < T_q, other=0.0)
        total = tl.load(l_ptr + 2 * (bh * T_q + i) + 1, mask=i < T_q, other=1.0)
        delta = tl.load(delta_ptr + bh * T_q + i, mask=i < T_q, other=0.0)
        ok = row_ok & (j[None, :] < T_k)
        if CAUSAL:
            ok = ok & (j[None, :] <= i[:, None] + T_k - T_q)
        if WINDOW:
            ok = ok & (j[None, :] > i[:, None] + T_k - T_q - window)
        s = tl.where(ok, rows_by_rows(q, k) * scale - top[:, None], -1.0e38)
        p = tl.exp(s) / total[:, None]
        dp = rows_by_rows(g, v)
        ds = tl.where(ok, p * (dp - delta[:, None]) * scale, 0.0)
        dv += rows_by_columns(tl.trans(p), g)
        dk += rows_by_columns(tl.trans(ds), q)
        tl.atomic_add(dq_ptr + q_offset, rows_by_columns(ds, k), mask=row_ok)
    own = (bh * T_k + j)[:, None].to(tl.int64) * D + d[None, :]
    tl.store(dk_ptr + own, dk, mask=col_ok)
    tl.store(dv_ptr + own, dv, mask=col_ok)


def repeated(x, heads):
    return x.repeat_interleave(heads // x.shape[1], dim=1).contiguous()


class Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, causal, scale, window):
        B, H, T_q, D = q.shape
        out = torch.empty((B, H, T_q, D), dtype=q.dtype, device=q.device)
        lse = torch.empty((B, H, T_q, 2), dtype=torch.float32, device=q.device)
        ctx.rest = (
            T_q,
            k.shape[2],
            H // k.shape[1],
            scale,
            window or 0,
            D,
            causal,
            window is not None,
            blocks(D),
            blocks(D),
        )
        if B:
            fwd[(triton.cdiv(T_q, blocks(D)), B * H)](
                q.contiguous(), repeated(k, H), repeated(v, H), out, lse, *ctx.rest
            )
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx, g):
        q, k, v, out, lse = ctx.saved_tensors
        B, H, T_q, D = q.shape
        KV, T_k = k.shape[1:3]
        delta = (g.float() * out.float()).sum(-1)
        dq = torch.zeros((B, H, T_q, D), dtype=torch.float32, device=q.device)
        dk, dv = (torch.empty((B, H, T_k, D), dtype=torch.float32, device=q.device) for _ in range(2))
        inputs = [q.contiguous(), repeated(k, H), repeated(v, H), g.contiguous()]
        bwd[(triton.cdiv(T_k, blocks(D)), B * H)](*inputs, lse, delta, dq, dk, dv, *ctx.rest)
        dk, dv = (x.view(B, KV, H // KV, T_k, D).sum(2).to(q.dtype) for x in (dk, dv))
        return dq.to(q.dtype), dk, dv, None, None, None


def triton_flash(q, k, v, *, causal=False, scale=None, window=None):
    B, H, T_q, D = q.shape
    if k.shape != v.shape or k.shape[0] != B or k.shape[3] != D or H % k.shape[1]:
        raise ValueError(f"{q.shape}, {k.shape}, {v.shape}")
    if D not in {16, 32, 64, 128} or q.dtype not in {torch.float32, torch.float16, torch.bfloat16}:
        raise ValueError(f"head_dim {D}, dtype {q.dtype}")
    if k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(f"{q.dtype}, {k.dtype}, {v.dtype}")
    if window is not None and (window < 1 or not causal):
        raise ValueError(f"{window=} {causal=}")
    return Function.apply(q, k, v, causal, D**-0.5 if scale is None else scale, window)
