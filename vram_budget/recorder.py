"""Watches training steps on tensors without storage and records each allocation."""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from . import cuda_standins
from .errors import InvalidValue

aten = torch.ops.aten
MATMULS = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default}
BACKWARD = torch.autograd.backward
IN_PLACE = {"add", "scatter_add"}  # in the real backward pass
NO_UPDATE = (
    "A traced step leaves gradients and does not reach optimizer.step(): let one call "
    "of the step make one update, with all parts of its batch."
)
RECURRENT = (
    "A step with an LSTM, GRU or RNN cannot be traced: the kernels that CUDA has for "
    "these layers are not known here."
)


@dataclass(eq=False, slots=True)
class Allocation:
    """The storage of one tensor, with its origin.

    Attributes
    ----------
    size : int
        Its bytes.
    op : str
        The op that made it, without ``aten::``.
    module : str
        The module that made it; in the backward pass, the one whose gradient it serves.
    phase : str
        ``"load"``, ``"forward"``, ``"backward"`` or ``"optimizer"``.
    step : int
        The training step, from 1; the weights have 0.
    category : str
        One of `budget.TRACED_PARTS`, or ``"batch"``.
    """

    size: int
    op: str
    module: str
    phase: str
    step: int
    category: str = "temporaries"


class Recorder(TorchDispatchMode):
    """Records each new storage, and its release by a finalizer of the storage.

    The phases of a step are found from outside: the forward pass by a hook of the
    model, the backward pass by a patch of `torch.autograd.backward`, the update by
    hooks of the optimizer.

    Parameters
    ----------
    model : torch.nn.Module
        On fake tensors.
    optimizer : torch.optim.Optimizer
        Of its parameters.
    options : StepOptions
        How the step is run.
    """

    def __init__(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, options: Any
    ):
        super().__init__()
        self.model = model
        self.optimizer = optimizer
        self.options = options
        self.fake_mode = next(model.parameters()).fake_mode
        self.events = []
        self.live = {}  # the address of a storage -> its allocation
        self.newest = None  # the address of the last one, unless a release followed it
        self.viewed = set()  # the addresses of those of which a view was made
        self.phase = "load"
        self.step = 0
        self.result = None  # of the last step
        self.others = []  # stand-ins for tensors from outside, which are to stay
        self.modules = []  # the stack of module names in the forward pass
        self.names = {module: name or "model" for name, module in model.named_modules()}
        self.threads = set()  # those that have a cuBLAS workspace
        self.flops = 0  # floating-point operations of the current step's products

    def record(
        self, step: Callable, shapes: Iterable[tuple[int, int]]
    ) -> list[tuple[Allocation, bool]]:
        """Load the model and run one training step for each shape.

        Parameters
        ----------
        step : callable
            ``step(model, batch, optimizer)``.
        shapes : iterable of tuple
            (rows, tokens) of each batch.

        Returns
        -------
        list of (Allocation, bool)
            The events of a `Trace`.
        """
        self.optimizer.register_step_pre_hook(self._before_update)
        self.optimizer.register_step_post_hook(self._after_update)
        with (
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave),
            mock.patch.object(torch.autograd, "backward", self._backward),
            self,
        ):
            # Children first: the order in which ``model.to("cuda")`` copies.
            self.model.apply(self._load)
            events = self._run(step, shapes)
        # Finalizers hold the recorder while their storages live: it must not hold the
        # storages.
        self.model = self.optimizer = self.names = self.result = self.others = None
        return events

    def _load(self, module: torch.nn.Module) -> None:
        """Record a module's own weights."""
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        for tensor in own:
            self._note(tensor, "to", (), "weights", self.names[module])

    def _run(self, step: Callable, shapes: Iterable[tuple[int, int]]) -> list:
        """Run the steps; the events so far, without what Python releases afterwards."""
        self.model.train()
        for rows, length in shapes:
            self.step += 1
            self.phase = "forward"
            self.flops = 0
            batch = self._batch(rows, length)  # lives until there is the next one
            self.result = step(self.model, batch, self.optimizer)
            left = {allocation.category for allocation in self.live.values()}
            if self.phase == "backward" and "gradients" in left:
                raise InvalidValue(NO_UPDATE)
        return list(self.events)

    def _batch(self, rows: int, length: int) -> dict[str, torch.Tensor]:
        """Make the batch of a step."""
        ids = torch.ones(rows, length, dtype=torch.long)
        batch = {"input_ids": ids}
        if self.options.mask:
            batch["attention_mask"] = torch.ones_like(ids)
        batch["labels"] = torch.ones(rows, dtype=torch.long)
        self._mark(batch, "batch")
        return batch

    def _enter(self, module: torch.nn.Module, _: Any) -> None:
        """Before the forward pass of any module."""
        if isinstance(module, torch.nn.RNNBase):
            raise InvalidValue(RECURRENT)
        if torch.is_autocast_enabled("cuda"):
            raise RuntimeError("autocast is on for CUDA only")
        if module is self.model:
            self.phase = "forward"
        self.modules.append(self.names.get(module, ""))

    def _leave(self, *_: Any) -> None:
        """After the forward pass of any module."""
        self.modules.pop()

    def _backward(self, *args: Any, **kwargs: Any) -> None:
        """Stand in for `torch.autograd.backward`."""
        # The forward pass is over: what it has left alive are its activations.
        for allocation in self.live.values():
            is_new = allocation.step == self.step
            if is_new and allocation.category == "temporaries":
                allocation.category = "activations"
        self.phase = "backward"
        BACKWARD(*args, **kwargs)
        gradients = [p.grad for p in self.model.parameters()]
        self._mark(gradients, "gradients")

    def _before_update(self, *_: Any) -> None:
        """Before `optimizer.step`."""
        self.phase = "optimizer"

    def _after_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """After `optimizer.step`."""
        state = list(optimizer.state.values())
        self._mark(state, "optimizer state")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:  # asked thousands of times in a step
            return torch.device("cpu")
        kwargs = kwargs or {}
        if func in MATMULS:
            self._take_workspace()
        is_constant = "lift_fresh" in func.__name__  # of the step itself
        for leaf in () if is_constant else tree_leaves((args, kwargs)):
            is_other = isinstance(leaf, torch.Tensor) and leaf.dim()
            if is_other and not isinstance(leaf, FakeTensor):
                # From outside of the trace, such as another model's weights.
                self.others.append(self.fake_mode.from_tensor(leaf))
                self._note(self.others[-1], "to", (), "weights", "")
        result = func(*args, **kwargs)
        count_flops = flop_registry.get(func._overloadpacket)
        if count_flops:
            self.flops += count_flops(*args, **kwargs, out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor, func, args)
                if func.is_view:
                    self.viewed.add(tensor.untyped_storage()._cdata)
        return result

    def _take_workspace(self) -> None:
        """Record cuBLAS' scratch memory, which a thread takes once and keeps."""
        thread = "autograd's" if self.phase == "backward" else "main"
        size = cuda_standins.workspace_size(self.options.capability)
        if thread in self.threads or not size:
            return
        self.threads.add(thread)
        origin = ("cuBLAS", "", self.phase, self.step)
        self.events.append((Allocation(size, *origin, "workspaces"), True))

    def _note(
        self,
        tensor: torch.Tensor,
        func: Any,
        args: tuple,
        category: str = "temporaries",
        module: str | None = None,
    ) -> None:
        """Record the storage of a tensor, if it is new and on the device."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        size = storage.nbytes()
        # Adam's step counters, and scalars made of them, stay on the CPU unless fused.
        is_on_host = (
            self.phase == "optimizer"
            and self.options.implementation != "fused"
            and tensor.numel() == 1
        )
        if not size or is_on_host or key in self.live:
            return
        if module is None:
            is_inside = self.modules and self.phase == "forward"
            module = self.modules[-1] if is_inside else self._module_of(args)
        op = func if isinstance(func, str) else func._schema.name.removeprefix("aten::")
        self.live[key] = Allocation(size, op, module, self.phase, self.step, category)
        self.events.append((self.live[key], True))
        self.newest = key
        self.viewed.discard(key)  # an address is used again
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        """Record the end of a storage."""
        released = self.live.pop(key)
        newest = self.newest
        self.newest = None
        last, _ = self.events[-1]
        is_owned = key not in self.viewed
        is_sum = newest and last.op in IN_PLACE and last.size == released.size
        if is_sum and is_owned and last.phase == released.phase == "backward":
            # The sum of two gradients of one tensor. The real engine adds in place,
            # unless the first is a view; under a dispatch mode it makes a new tensor
            # and releases the old one at once. So does the gradient of gather.
            self.events.pop()
            self.live[newest] = released
        else:
            self.events.append((released, False))

    def _module_of(self, args: Any) -> str:
        """Name the module whose weight, activation or (else) gradient an op uses."""
        found = [a for a in self._allocations(args) if a.module]
        found.sort(key=lambda a: a.phase not in ("forward", "load"))
        return found[0].module if found else ""

    def _mark(self, tree: Any, category: str) -> None:
        """Set the category of all tensors in nested lists and dicts."""
        for allocation in self._allocations(tree):
            allocation.category = category

    def _allocations(self, tree: Any) -> list[Allocation]:
        """Find the allocations of the tensors in nested lists and dicts."""
        keys = [
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves(tree)
            if isinstance(leaf, torch.Tensor)
        ]
        return [self.live[key] for key in keys if key in self.live]
