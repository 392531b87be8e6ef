"""Faster dropout, attention and last layer for training DistilBERT on a CPU."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Dropout, Module
from transformers import AttentionInterface, AttentionMaskInterface

PROVEN = ("distilbert",)  # model types whose results a test has shown to be unchanged
ATTENTION_NAME = "agnews_cpu"


@contextmanager
def cpu_kernels(model: Module, device: torch.device) -> Iterator[None]:
    """Context manager that patches `model` to use the faster CPU functions below.

    PyTorch draws the random numbers of dropout on a CPU one by one, 9 ns each, which is
    a tenth of a training step. Its ``scaled_dot_product_attention`` has no fused CPU
    kernel for training with dropout. And the classification head reads the last layer
    at ``[CLS]`` alone, while `transformers` computes it for every token: a seventh of
    all matrix products.

    Only the model types in `PROVEN` are patched: on others these functions could lose a
    causal mask or a sliding window. A GPU has better kernels of its own. In every case
    the attributes of the modules are restored on exit, among them the training mode and
    the forward method, which Accelerate wraps for bf16 and fp16.

    Parameters
    ----------
    model : Module
        The model to train; patched in place.
    device : torch.device
        Where it is trained. Anything but a CPU leaves `model` unpatched.
    """
    attention = model.config._attn_implementation
    attributes = {module: vars(module).copy() for module in model.modules()}
    try:
        if device.type == "cpu" and model.config.model_type in PROVEN:
            _patch(model)
        yield
    finally:
        model.config._attn_implementation = attention
        for module, before in attributes.items():
            module.__dict__ = before


def _patch(model: Module) -> None:
    """Replace the attention, the dropout and the last layer of a DistilBERT."""
    model.config._attn_implementation = ATTENTION_NAME
    for module in model.modules():
        if type(module) is Dropout:
            module.forward = partial(fast_dropout, p=module.p, layer=module)
    if hasattr(model, "pre_classifier"):  # a head that reads the first token only
        last = model.distilbert.transformer.layer[-1]
        last.forward = partial(first_token_only, last)


def first_token_only(
    block: Module, hidden_states: Tensor, attention_mask: Tensor | None, **_: object
) -> Tensor:
    """Compute DistilBERT's `TransformerBlock` for the first token only.

    The first token still attends to all others, so its vector is that of the whole
    block.

    Parameters
    ----------
    block : Module
        The last `TransformerBlock` of the model.
    hidden_states : Tensor
        Output of the block before, [rows, tokens, width].
    attention_mask : Tensor or None
        What `additive_mask` returns.
    **_ : object
        Other arguments of transformers' blocks; ignored.

    Returns
    -------
    Tensor
        [rows, 1, width].
    """
    layer = block.attention
    first = hidden_states[:, :1]
    query = layer.q_lin(first)
    key = layer.k_lin(hidden_states)
    value = layer.v_lin(hidden_states)
    shape = (-1, layer.attention_head_size)
    heads = [x.unflatten(-1, shape).transpose(1, 2) for x in (query, key, value)]
    p = layer.dropout.p
    mixed, _ = cpu_attention(layer, *heads, attention_mask, layer.scaling, p)
    first = block.sa_layer_norm(layer.out_lin(mixed.flatten(2)) + first)
    return block.output_layer_norm(block.ffn(first) + first)


def fast_dropout(input: Tensor, p: float, layer: Module) -> Tensor:
    """Set each element to 0 with probability `p` and scale the others by 1 / (1 - p).

    Four elements share one 64-bit random number from PyTorch's global generator, so
    each is compared with 16 bits: `p` is met to within 1/65536.

    Parameters
    ----------
    input : Tensor
        A tensor of any shape on the CPU.
    p : float
        Probability of dropping an element, from 0 to 1 (exclusive).
    layer : Module
        The layer that drops. If it is in eval mode, `input` is returned unchanged.

    Returns
    -------
    Tensor
        A tensor of the same shape.
    """
    if p == 0 or not layer.training:
        return input
    count = input.numel()
    words = math.ceil(count / 4)
    numbers = torch.randint(-(2**63), 2**63 - 1, [words])
    uniform = numbers.view(torch.int16)[:count].view_as(input)
    threshold = round((1 - p) * 65536) - 32768
    keep = uniform < threshold
    return input * (keep * (1 / (1 - p)))


def additive_mask(attention_mask: Tensor | None, **_: object) -> Tensor | None:
    """Turn a padding mask into numbers that are added to the attention scores.

    Parameters
    ----------
    attention_mask : Tensor or None
        [rows, tokens], 1 at each token and 0 at padding; None if nothing is padded.
    **_ : object
        Other arguments of transformers' mask functions; ignored.

    Returns
    -------
    Tensor or None
        [rows, 1, 1, tokens], fp32: 0 at each token and the lowest number at padding;
        None if nothing is padded.
    """
    if attention_mask is None or attention_mask.all():
        return None
    padding = ~attention_mask[:, None, None, :].bool()
    return padding * torch.finfo(torch.float32).min


def cpu_attention(
    module: Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float,
    **_: object,
) -> tuple[Tensor, None]:
    """Compute softmax(query key' * scaling + mask) value, with dropout on the softmax.

    Without dropout PyTorch's fused kernel runs on a CPU, too, so evaluation uses it.

    Parameters
    ----------
    module : Module
        The attention layer; dropout is applied only in train mode.
    query, key, value : Tensor
        [rows, heads, tokens, head width].
    attention_mask : Tensor or None
        What `additive_mask` returns.
    scaling : float
        Factor of the scores, 1 / sqrt(head width) in DistilBERT.
    dropout : float
        Probability of dropping an attention weight.
    **_ : object
        Other arguments of transformers' attention functions; ignored.

    Returns
    -------
    tuple[Tensor, None]
        [rows, tokens, heads, head width]; and None, since no attention weights are
        returned.
    """
    if dropout == 0 or not module.training:
        mixed = F.scaled_dot_product_attention(
            query, key, value, attention_mask, scale=scaling
        )
    else:
        scores = (query * scaling) @ key.mT
        if attention_mask is not None:
            scores = scores + attention_mask
        mixed = fast_dropout(scores.softmax(-1), dropout, module) @ value
    return mixed.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION_NAME, cpu_attention)
AttentionMaskInterface.register(ATTENTION_NAME, additive_mask)
