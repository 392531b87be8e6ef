"""The error of this package."""


class InvalidValue(ValueError):
    """An argument is out of range, or a step cannot be traced.

    The message is one line: what was wrong, and what is allowed.
    """
