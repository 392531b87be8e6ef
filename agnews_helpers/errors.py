"""Why a training run cannot go on, each reason with a name. Notebook 04."""


class SaveError(OSError):
    """Something could not be written, often because the disk is full. What was there before is untouched."""


class Damaged(ValueError):
    """A saved folder is not what was written: a file is missing, too short, or has other bytes."""


class FolderInUse(RuntimeError):
    """Another process is training into the same folder."""


class ResumeError(ValueError):
    """The unfinished run in a folder cannot be continued with what was given."""


class PrecisionRefused(ValueError):
    """The precision that was asked for fails or is slow here; the message says why."""


class NonFiniteError(ArithmeticError):
    """The loss or a gradient is not a number, or infinite; the step was not taken."""


class DoesNotFit(RuntimeError):
    """Memory runs out and smaller parts cannot help. `length` is the batch's number of tokens."""

    def __init__(self, what: str, length: int):
        super().__init__(what)
        self.length = length
