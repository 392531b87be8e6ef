"""Dropout, attention and the last layer on a CPU: the same results as PyTorch's, faster. Notebook 08."""

from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "agnews_cpu"


@contextmanager
def cpu_kernels(model, device: torch.device):
    """Have `model` train with the functions below while this is entered, where `device` is a CPU.

    PyTorch draws the random numbers of a CPU's dropout one by one, 9 ns each, a tenth of a training step; and
    its ``scaled_dot_product_attention`` has no fused kernel for training with dropout on a CPU. And the head
    reads the last layer at ``[CLS]`` alone, where `transformers` computes it for every token: a seventh of
    all products. Whatever happens, the model is afterwards as it was: its mode, too, and its forward pass,
    which Accelerate wraps for bf16 and fp16.
    """
    before, attention = (
        {m: dict(vars(m)) for m in model.modules()},
        model.config._attn_implementation,
    )
    try:
        if device.type == "cpu":  # a GPU has better ones
            model.config._attn_implementation = NAME
            for module in model.modules():
                if type(module) is nn.Dropout and "forward" not in vars(module):
                    module.forward = partial(drop, p=module.p, layer=module)
            if model.config.model_type == "distilbert":
                last = model.distilbert.transformer.layer[-1]
                last.forward = partial(first_token_only, last)
        yield
    finally:
        model.config._attn_implementation = attention
        for module, attributes in before.items():
            for name in vars(module).keys() - attributes.keys():
                delattr(module, name)
            vars(module).update(attributes)


def first_token_only(
    block, hidden_states, attention_mask=None, **options
) -> torch.Tensor:
    """DistilBERT's `TransformerBlock` at the first token: [rows, tokens, width] to [rows, 1, width].

    That token still attends to all others, so its vector is the one of the whole block.
    """
    part, first, p = (
        block.attention,
        hidden_states[:, :1],
        block.attention.dropout.p * block.training,
    )
    vectors = part.q_lin(first), part.k_lin(hidden_states), part.v_lin(hidden_states)
    heads = [
        v.unflatten(-1, (-1, part.attention_head_size)).transpose(1, 2) for v in vectors
    ]
    mixed, _ = cpu_attention(part, *heads, attention_mask, part.scaling, p, **options)
    first = block.sa_layer_norm(part.out_lin(mixed.flatten(2)) + first)
    return block.output_layer_norm(block.ffn(first) + first)


def drop(input: torch.Tensor, p: float, layer: nn.Module | None = None) -> torch.Tensor:
    """Set each element to 0 with probability `p` (to within 1/65536), scale the others by 1 / (1 - p).

    Four elements share one 64-bit random number, from PyTorch's global generator. Nothing happens where the
    `layer` that asks is not in training.
    """
    if p == 0 or layer and not layer.training:
        return input
    numbers = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(
        -(2**63), 2**63 - 1
    )
    keep = (
        numbers.view(torch.int16)[: input.numel()].view(input.shape)
        < round((1 - p) * 65536) - 32768
    )
    return input * (keep * (1 / (1 - p)))


def additive_mask(
    attention_mask: torch.Tensor | None = None, dtype: torch.dtype = torch.float32, **_
):
    """[rows, 1, 1, tokens]: 0 where a token is, the least number where padding is; None where none is."""
    if attention_mask is None or attention_mask.all():
        return None
    return (~attention_mask[:, None, None, :].bool()).to(dtype) * torch.finfo(dtype).min


def cpu_attention(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0, **_
):
    """softmax(query key' x scaling + mask) value, with dropout, of shape [rows, heads, tokens, width].

    Without dropout PyTorch has a fused kernel for a CPU too, so evaluation takes that one.
    """
    if not (module.training and dropout > 0):
        mixed = F.scaled_dot_product_attention(
            query, key, value, attention_mask, scale=scaling
        )
        return mixed.transpose(1, 2).contiguous(), None
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * scaling, key.transpose(-1, -2))
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = drop(scores.softmax(-1), dropout)
    return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, cpu_attention)
AttentionMaskInterface.register(NAME, additive_mask)
