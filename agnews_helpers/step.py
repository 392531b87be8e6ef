"""One training step: the four lines, and what keeps a step from going wrong. Notebook 04."""
import gc

import torch
from tqdm.auto import tqdm

from .errors import DoesNotFit, NonFiniteError


def training_step(model, batch: dict, optimizer, accelerator, micro_batch_size: int | None = None, check=None,
                  weight: float = 1.0) -> torch.Tensor:
    """Forward, loss, backward, Adam step; returns the loss, detached, still on the device.

    The loss is the mean cross-entropy of the batch, in nats. With `micro_batch_size` the batch is taken
    in parts whose gradients add up to the same step, in the memory of one part. `check` is called with
    the loss before the weights move. `weight` is that of this process among several: its share of the
    batch's rows, 1 where all have the same. ``vram.trace`` runs this same function on tensors without
    storage to predict what it needs.
    """
    rows = len(batch["labels"])
    size = micro_batch_size or rows
    for start in range(0, rows, size):
        part = {name: tensor[start:start + size] for name, tensor in batch.items()}
        loss, share = model(**part).loss, weight * (len(part["labels"]) / rows)  # each row weighs the same
        if share != 1.0:
            loss = loss * share
        accelerator.backward(loss)
        total = loss.detach() if start == 0 else total + loss.detach()
    if check is not None:
        check(total)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


class Stepper:
    """Takes steps and returns their losses as numbers; where memory runs out, takes the same step in smaller parts.

    limits : [tokens, rows] pairs: batches at least so long are taken in parts of so many rows. They are
    found when memory runs out, and kept in checkpoints.
    """

    def __init__(self, model, optimizer, accelerator, limits: list[list[int]]):
        self.model, self.optimizer, self.accelerator, self.limits = model, optimizer, accelerator, limits
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.moving = False

    def __call__(self, batch: dict, weight: float = 1.0) -> float:
        """Raises NonFiniteError, DoesNotFit."""
        rows, length = batch["input_ids"].shape
        while True:
            size = min((size for tokens, size in self.limits if tokens <= length), default=rows)
            try:
                return self._step(batch, size, weight)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.moving:  # only the first step allocates here; one half taken cannot be taken again
                    raise DoesNotFit("Adam's two running means do not fit beside weights and gradients", length) from error
                if self.accelerator.num_processes > 1:  # the others wait for this one's gradients, and cannot go back
                    raise DoesNotFit(f"{rows} rows of {length} tokens do not fit in one of the processes", length) from error
            # Outside of `except`: its traceback would keep the tensors of the failed step alive.
            self._free()
            if min(size, rows) == 1:
                raise DoesNotFit(f"not even one row of {length} tokens fits", length)
            self.limits.append([length, min(size, rows) // 2])
            tqdm.write(f"Out of memory with {min(size, rows)} rows of {length} tokens: the same step again in parts of "
                       f"{min(size, rows) // 2}, and so for all batches this long. Nothing else changes.")

    def _step(self, batch: dict, size: int, weight: float) -> float:
        self.moving = False
        loss = training_step(self.model, batch, self.optimizer, self.accelerator, size, self._check, weight).item()
        if self.accelerator.scaler is not None and self.accelerator.scaler.get_scale() < 1:
            raise NonFiniteError("gradient (in fp16, however small the loss was scaled)")
        return loss

    def _check(self, loss: torch.Tensor) -> None:
        """Stop before the weights move if anything is not finite. Reading the loss makes a GPU wait, about 1 ms a step."""
        scaled = self.accelerator.scaler is not None  # fp16: the scaler itself leaves out a step whose gradients overflow
        sums = [] if scaled else [p.grad.sum() for p in self.parameters if p.grad is not None]
        total = torch.stack([loss.float(), *(value.float() for value in sums)]).sum()  # one that is not finite makes the sum so
        if not torch.isfinite(total):
            kind = "gradient" if torch.isfinite(loss) else "loss"
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError(kind)
        self.moving = True

    def _free(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or (where it is an ordinary RuntimeError) on the CPU."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError) or isinstance(error, RuntimeError) and any(word in str(error) for word in words)
