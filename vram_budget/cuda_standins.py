"""Stand-ins for the kernels that CUDA runs, or the memory it takes, unlike the CPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map

from .errors import InvalidValue

aten = torch.ops.aten
HALF_PRECISION = (torch.float16, torch.bfloat16)
NO_KERNEL = (
    "CUDA has no fused attention here: bf16 below 8.0, heads of a width not divisible "
    "by 8 (fp32: 4), or fewer heads of keys than queries. Use attention='eager'."
)
# Functions of a step that autocast runs in fp32 on CUDA, but not on the CPU.
KEPT_IN_FP32 = ("layer_norm", "softmax", "log_softmax", "cross_entropy")


@contextmanager
def cuda_kernels_on_cpu(model: torch.nn.Module, options: Any) -> Iterator[None]:
    """Context manager: a model on the CPU chooses its kernels as on a CUDA device.

    Patches `torch.nn.functional` and, for autocast, the model's forward pass.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place, and restored on exit.
    options : StepOptions
        Its capability and its precision count.
    """
    flash = options.capability >= (8, 0)
    functions = {
        "dropout": native_dropout,
        "scaled_dot_product_attention": partial(fused_attention, flash=flash),
    }
    forward = model.forward
    if not options.precision.startswith("pure"):  # autocast may be the step's own
        for name in KEPT_IN_FP32:
            functions[name] = _in_fp32(getattr(F, name))
    if options.precision in ("fp16", "bf16"):
        forward = torch.autocast("cpu", options.dtype)(forward)
    with (
        mock.patch.multiple(F, **functions),
        mock.patch.object(model, "forward", forward),
    ):
        yield


def native_dropout(
    input: torch.Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> torch.Tensor:
    """Drop elements as CUDA does: one kernel, with a mask of one byte an element.

    The CPU's mask has four bytes an element.

    Parameters
    ----------
    input : torch.Tensor
        Of any shape.
    p : float
        The probability of a zero.
    training : bool
        Nothing is dropped otherwise.
    inplace : bool
        Ignored.

    Returns
    -------
    torch.Tensor
        Of the same shape.
    """
    if not training or p == 0:
        return input
    output, _ = torch.native_dropout(input, p, True)
    return output


def fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    flash: bool = False,
    **_: Any,
) -> torch.Tensor:
    """Compute attention by the fused kernel that CUDA would choose.

    That is flash attention if the card has it, for half precision without a mask;
    otherwise the memory-efficient kernel. A boolean mask becomes an additive one in the
    query's dtype at each call, its rows padded to a multiple of 8 elements, as the
    kernel's alignment requires.

    Parameters
    ----------
    query : torch.Tensor
        Shape [rows, heads, tokens, width of a head].
    key : torch.Tensor
        The same shape.
    value : torch.Tensor
        The same shape.
    attn_mask : torch.Tensor or None
        Boolean or additive; expands to [rows, heads, tokens, tokens].
    dropout_p : float
        The probability that an attention weight becomes zero.
    is_causal : bool
        Whether a token attends only to those before it.
    scale : float or None
        Factor of the scores; None is 1 / sqrt(width of a head).
    flash : bool
        Whether the card has flash attention (compute capability 8.0 and higher).

    Returns
    -------
    torch.Tensor
        Of the shape of `query`.

    Raises
    ------
    InvalidValue
        If CUDA has neither kernel for these tensors.
    """
    tensors = (query, key, value)
    is_half = query.dtype in HALF_PRECISION
    if flash and is_half and attn_mask is None:
        kernel = aten._scaled_dot_product_flash_attention
        output, *_ = kernel(*tensors, dropout_p, is_causal, scale=scale)
        return output
    # sdp_utils.cpp: what neither kernel takes is computed in fp32, score by score.
    no_bf16 = query.dtype == torch.bfloat16 and not flash
    alignment = 8 if is_half else 4 if flash else 1
    if no_bf16 or query.shape[1] != key.shape[1] or query.shape[-1] % alignment:
        raise InvalidValue(NO_KERNEL)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            additive = torch.zeros_like(attn_mask, dtype=query.dtype)
            # The boolean mask is released here, and not only at the end.
            attn_mask = additive.masked_fill_(attn_mask.logical_not(), float("-inf"))
        length = attn_mask.shape[-1]
        if length % 8:
            attn_mask = F.pad(attn_mask, (0, 8 - length % 8))[..., :length]
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    kernel = aten._scaled_dot_product_efficient_attention
    gradients = torch.is_grad_enabled()
    return kernel(*tensors, attn_mask, gradients, dropout_p, is_causal, scale=scale)[0]


def workspace_size(capability: tuple[int, int]) -> int:
    """Return the bytes of cuBLAS' scratch memory in the caching allocator.

    Each thread that multiplies matrices has one: 2 x 4096 KiB + 8 x 16 KiB below
    compute capability 9.0, 32 MiB from there on (CublasHandlePool.cpp). cuBLASLt, which
    adds the bias of a linear layer, shares it.

    Parameters
    ----------
    capability : tuple of int
        CUDA's compute capability.

    Returns
    -------
    int
    """
    kib = 32 * 1024 if capability >= (9, 0) else 2 * 4096 + 8 * 16
    return kib * 1024


def _in_fp32(function: Callable) -> Callable:
    """Wrap a function so that it computes in fp32 also inside autocast."""

    def to_fp32(value: Any) -> Any:
        is_half = isinstance(value, torch.Tensor) and value.dtype in HALF_PRECISION
        return value.float() if is_half else value

    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map(to_fp32, (args, kwargs))
        with torch.autocast("cpu", enabled=False):
            return function(*args, **kwargs)

    return call
