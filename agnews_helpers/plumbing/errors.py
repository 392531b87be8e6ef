"""The package's exceptions, each of which the command tells without a traceback."""

import functools
import inspect
import re
from collections.abc import Callable
from types import GenericAlias


class AgnewsError(Exception):
    """Base class: each message says what was wrong, where, and what to do."""


class InvalidValue(AgnewsError, ValueError):
    """A setting is not allowed; the message names it and the allowed values."""


class DataError(AgnewsError, ValueError):
    """The data cannot be used; the message names the file, the row and the remedy."""


class HubUnreachable(AgnewsError, RuntimeError):
    """The Hugging Face Hub does not answer, or does not deliver the files."""


class MiniUnavailable(AgnewsError, RuntimeError):
    """The offline model is not installed, or its files have other checksums."""


class SaveError(AgnewsError, OSError):
    """A file could not be saved, often for lack of disk space; the old one is kept."""


class Damaged(AgnewsError, ValueError):
    """A saved file is missing, truncated, or has other bytes than were written."""


class FolderInUse(AgnewsError, RuntimeError):
    """Another process is training into the same output folder."""


class ResumeError(AgnewsError, ValueError):
    """The output folder holds a different run; it is not overwritten silently."""


class NonFiniteError(AgnewsError, ArithmeticError):
    """A loss, gradient or logit is NaN or infinite; the weights were not updated."""


class DoesNotFit(AgnewsError, RuntimeError):
    """Memory ran out, and splitting the batch further is impossible or no help."""


# Classes; CUDA, PyTorch's CPU allocator, cuBLAS; oneDNN, Linux, cuBLAS and cuDNN
OUT_OF_MEMORY = (
    "OutOfMemory|DoesNotFit|out of memory|allocate memory|enough memory|cublasCreate"
    "|could not create a primitive|temporarily unavailable|ALLOC(ATION)?_FAILED"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out, on a GPU or a CPU.

    PyTorch raises OutOfMemoryError for its own allocations on a GPU. On a CPU, and
    inside a library such as cuBLAS, the same failure is a RuntimeError that only its
    message tells apart.

    Parameters
    ----------
    error : BaseException
        The error that was caught.

    Returns
    -------
    bool
        True if memory ran out; fewer rows at a time may then help.
    """
    # repr() has the name of the error's class, too.
    return isinstance(error, RuntimeError) and bool(
        re.search(OUT_OF_MEMORY, repr(error))
    )


def check_types(function: Callable) -> Callable:
    """Decorate a function: an argument of a wrong type raises InvalidValue.

    Parameters
    ----------
    function : Callable
        Its annotations are classes, unions of classes, or such as ``list[str]``, of
        which only the list is checked. An argument without one may be anything.

    Returns
    -------
    Callable
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*arguments, **options):
        for name, value in signature.bind(*arguments, **options).arguments.items():
            kind = signature.parameters[name].annotation
            if isinstance(kind, GenericAlias):  # such as list[str]
                kind = kind.__origin__
            if kind is not signature.empty and not isinstance(value, kind):
                raise InvalidValue(
                    f"{function.__qualname__}() takes "
                    f"{kind.__name__ if isinstance(kind, type) else kind} for "
                    f"{name!r}, and got {type(value).__name__}. "
                    f"help({function.__qualname__}) says more."
                )
        return function(*arguments, **options)

    return checked
