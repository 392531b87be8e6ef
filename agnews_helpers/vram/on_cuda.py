"""Where CUDA runs another kernel than the CPU, or takes more memory: stand-ins for ``trace``. Notebook 05."""

from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F

aten = torch.ops.aten
# Of what a step calls, autocast runs these in fp32 on CUDA; its list for the CPU lacks them.
KEPT_IN_FP32 = ("layer_norm", "softmax", "cross_entropy")


@contextmanager
def patched(model, options):
    """`torch.nn.functional` and the model's forward pass choose as they would on a CUDA device."""
    functions = {"dropout": native_dropout, "scaled_dot_product_attention": efficient_attention}
    forward = model.forward
    if options.precision == "fp16":
        functions |= {name: _in_fp32(getattr(F, name)) for name in KEPT_IN_FP32}
        forward = torch.autocast("cpu", torch.float16)(forward)
    with mock.patch.multiple(F, **functions), mock.patch.object(model, "forward", forward):
        yield


def native_dropout(input, p=0.5, training=True, inplace=False):
    """CUDA's dropout: one kernel, which keeps a mask of one byte an element. (The CPU keeps four.)"""
    return torch.native_dropout(input, p, True)[0] if training and p > 0 else input


def efficient_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
    """The memory-efficient kernel: on compute capability 7.5 the only fused one that takes fp32 and a mask.

    A boolean mask becomes an additive one in the query's dtype, at each call; its rows are padded to a
    multiple of 8 elements, as the kernel's alignment asks.
    """
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            additive = torch.zeros_like(attn_mask, dtype=query.dtype)
            attn_mask = additive.masked_fill_(attn_mask.logical_not(), float("-inf"))  # bool freed at once
        length = attn_mask.shape[-1]
        if length % 8:
            attn_mask = F.pad(attn_mask, (0, 8 - length % 8))[..., :length]
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
    )[0]


def workspace_size(capability: tuple[int, int]) -> int:
    """Bytes of cuBLAS' scratch memory in the caching allocator, for each thread that multiplies matrices.

    4096 KiB x 2 + 16 KiB x 8 below compute capability 9.0, 32 MiB from there (CublasHandlePool.cpp);
    cuBLASLt, which adds the bias of a linear layer, shares it.
    """
    return 32 * 2**20 if capability >= (9, 0) else (2 * 4096 + 8 * 16) * 2**10


def storage_size(func, tensor, nbytes: int) -> int:
    """Bytes of a result on CUDA: the kernel pads attention's log-sum-exp to a multiple of 32 queries."""
    if func is aten._scaled_dot_product_efficient_attention.default and tensor.dim() == 3:
        batch, heads, length = tensor.shape
        return batch * heads * -(-length // 32) * 32 * tensor.element_size()
    return nbytes


def _in_fp32(function):
    def up(value):
        half = isinstance(value, torch.Tensor) and value.dtype == torch.float16
        return value.float() if half else value

    def call(*args, **kwargs):
        with torch.autocast("cpu", enabled=False):
            return function(*map(up, args), **{name: up(value) for name, value in kwargs.items()})

    return call
