"""The error of this package."""

from typing import Any


class InvalidValue(ValueError):
    """An argument is out of range, or a step cannot be traced.

    The message is one line: what was wrong, and what is allowed.
    """


def check_type(name: str, value: Any, kind: type) -> None:
    """Check the type of an argument.

    Parameters
    ----------
    name : str
        Of the argument.
    value : object
        What was passed.
    kind : type
        What it must be.

    Raises
    ------
    InvalidValue
        If it is of another type.
    """
    if not isinstance(value, kind):
        raise InvalidValue(
            f"{name} is {value!r}, a {type(value).__name__}; it must be "
            f"of type {kind.__name__}."
        )
