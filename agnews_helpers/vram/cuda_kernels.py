"""Where CUDA runs another kernel than the CPU, or takes more memory: what ``trace`` puts in its place. Notebook 05."""
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
import torch.nn.functional as F

aten = torch.ops.aten
KIB = 1024


@contextmanager
def patched(setup):
    """`torch.nn.functional` as it behaves on a CUDA device of the setup's era and precision."""
    replacements = {"dropout": native_dropout, "scaled_dot_product_attention": efficient_attention}
    if setup.era == "torch<1.11":
        replacements |= {"softmax": _SoftmaxKeepsInput.call}
    if setup.precision == "fp16":  # autocast's list for CUDA runs these in fp32, its list for the CPU does not
        for name in ("layer_norm", "softmax", "cross_entropy"):
            replacements[name] = _in_fp32(replacements.get(name, getattr(F, name)))
    with ExitStack() as stack:
        for name, function in replacements.items():
            stack.enter_context(mock.patch.object(F, name, function))
        yield


def native_dropout(input, p=0.5, training=True, inplace=False):
    """CUDA's dropout: one kernel, which keeps a mask of one byte an element. (The CPU keeps four.)"""
    return torch.native_dropout(input, p, True)[0] if training and p > 0 else input


def efficient_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """The memory-efficient kernel: on compute capability 7.5 the only fused one that takes fp32 and a mask.

    A boolean mask becomes an additive one in the query's dtype, at each call; its rows are padded to a
    multiple of 8 elements, as the kernel's alignment asks.
    """
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(attn_mask.logical_not(), float("-inf"))
        length = attn_mask.shape[-1]
        if length % 8:
            attn_mask = F.pad(attn_mask, (0, 8 - length % 8))[..., :length]
        attn_mask = attn_mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale)[0]


def attention_name(setup) -> str:
    """What the model's configuration calls the setup's attention; registers the one of 2019 when it is first asked for."""
    if setup.attention == "sdpa" or setup.era == "now":
        return setup.attention
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register("eager_2019", attention_of_2019)
    AttentionMaskInterface.register("eager_2019", mask_of_2019)
    return "eager_2019"


def attention_of_2019(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **_):
    """Eager attention as transformers had it before version 5: its probabilities end with the call.

    Today's eager attention hands them back to the layer, which holds them while it computes its output.
    """
    scores = torch.matmul(query, key.transpose(-1, -2))
    scores = scores / (query.shape[-1] ** 0.5)
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = F.softmax(scores, dim=-1)
    probabilities = F.dropout(probabilities, p=dropout, training=module.training)
    return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), None


def mask_of_2019(attention_mask=None, dtype=torch.float32, **_):
    """The additive mask as it was: [rows, 1, 1, tokens], not yet spread over the queries."""
    return None if attention_mask is None else (1.0 - attention_mask[:, None, None, :].to(dtype)) * -10000.0


class _SoftmaxKeepsInput(torch.autograd.Function):
    """Softmax before PyTorch 1.11: its backward pass kept the input beside the output (pytorch#64000)."""

    @staticmethod
    def forward(ctx, input, dim):
        output = torch.softmax(input, dim)
        ctx.save_for_backward(input, output)
        ctx.dim = dim
        return output

    @staticmethod
    def backward(ctx, gradient):
        input, output = ctx.saved_tensors
        return aten._softmax_backward_data(gradient, output, ctx.dim, input.dtype), None

    @classmethod
    def call(cls, input, dim=-1, _stacklevel=3, dtype=None):
        return cls.apply(input if dtype is None else input.to(dtype), dim)


def _in_fp32(function):
    def call(*args, **kwargs):
        def up(value):
            half = isinstance(value, torch.Tensor) and value.dtype == torch.float16
            return value.float() if half else value

        with torch.autocast("cpu", enabled=False):
            return function(*map(up, args), **{name: up(value) for name, value in kwargs.items()})
    return call


def workspace_size(setup) -> int:
    """Bytes of cuBLAS' scratch memory in the caching allocator, for each thread that multiplies matrices.

    4096 KiB x 2 + 16 KiB x 8 below compute capability 9.0, 32 MiB from there (CublasHandlePool.cpp);
    cuBLASLt, which adds the bias of a linear layer, shares it. Before PyTorch 2.0 it lay outside.
    """
    if setup.era != "now":
        return 0
    return 32 * KIB * KIB if setup.capability >= (9, 0) else 2 * 4096 * KIB + 8 * 16 * KIB


def storage_size(func, tensor, nbytes: int) -> int:
    """Bytes of a result on CUDA: the kernel pads attention's log-sum-exp to a multiple of 32 queries."""
    if func is aten._scaled_dot_product_efficient_attention.default and tensor.dim() == 3:
        batch, heads, length = tensor.shape
        return batch * heads * -(-length // 32) * 32 * tensor.element_size()
    return nbytes
