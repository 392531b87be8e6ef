"""Errors that mean "out of memory" are told apart from all others."""

import pytest
import torch

from agnews_helpers.plumbing.errors import is_out_of_memory


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "CUDA error: CUSPARSE_STATUS_ALLOC_FAILED",
        "cuFFT error: CUFFT_ALLOC_FAILED",
        "CUDA error: out of memory",
        "HIP out of memory. Tried to allocate 9.00 GiB",
        "DefaultCPUAllocator: can't allocate memory",
        "not enough memory: you tried to allocate 9 bytes",
        "could not create a primitive",
        "Resource temporarily unavailable",
    ],
)
def test_a_library_without_memory_is_out_of_memory(message):
    assert is_out_of_memory(RuntimeError(message))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("out of memory"),
        MemoryError(),
    ],
)
def test_another_error_is_not_out_of_memory(error):
    assert not is_out_of_memory(error)


def test_pytorchs_own_class_needs_no_words():
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
