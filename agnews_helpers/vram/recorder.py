"""Watches training steps on tensors without storage, and notes each allocation for ``trace``. Notebook 05."""

import weakref
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers.optimization import Adafactor

from ..training import forward_backward
from . import on_cuda

aten = torch.ops.aten
MATMULS = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default}
OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


@dataclass(eq=False, slots=True)
class Allocation:
    """One tensor's storage: bytes, category, the op and the module that made it, and when.

    phase : ``"load"``, ``"forward"``, ``"backward"`` or ``"optimizer"``. step : from 1; the weights are of 0.
    category : one of `budget.TRACED_PARTS`, or ``"batch"``.
    """

    size: int
    op: str
    module: str
    phase: str
    step: int
    category: str = "temporaries"


def make_optimizer(model, options):
    """The optimizer that the options describe, at the recipe's learning rate."""
    if options.optimizer == "adafactor":
        return Adafactor(
            model.parameters(), lr=2e-5, scale_parameter=False, relative_step=False
        )
    flags = {name: options.implementation == name for name in ("fused", "foreach")}
    return OPTIMIZERS[options.optimizer](model.parameters(), lr=2e-5, **flags)


class Recorder(TorchDispatchMode):
    """Notes each new storage, and its release by a finalizer on the storage itself."""

    num_processes = 1  # with `backward` and `no_sync`, all that the training step asks of its accelerator

    def __init__(self, model, options):
        super().__init__()
        self.model, self.options = model, options
        self.events, self.live = [], {}  # live: address of a storage -> its allocation
        self.newest = None  # the address of the storage that was made last, if none was released since
        self.phase, self.step, self.part = "load", 0, 0
        self.modules = []  # the stack of module names in the forward pass
        self.names = {module: name or "model" for name, module in model.named_modules()}
        self.threads = set()  # those that have a cuBLAS workspace
        self.flops = Counter()  # floating-point operations of the products of each step

    def record(self, shapes) -> list[tuple[Allocation, bool]]:
        """Load the model and take one training step for each (rows, tokens). Returns a `Trace`'s events."""
        with (
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave),
            self,
        ):
            self.model.apply(
                self._load
            )  # children first: the order in which ``model.to("cuda")`` copies
            events = self._run(shapes)
        # Finalizers hold the recorder while their storages live: it must not hold those of the weights too.
        self.model = self.names = self.loss = self.outputs = None
        return events

    def _load(self, module) -> None:
        for tensor in [
            *module.parameters(recurse=False),
            *module.buffers(recurse=False),
        ]:
            self._note(tensor, "to", (), "weights", self.names[module])

    def _enter(self, module, _) -> None:
        if module is self.model:
            self.phase = "forward"  # again, where a batch is taken in parts
        self.modules.append(self.names.get(module, ""))

    def _leave(self, module, _, outputs) -> None:
        self.modules.pop()
        if module is self.model and self.options.keep_outputs:
            self.outputs = outputs

    def _run(self, shapes) -> list:
        optimizer = make_optimizer(self.model.train(), self.options)
        for self.step, shape in enumerate(shapes, 1):
            self.phase, self.part = "forward", 0
            batch = self._batch(*shape)  # like the loss, it lives until the next one
            limits = [[1, size]] if (size := self.options.micro_batch_size) else []
            self.loss = forward_backward(self.model, batch, self, limits)
            self.phase = "optimizer"
            optimizer.step()
            self._mark(list(optimizer.state.values()), "optimizer state")
            if self.options.zero_grad == "after the step":
                optimizer.zero_grad(set_to_none=True)
        return list(self.events)  # what Python drops after this is not part of a step

    def backward(self, loss) -> None:
        """Called by the training step. What the forward pass has left alive are its activations."""
        for allocation in self.live.values():
            if allocation.step == self.step and allocation.category == "temporaries":
                allocation.category = "activations"
        if self.options.zero_grad == "before backward" and not self.part:
            self.model.zero_grad(set_to_none=True)
        self.phase, self.part = "backward", self.part + 1
        loss.backward()
        self._mark([p.grad for p in self.model.parameters()], "gradients")

    def no_sync(self, _):
        return nullcontext()

    def _batch(self, rows: int, length: int) -> dict:
        names = ("input_ids", "attention_mask") if self.options.mask else ("input_ids",)
        batch = {name: torch.ones(rows, length, dtype=torch.long) for name in names}
        batch["labels"] = torch.ones(rows, dtype=torch.long)
        self._mark(batch, "batch")
        return batch

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default:  # asked thousands of times in a step
            return torch.device("cpu")
        thread = "autograd's" if self.phase == "backward" else "main"
        if (
            func in MATMULS and thread not in self.threads
        ):  # takes cuBLAS' scratch memory, and keeps it
            self.threads.add(thread)
            if size := on_cuda.workspace_size(self.options.capability):
                workspace = Allocation(
                    size, "cuBLAS", "", self.phase, self.step, "workspaces"
                )
                self.events.append((workspace, True))
        result = func(*args, **(kwargs or {}))
        if operations := flop_registry.get(func._overloadpacket):
            self.flops[self.step] += operations(*args, **(kwargs or {}), out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor, func, args)
        return result

    def _note(self, tensor, func, args, category="temporaries", module=None) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, on_cuda.storage_size(func, tensor, storage.nbytes())
        # Adam's step counters, and the scalars made of them, stay on the CPU unless it is fused.
        on_host = (
            self.phase == "optimizer"
            and self.options.implementation != "fused"
            and tensor.numel() == 1
        )
        if not size or on_host or key in self.live:
            return
        if module is None:
            module = (
                self.modules[-1]
                if self.modules and self.phase == "forward"
                else self._module_of(args)
            )
        op = func if isinstance(func, str) else func._schema.name.removeprefix("aten::")
        self.live[key] = Allocation(size, op, module, self.phase, self.step, category)
        self.events.append((self.live[key], True))
        self.newest = key
        weakref.finalize(storage, self._release, key)

    def _release(self, key) -> None:
        released, newest = self.live.pop(key), self.newest
        self.newest = None
        last, _ = self.events[-1]
        added = (
            newest and last.op == "add" and last.phase == released.phase == "backward"
        )
        if added and last.size == released.size:
            # The sum of two gradients of one tensor. The real engine adds in place when nobody else holds the
            # first, but not under a dispatch mode, where it makes a new tensor and drops the old one at once.
            self.events.pop()
            self.live[newest] = released
        else:
            self.events.append((released, False))

    def _module_of(self, args) -> str:
        """In the backward pass: the module whose weight or activation the op uses, or else its gradient."""
        known = [
            allocation for allocation in self._allocations(args) if allocation.module
        ]
        known.sort(key=lambda allocation: allocation.phase not in ("forward", "load"))
        return known[0].module if known else ""

    def _mark(self, tree, category: str) -> None:
        for allocation in self._allocations(tree):
            allocation.category = category

    def _allocations(self, tree) -> list[Allocation]:
        """Those of the tensors in nested lists and dicts, as far as they are on the device."""
        tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
        found = (self.live.get(tensor.untyped_storage()._cdata) for tensor in tensors)
        return [allocation for allocation in found if allocation is not None]
