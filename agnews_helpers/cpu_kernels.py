"""Dropout, attention and the last layer on a CPU: the same results as PyTorch's, in less time. Notebook 04."""
from functools import partial

import torch
from torch import nn

NAME = "agnews_cpu"


def use_cpu_kernels(model) -> None:
    """Have `model` train with the functions below. On a GPU there are better ones: leave it alone there.

    PyTorch draws the random numbers of a CPU's dropout one by one, 9 ns each, a tenth of a training step; and its
    ``scaled_dot_product_attention`` has no fused kernel for training with dropout on a CPU. And the head reads the
    last layer at ``[CLS]`` alone, where `transformers` computes it for every token: a seventh of all products.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, additive_mask)
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p).train(child.training))
    if model.config.model_type == "distilbert":
        last = model.distilbert.transformer.layer[-1]
        last.forward = partial(first_token_only, last)
    model.config._attn_implementation = NAME


def first_token_only(block, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **options) -> torch.Tensor:
    """DistilBERT's `TransformerBlock` at the first token: [rows, tokens, width] to [rows, 1, width].

    That token still attends to all others, so its vector is the one of the whole block.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    part, first = block.attention, hidden_states[:, :1]

    def heads(linear, states):
        return linear(states).view(*states.shape[:2], -1, part.attention_head_size).transpose(1, 2)

    query, key, value = heads(part.q_lin, first), heads(part.k_lin, hidden_states), heads(part.v_lin, hidden_states)
    mask = attention_mask if attention_mask is None else attention_mask[:, :, :1]  # what the first token may look at
    attend = ALL_ATTENTION_FUNCTIONS.get(part.config._attn_implementation, attention)
    mixed, _ = attend(part, query, key, value, mask, dropout=part.dropout.p if block.training else 0.0, scaling=part.scaling, **options)
    first = block.sa_layer_norm(part.out_lin(mixed.flatten(2)) + first)
    return block.output_layer_norm(block.ffn(first) + first)


class Dropout(nn.Dropout):
    """`nn.Dropout` with `dropout` below."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return dropout(input, self.p) if self.training else input


def dropout(input: torch.Tensor, p: float) -> torch.Tensor:
    """Set each element to 0 with probability `p` (to within 1/65536), scale the others by 1 / (1 - p).

    Four elements share one 64-bit random number, from PyTorch's global generator.
    """
    if p == 0:
        return input
    numbers = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-2**63, 2**63 - 1)
    keep = numbers.view(torch.int16)[:input.numel()].view(input.shape) < round((1 - p) * 65536) - 32768
    return input * (keep * (1 / (1 - p)))


def additive_mask(attention_mask: torch.Tensor | None = None, dtype: torch.dtype = torch.float32, **_) -> torch.Tensor | None:
    """[rows, 1, 1, tokens]: 0 where a token is, the least number of `dtype` where padding is; None where there is none."""
    if attention_mask is None or attention_mask.all():
        return None
    return (~attention_mask[:, None, None, :].bool()).to(dtype) * torch.finfo(dtype).min


def attention(module, query, key, value, attention_mask, scaling=None, **options):
    """softmax(query key' / sqrt(width) + mask) value, with dropout on the probabilities. Shapes [rows, heads, tokens, width]."""
    scores = torch.matmul(query * (query.shape[-1] ** -0.5 if scaling is None else scaling), key.transpose(-1, -2))
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = scores.softmax(-1)
    p = options.get("dropout", 0.0)
    if module.training and p > 0:
        probabilities = dropout(probabilities, p)
    return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), None
