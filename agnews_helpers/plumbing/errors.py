"""Why the code cannot go on, each reason with a name. The command catches `AgnewsError` and `OSError`."""

import re


class AgnewsError(Exception):
    """All below: the message says what is wrong, where, and what to do."""


class InvalidValue(AgnewsError, ValueError):
    """An argument or a setting is out of range; the message names it and what is allowed."""


class DataError(AgnewsError, ValueError):
    """The data cannot be used; the message names the file, the row and the remedy."""


class HubUnreachable(AgnewsError, RuntimeError):
    """The Hugging Face Hub is needed, and it does not answer or does not give what is needed."""


class MiniUnavailable(AgnewsError, RuntimeError):
    """The offline model is not installed, or its files are not the ones we know."""


class SaveError(AgnewsError, OSError):
    """Something could not be written, often because the disk is full. What was there before is untouched."""


class Damaged(AgnewsError, ValueError):
    """A saved folder is not what was written: a file is missing, too short, or has other bytes."""


class FolderInUse(AgnewsError, RuntimeError):
    """Another process is training into the same folder."""


class ResumeError(AgnewsError, ValueError):
    """What lies in an output folder is not the run that was asked for, and is not replaced without a word."""


class NonFiniteError(AgnewsError, ArithmeticError):
    """A loss, a gradient or an answer is not a number, or infinite; no step was taken with it."""


class DoesNotFit(AgnewsError, RuntimeError):
    """Memory runs out and smaller parts cannot help, or cannot be taken: several processes run."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: on a GPU, or on the CPU, where it is an ordinary RuntimeError in many words."""
    import torch

    words = "out of memory|allocate memory|enough memory|could not create a primitive|temporarily unavailable"
    told = isinstance(error, RuntimeError) and re.search(words, str(error)) is not None
    return told or isinstance(error, torch.OutOfMemoryError)
