"""Watches training steps on tensors without storage: what ``trace`` uses to note each allocation. Notebook 05."""
import weakref
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..step import training_step
from . import cuda_kernels

aten = torch.ops.aten
CATEGORIES = ("weights", "gradients", "optimizer state", "activations", "temporaries", "workspaces", "batch")
MATMULS = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default}


@dataclass(eq=False, slots=True)
class Allocation:
    """One tensor's storage: bytes, category, the op and the module that made it, and when."""

    size: int
    op: str
    module: str
    phase: str
    step: int
    category: str = "temporaries"


class Recorder(TorchDispatchMode):
    """Notes each new storage, and its release by a finalizer on the storage itself."""

    def __init__(self, model, setup):
        super().__init__()
        self.model, self.setup = model, setup
        self.events, self.live, self.owner = [], {}, {}
        self.phase, self.step, self.active = "load", 0, False
        self.modules = []  # the stack of module names in the forward pass
        self.names = {module: name or "model" for name, module in model.named_modules()}
        self.threads = set()  # those that have a cuBLAS workspace

    # what the training step sees as its accelerator
    def backward(self, loss) -> None:
        for allocation in self.live.values():
            if allocation.step == self.step and allocation.category == "temporaries":
                allocation.category = "activations"
        self.phase = "backward"
        loss.backward()
        self._mark((p.grad for p in self.model.parameters()), "gradients")
        self.phase = "forward"

    def load(self) -> None:
        self.model.zero_grad(set_to_none=True)
        for module in _children_first(self.model):  # the order in which model.to("cuda") copies
            for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
                self._note(tensor, "to", "weights", self.names[module])

    def train(self, shapes) -> None:
        self.model.train()
        optimizer, losses = self._optimizer(), []
        for self.step, shape in enumerate(shapes, 1):
            batch = self._batch(*shape)
            losses.append(training_step(self.model, batch, optimizer, self, self.setup.micro_batch_size))
        self.active = False
        self.model.zero_grad(set_to_none=True)

    def infer(self, shapes) -> None:
        self.model.eval()
        for self.step, shape in enumerate(shapes, 1):
            batch = self._batch(*shape)
            del batch["labels"]
            with torch.no_grad():
                self.model(**batch)
        self.active = False

    def _batch(self, rows: int, length: int) -> dict:
        self.phase = "forward"
        batch = {"input_ids": torch.ones(rows, length, dtype=torch.long)}
        if self.setup.mask:
            batch["attention_mask"] = torch.ones(rows, length, dtype=torch.long)
        batch["labels"] = torch.ones(rows, dtype=torch.long)
        self._mark(batch.values(), "batch")
        return batch

    def _optimizer(self):
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        flags = dict(fused=self.setup.implementation == "fused", foreach=self.setup.implementation == "foreach")
        optimizer = kinds[self.setup.optimizer](self.model.parameters(), lr=2e-5, **flags)

        def before(*_):
            self.phase = "optimizer"

        def after(optimizer, *_):
            for state in optimizer.state.values():
                self._mark((state["exp_avg"], state["exp_avg_sq"], state["step"]), "optimizer state")

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
        if self.setup.keep_gradients:
            zero = optimizer.zero_grad
            optimizer.zero_grad = lambda set_to_none: zero(set_to_none=False)
        return optimizer

    @contextmanager
    def watching(self):
        """Record what happens inside, and keep track of the module that is at work."""
        enter = torch.nn.modules.module.register_module_forward_pre_hook(
            lambda module, _: self.modules.append(self.names.get(module, self.modules[-1] if self.modules else "model")))
        leave = torch.nn.modules.module.register_module_forward_hook(lambda *_: self.modules.pop() and None)
        forward = self.model.forward
        if self.setup.precision == "fp16":
            forward = torch.autocast("cpu", torch.float16)(forward)
        self.active = True
        try:
            with ExitStack() as stack:
                stack.enter_context(mock.patch.object(self.model, "forward", forward))
                stack.enter_context(self)
                yield
        finally:
            self.active = False
            enter.remove(), leave.remove()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in MATMULS:
            self._workspace()
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor, func, args=args)
        return result

    def _note(self, tensor, func, category="temporaries", module=None, args=()) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if not self.active or key in self.live:
            return
        size = cuda_kernels.storage_size(func, tensor, storage.nbytes())
        if self._on_host(tensor) or not size:
            return
        if module is None:
            module = self.modules[-1] if self.modules and self.phase == "forward" else self._module_of(args)
        allocation = Allocation(size, _op_name(func), module, self.phase, self.step, category)
        self.live[key] = allocation
        self.events.append((allocation, True))
        weakref.finalize(storage, self._release, key, allocation)

    def _release(self, key, allocation) -> None:
        if self.live.get(key) is allocation:
            del self.live[key]
            if self.active:
                self.events.append((allocation, False))

    def _on_host(self, tensor) -> bool:
        """Adam's step counters, which stay on the CPU unless it is fused, and the scalars computed from them."""
        return self.phase == "optimizer" and self.setup.implementation != "fused" and tensor.numel() == 1

    def _module_of(self, args) -> str:
        """In the backward pass: the module whose weight or activation the op uses, else that of its gradient."""
        known = [self.live.get(leaf.untyped_storage()._cdata) for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
        known = [allocation for allocation in known if allocation is not None and allocation.module]
        known.sort(key=lambda allocation: allocation.phase not in ("forward", "load"))
        return known[0].module if known else ""

    def _workspace(self) -> None:
        """cuBLAS' scratch memory: taken by each thread at its first product, and kept. Autograd has its own thread."""
        thread = "backward" if self.phase == "backward" else "forward"
        size = cuda_kernels.workspace_size(self.setup)
        if size and thread not in self.threads:
            self.threads.add(thread)
            self.events.append((Allocation(size, "cuBLAS", "", self.phase, self.step, "workspaces"), True))

    def _mark(self, tensors, category: str) -> None:
        for tensor in tensors:
            allocation = None if tensor is None else self.live.get(tensor.untyped_storage()._cdata)
            if allocation is not None:
                allocation.category = category


def _children_first(module):
    for child in module.children():
        yield from _children_first(child)
    yield module


def _op_name(func) -> str:
    return func if isinstance(func, str) else func._schema.name.removeprefix("aten::")


def fuse_in_place(events):
    """Sums of gradients as the real engine does them: in place.

    Where a tensor is used twice, its gradients are added. The engine adds in place when nobody else holds
    the first one, but not under a dispatch mode, where it makes a new tensor and drops the old one at once.
    """
    fused, merged = [], {}
    place = 0
    while place < len(events):
        allocation, made = events[place]
        following = events[place + 1] if place + 1 < len(events) else (None, True)
        old, released = following[0], not following[1]
        if (made and allocation.op == "add" and allocation.phase == "backward" and released
                and old.size == allocation.size and old.phase == "backward"):
            merged[allocation] = merged.get(old, old)
            if allocation.category == "gradients":
                merged[allocation].category = "gradients"
            place += 2
            continue
        fused.append((merged.get(allocation, allocation), made))
        place += 1
    return fused
