"""The public names, for editors; `__init__.py` imports each at its first use."""

from .allocator import CachingAllocator as CachingAllocator
from .allocator import OutOfMemory as OutOfMemory
from .allocator import replay as replay
from .budget import Budget as Budget
from .budget import budget_table as budget_table
from .budget import largest_batch as largest_batch
from .budget import memory_savings as memory_savings
from .budget import runs_within as runs_within
from .budget import step_budget as step_budget
from .budget import timeline as timeline
from .budget import usable_mib as usable_mib
from .cards import CARDS as CARDS
from .cards import CONTEXT_MIB as CONTEXT_MIB
from .cards import GTX_1650_TI as GTX_1650_TI
from .cards import SYSTEMS_GIB as SYSTEMS_GIB
from .cards import Card as Card
from .cards import find_card as find_card
from .errors import InvalidValue as InvalidValue
from .recorder import Allocation as Allocation
from .reporting import report as report
from .step_time import batch_seconds as batch_seconds
from .step_time import step_work as step_work
from .tracing import StepOptions as StepOptions
from .tracing import Trace as Trace
from .tracing import scaled_trace as scaled_trace
from .tracing import trace as trace
