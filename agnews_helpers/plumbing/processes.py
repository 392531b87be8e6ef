"""Several processes that train one model: the only place that knows ranks.

Distribution is Accelerate's job. With one process each function here does nothing.
"""

from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, gather_object, reduce

from .errors import InvalidValue, is_out_of_memory

IGNORED_LABEL = -100  # rows with it add nothing to PyTorch's cross-entropy


def process_state() -> PartialState:
    """Return Accelerate's view of this process: its device, rank, and the world size.

    Returns
    -------
    accelerate.PartialState

    Raises
    ------
    InvalidValue
        If the environment promises other processes, and they cannot be reached.
    """
    try:
        # Without a GPU it has to be told, or it takes each of several processes for
        # the only one.
        return PartialState(cpu=not torch.accelerator.is_available())
    except (ValueError, RuntimeError) as error:
        if is_out_of_memory(error):  # the card is so full that it cannot be used
            raise
        raise InvalidValue(
            f"The other processes of this run cannot be reached: {error}. Start them "
            "with `accelerate launch`. If there are none, remove WORLD_SIZE, RANK, "
            "LOCAL_RANK and MASTER_ADDR from the environment."
        ) from error


def world_size() -> int:
    """Return the number of processes.

    Returns
    -------
    int
    """
    return process_state().num_processes


def is_main() -> bool:
    """Return whether this is rank 0, the process that writes and prints.

    Returns
    -------
    bool
    """
    return process_state().is_main_process


def make_accelerator(precision: str) -> Accelerator:
    """Make Accelerate's object for this machine.

    Parameters
    ----------
    precision : {"fp32", "bf16", "fp16"}
        The half precisions are autocast, fp16 with a gradient scaler.

    Returns
    -------
    accelerate.Accelerator
    """
    mixed = "no" if precision == "fp32" else precision
    if AcceleratorState._shared_state.get("_mixed_precision", mixed) != mixed:
        AcceleratorState._reset_state()  # a notebook trains again, in another precision
    on_cpu = process_state().device.type == "cpu"
    return Accelerator(mixed_precision=mixed, cpu=on_cpu)


def my_share(batch: dict) -> dict:
    """Return this process's share of a batch, on its device.

    Every n-th row, so that long and short rows are spread evenly. A process that gets
    no row of a short batch gets the first one with an ignored label, because every
    process has to take part in each backward pass.

    Parameters
    ----------
    batch : dict
        Tensors whose first dimension is the rows; ``labels`` is one of them.

    Returns
    -------
    dict
        The same names.
    """
    state = process_state()
    rows = slice(state.process_index, None, state.num_processes)
    has_rows = state.process_index < len(batch["labels"])
    if not has_rows:
        rows = slice(1)
    share = {
        name: tensor[rows].to(state.device, non_blocking=True)
        for name, tensor in batch.items()
    }
    if not has_rows:
        share["labels"] = torch.full_like(share["labels"], IGNORED_LABEL)
    return share


def over_processes(tensor: torch.Tensor, operation: str) -> torch.Tensor:
    """Return the sum or mean of a tensor over all processes, the same on each.

    Parameters
    ----------
    tensor : torch.Tensor
        Of the same shape in each process.
    operation : {"sum", "mean"}
        What to compute.

    Returns
    -------
    torch.Tensor
        On this process's device.
    """
    return reduce(tensor.to(process_state().device), operation)


def any_process(flag: bool) -> bool:
    """Return True if any process says True; all processes get the same answer.

    Parameters
    ----------
    flag : bool
        What this process says.

    Returns
    -------
    bool
    """
    if world_size() == 1:
        return flag
    count = over_processes(torch.tensor(float(flag)), "sum")
    return count.item() > 0


def from_main(value: Any) -> Any:
    """Return the value that rank 0 passes, on every process.

    Parameters
    ----------
    value : object
        Anything that can be sent; ignored except on rank 0.

    Returns
    -------
    object
    """
    values = broadcast_object_list([value])
    return values[0]


def from_each_process(value: Any) -> list:
    """Return the values of all processes, by rank.

    Parameters
    ----------
    value : object
        This process's; anything that can be sent.

    Returns
    -------
    list
    """
    return gather_object([value])
