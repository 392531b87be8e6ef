"""Where CUDA runs another kernel than the CPU, or takes more memory: stand-ins for ``trace``. Notebook 05."""

from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F

aten = torch.ops.aten
# Of what a step calls, autocast runs these in fp32 on CUDA; its list for the CPU lacks them.
HALVES = (torch.float16, torch.bfloat16)
KEPT_IN_FP32 = ("layer_norm", "softmax", "cross_entropy")


@contextmanager
def cuda_kernels_on_cpu(model, options):
    """`torch.nn.functional` and the model's forward pass choose as they would on a CUDA device."""
    attention = partial(fused_attention, flash=options.capability >= (8, 0))
    functions = {"dropout": native_dropout, "scaled_dot_product_attention": attention}
    forward = model.forward
    if options.precision in ("fp16", "bf16"):
        functions |= {name: _in_fp32(getattr(F, name)) for name in KEPT_IN_FP32}
        forward = torch.autocast("cpu", options.dtype)(forward)
    with (
        mock.patch.multiple(F, **functions),
        mock.patch.object(model, "forward", forward),
    ):
        yield


def native_dropout(input, p=0.5, training=True, inplace=False):
    """CUDA's dropout: one kernel, which keeps a mask of one byte an element. (The CPU keeps four.)"""
    return torch.native_dropout(input, p, True)[0] if training and p > 0 else input


def fused_attention(
    query,
    key,
    value,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    scale=None,
    flash=False,
    **_,
):
    """Flash attention where the card has it, for half precision without a mask; or the memory-efficient one.

    Below compute capability 8.0 that is the only fused one, and for fp32 everywhere. A boolean mask becomes
    an additive one in the query's dtype, at each call; its rows are padded to a multiple of 8 elements, as
    the kernel's alignment asks.
    """
    if flash and attn_mask is None and query.dtype in HALVES:
        how = dict(scale=scale)
        return aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, **how
        )[0]
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            additive = torch.zeros_like(attn_mask, dtype=query.dtype)
            attn_mask = additive.masked_fill_(
                attn_mask.logical_not(), float("-inf")
            )  # bool freed at once
        length = attn_mask.shape[-1]
        if length % 8:
            attn_mask = F.pad(attn_mask, (0, 8 - length % 8))[..., :length]
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    return aten._scaled_dot_product_efficient_attention(
        query,
        key,
        value,
        attn_mask,
        torch.is_grad_enabled(),
        dropout_p,
        is_causal,
        scale=scale,
    )[0]


def workspace_size(capability: tuple[int, int]) -> int:
    """Bytes of cuBLAS' scratch memory in the caching allocator, for each thread that multiplies matrices.

    4096 KiB x 2 + 16 KiB x 8 below compute capability 9.0, 32 MiB from there (CublasHandlePool.cpp);
    cuBLASLt, which adds the bias of a linear layer, shares it.
    """
    return 32 * 2**20 if capability >= (9, 0) else (2 * 4096 + 8 * 16) * 2**10


def storage_size(func, tensor, nbytes: int) -> int:
    """Bytes of a result on CUDA: the kernel pads attention's log-sum-exp to a multiple of 32 queries."""
    if (
        func is aten._scaled_dot_product_efficient_attention.default
        and tensor.dim() == 3
    ):
        batch, heads, length = tensor.shape
        return batch * heads * -(-length // 32) * 32 * tensor.element_size()
    return nbytes


def _in_fp32(function):
    def up(value):
        half = isinstance(value, torch.Tensor) and value.dtype in HALVES
        return value.float() if half else value

    def call(*args, **kwargs):
        with torch.autocast("cpu", enabled=False):
            return function(
                *map(up, args), **{name: up(value) for name, value in kwargs.items()}
            )

    return call
