"""The same training step in less memory: a batch in parts (gradient accumulation)."""

import gc
from collections.abc import Callable

import torch
from tqdm.auto import tqdm

from .errors import DoesNotFit, is_out_of_memory

Batch = dict[str, torch.Tensor]


def in_parts(
    step: Callable[..., torch.Tensor],
    model: torch.nn.Module,
    batch: Batch,
    split_sizes: list[list[int]],
) -> torch.Tensor:
    """Run `step` on a batch; if memory runs out, on halves, quarters, ... of it.

    The gradients of the parts add up to the gradient of the whole batch (dropout draws
    other numbers in parts), and the memory is that of one part.

    Parameters
    ----------
    step : Callable
        ``step(model, part, rows=...)`` adds the gradients of a part's loss to `model`
        and returns that loss. It divides by ``rows``, not by the rows of the part.
    model : torch.nn.Module
        Its gradients are None or zero; if memory runs out, they are cleared.
    batch : dict
        Tensors whose first dimension is the rows; ``input_ids`` [rows, tokens].
    split_sizes : list
        Pairs [tokens, rows]: a batch of at least that many tokens is taken in parts of
        at most that many rows. What is found out here is appended.

    Returns
    -------
    torch.Tensor
        The sum of what `step` returned.

    Raises
    ------
    DoesNotFit
        If a single row does not fit.
    """
    n, length = batch["input_ids"].shape
    while True:
        size = min([n, *(most for tokens, most in split_sizes if tokens <= length)])
        try:
            return _add_up(step, model, batch, size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            problem = str(error)
        # Outside of `except`, whose traceback keeps the failed part's tensors alive.
        model.zero_grad()
        free_memory()
        if size == 1:
            raise DoesNotFit(f"not even one row of {length} tokens fits ({problem})")
        split_sizes.append([length, size // 2])
        tqdm.write(
            f"Out of memory with {size} rows of {length} tokens: the same step again "
            f"in parts of {size // 2}, and so for all batches this long. The "
            "gradient is the same, apart from dropout's random draws."
        )


def _add_up(step, model, batch, size):
    """Run `step` on `size` rows after `size` rows; return the sum of the losses."""
    total = None
    n = len(batch["input_ids"])
    for start in range(0, n, size):
        part = {name: tensor[start : start + size] for name, tensor in batch.items()}
        loss = step(model, part, rows=n)
        total = loss if total is None else total + loss
    return total


def free_memory() -> None:
    """Give memory that is no longer used back to the card, if one is in use."""
    gc.collect()
    torch.cuda.empty_cache()
