"""Dropout and attention for training on a CPU: the same arithmetic as PyTorch's, in less time. Notebook 04."""
import torch
from torch import nn

NAME = "agnews_cpu"


def use_cpu_kernels(model) -> None:
    """Have `model` train with the functions below. On a GPU there are better ones: leave it alone there.

    PyTorch draws the random numbers of a CPU's dropout one by one, 9 ns each, a tenth of a training step; and its
    ``scaled_dot_product_attention`` has no fused kernel for training with dropout on a CPU.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, additive_mask)
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p))
    model.config._attn_implementation = NAME


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
