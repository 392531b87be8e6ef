"""Faster dropout, attention and last layer for training DistilBERT on a CPU."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn import Dropout, Module
from transformers import AttentionInterface, AttentionMaskInterface

from .errors import check_types

ATTENTION_NAME = "agnews_cpu"


@check_types
@contextmanager
def cpu_kernels(model: Module, device: torch.device) -> Iterator:
    """Context manager that patches `model` to use the faster CPU functions below.

    PyTorch draws the random numbers of dropout on a CPU one by one, 9 ns each, which is
    a tenth of a training step. Its ``scaled_dot_product_attention`` has no fused CPU
    kernel for training with dropout. And the classification head reads the last layer
    at ``[CLS]`` alone, while `transformers` computes it for every token: a seventh of
    all matrix products.

    Only DistilBERT is patched: a test has shown that its results are unchanged. Other
    models could lose a causal mask or a sliding window. A GPU has better kernels of its
    own. In every case the attributes of the modules are restored on exit, among them
    the training mode and the forward method, which Accelerate wraps for bf16 and fp16.

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
        if device.type == "cpu" and model.config.model_type == "distilbert":
            _patch(model)
        yield
    finally:
        model.config._attn_implementation = attention
        for module, before in attributes.items():
            module.__dict__ = before


def _patch(model):
    """Replace the attention, the dropout and the last layer of a DistilBERT."""
    model.config._attn_implementation = ATTENTION_NAME
    for module in model.modules():
        if type(module) is Dropout:
            module.forward = partial(_dropout, module)
    if hasattr(model, "pre_classifier"):  # a head that reads the first token only
        last = model.distilbert.transformer.layer[-1]
        last.forward = partial(_first_token, last)


def _first_token(block, hidden_states, attention_mask, **_):
    """Compute a `TransformerBlock` for the first token only, which attends to all."""
    layer = block.attention
    first = hidden_states[:, :1]
    query = layer.q_lin(first)
    key = layer.k_lin(hidden_states)
    value = layer.v_lin(hidden_states)
    shape = (-1, layer.attention_head_size)
    heads = [x.unflatten(-1, shape).transpose(1, 2) for x in (query, key, value)]
    mixed, _ = _attention(layer, *heads, attention_mask)
    first = block.sa_layer_norm(layer.out_lin(mixed.flatten(2)) + first)
    return block.output_layer_norm(block.ffn(first) + first)


def _dropout(layer, input):
    """Compute `torch.nn.Dropout`, with p rounded to a multiple of 1/65536."""
    if layer.p == 0 or not layer.training:
        return input
    # Four elements share one 64-bit number, so each is compared with 16 random bits.
    count = input.numel()
    numbers = torch.randint(-(2**63), 2**63 - 1, [math.ceil(count / 4)])
    uniform = numbers.view(torch.int16)[:count].view_as(input)
    threshold = round((1 - layer.p) * 65536) - 32768
    keep = uniform < threshold
    return input * (keep * (1 / (1 - layer.p)))


def _mask(attention_mask, dtype=torch.float32, **_):
    """Turn a padding mask, [rows, tokens], into summands of the attention scores."""
    if attention_mask is None or attention_mask.all():
        return None
    padding = ~attention_mask[:, None, None, :].bool()
    # PyTorch 2.13 misreads a float32 mask of float64 scores, without an error.
    return padding.to(dtype) * torch.finfo(dtype).min


def _attention(
    layer,  # a `DistilBertSelfAttention`
    query,  # as `key` and `value` [rows, heads, tokens, head width]
    key,
    value,
    mask,  # what `_mask` returns
    **_,
):
    """Compute dropout(softmax(query key' * scaling + mask)) value.

    Without dropout PyTorch's fused kernel runs on a CPU, too, so evaluation uses it.
    """
    if layer.dropout.p == 0 or not layer.training:
        mixed = F.scaled_dot_product_attention(
            query, key, value, mask, scale=layer.scaling
        )
    else:
        scores = (query * layer.scaling) @ key.mT
        if mask is not None:
            scores = scores + mask
        mixed = layer.dropout(scores.softmax(-1)) @ value
    # transformers also expects the attention weights, or None.
    return mixed.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION_NAME, _attention)
AttentionMaskInterface.register(ATTENTION_NAME, _mask)
