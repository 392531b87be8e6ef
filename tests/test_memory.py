"""A batch in parts: the same step when memory runs out, wherever it runs out."""

import weakref

import pytest
import torch

from agnews_helpers import DoesNotFit
from agnews_helpers.plumbing.errors import is_out_of_memory
from agnews_helpers.plumbing.memory import in_parts

CPU_MESSAGE = (
    "[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 9 bytes."
)
ROWS = 8


@pytest.fixture
def network():
    """Two layers, in float64: sums in another order differ by nothing that matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
        return torch.nn.Sequential(*layers).double()


def batch_of(tokens: int = 6) -> dict[str, torch.Tensor]:
    numbers = torch.arange(ROWS * tokens, dtype=torch.float64)
    return {"input_ids": numbers.reshape(ROWS, tokens).sin()}


def step(model, part, rows):
    loss = model(part["input_ids"]).square().sum() / rows
    loss.backward()
    return loss.detach()


def gradients(model):
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


@pytest.fixture
def whole(network):
    """Loss and gradients of the whole batch."""
    loss = step(network, batch_of(), ROWS)
    expected = loss.item(), gradients(network)
    network.zero_grad()
    return expected


def assert_whole(loss, network, whole):
    assert loss.item() == pytest.approx(whole[0], abs=1e-12)
    assert (gradients(network) - whole[1]).abs().max() < 1e-12


@pytest.mark.parametrize("size", [1, 3, 4, 8, 20])
def test_the_parts_add_up_to_the_whole_batch(size, network, whole):
    loss = in_parts(step, network, batch_of(), [[1, size]])
    assert_whole(loss, network, whole)


def test_memory_that_runs_out_between_two_parts_leaves_no_gradients(network, whole):
    """The first part's gradients are there when the second part fails."""
    sizes = []

    def fails_in_the_second_part(model, part, rows):
        sizes.append(len(part["input_ids"]))
        if len(sizes) == 2:
            assert gradients(model).abs().max() > 0
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(model, part, rows)

    split_sizes = [[1, 4]]
    loss = in_parts(fails_in_the_second_part, network, batch_of(), split_sizes)
    assert sizes == [4, 4, 2, 2, 2, 2] and split_sizes == [[1, 4], [6, 2]]
    assert_whole(loss, network, whole)


class Saved:
    """A tensor that autograd has saved for the backward pass."""

    def __init__(self, tensor):
        self.tensor = tensor.detach()  # or it would keep its own graph alive


@pytest.mark.parametrize("layer", [0, 2], ids=["first layer", "last layer"])
def test_memory_that_runs_out_in_the_backward_pass(layer, network, whole):
    """And nothing of the failed part is alive when the next one begins."""
    sizes = []
    saved = []

    def pack(tensor):
        holder = Saved(tensor)
        saved.append(weakref.ref(holder))
        return holder

    def no_memory(gradient):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def fail_above_two_rows(module, inputs, output):
        if len(output) > 2:
            output.register_hook(no_memory)

    def watched_step(model, part, rows):
        assert not [ref for ref in saved if ref()], "a failed part's graph is alive"
        sizes.append(len(part["input_ids"]))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
            return step(model, part, rows)

    network[layer].register_forward_hook(fail_above_two_rows)
    loss = in_parts(watched_step, network, batch_of(), [])
    assert saved and sizes == [8, 4, 2, 2, 2, 2]
    assert_whole(loss, network, whole)


def test_the_smaller_size_is_kept_for_longer_batches_only(network, capsys):
    sizes = []
    split_sizes = []

    def limited(model, part, rows):
        sizes.append(len(part["input_ids"]))
        if part["input_ids"].numel() > 250:
            raise torch.OutOfMemoryError("")
        return torch.zeros(())

    def take(tokens):
        in_parts(limited, network, batch_of(tokens), split_sizes)

    take(30)
    assert sizes == [8]
    take(60)  # 8 fail, 4 rows of 60 do not
    assert sizes == [8, 8, 4, 4] and split_sizes == [[60, 4]]
    take(62)
    take(30)
    assert sizes[4:] == [4, 4, 8]
    take(100)  # 4 fail, 2 do not
    assert sizes[7:] == [4, 2, 2, 2, 2] and split_sizes == [[60, 4], [100, 2]]
    output = capsys.readouterr().out
    assert output.count("gradient is the same, apart from dropout") == 2


@pytest.mark.slow
def test_a_row_that_does_not_fit_is_an_error_without_gradients(network):
    sizes = []

    def never(model, part, rows):
        sizes.append(len(part["input_ids"]))
        step(model, part, rows)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(DoesNotFit, match="not even one row of 6 tokens fits .CUDA out"):
        in_parts(never, network, batch_of(), [])
    assert sizes == [8, 4, 2, 1]
    assert all(weight.grad is None for weight in network.parameters())


def test_another_error_is_not_caught(network):
    calls = []

    def broken(model, part, rows):
        calls.append(1)
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        in_parts(broken, network, batch_of(), [])
    assert calls == [1]


@pytest.mark.parametrize(
    "message",
    [
        CPU_MESSAGE,
        CPU_MESSAGE.replace("can't allocate memory", "not enough memory"),  # Windows
        "could not create a primitive",
        "Resource temporarily unavailable",
        "MPS backend out of memory",
        "CUDA error: out of memory\nCUDA kernel errors might be reported later",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasSgemm(...)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    ],
)
def test_how_memory_runs_out_in_libraries(message):
    assert is_out_of_memory(RuntimeError(message))


def test_what_is_not_out_of_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(DoesNotFit("x"))
    assert not is_out_of_memory(RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED"))
    assert not is_out_of_memory(RuntimeError("other"))
    assert not is_out_of_memory(ValueError("out of memory"))
