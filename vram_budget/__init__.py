"""Will a training step fit the graphics card? Predicted without the card.

Importing this loads nothing heavy; each name is imported from its module at its
first use.
"""

from importlib import import_module

# module -> its public names, from the question to the instruments
_NAMES = {
    "budget": "step_budget largest_batch budget_table memory_savings timeline "
    "usable_mib runs_within Budget",
    "reporting": "report",
    "tracing": "trace scaled_trace StepOptions Trace",
    "allocator": "replay CachingAllocator OutOfMemory",
    "recorder": "Allocation",
    "step_time": "step_work batch_seconds seconds_on",
    "cards": "find_card found_card Card CARDS GTX_1650_TI SYSTEMS_GIB context_mib",
    "errors": "InvalidValue",
}
_MODULE_OF = {name: module for module in _NAMES for name in _NAMES[module].split()}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
