"""A model of PyTorch's CUDA caching allocator: what it splits, caches and merges.

Rules and constants are those of c10/cuda/CUDACachingAllocator.cpp in PyTorch 2.13, in
its default configuration and for a single stream. Not modelled: expandable segments,
`max_split_size`, garbage collection, private pools of CUDA graphs.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .errors import InvalidValue

MIB = 2**20
MIN_BLOCK_SIZE = 512  # kMinBlockSize: every block is a multiple of this
SMALL_SIZE = MIB  # kSmallSize: a request up to this goes to the small pool
SMALL_BUFFER = 2 * MIB  # kSmallBuffer: a segment of the small pool
LARGE_BUFFER = 20 * MIB  # kLargeBuffer: a segment for requests below MIN_LARGE_ALLOC
MIN_LARGE_ALLOC = 10 * MIB  # kMinLargeAlloc: from here a request gets its own segment,
ROUND_LARGE = 2 * MIB  # kRoundLarge: which is a multiple of this
OUT_OF_MEMORY = (
    "tried to allocate {:.1f} MiB: {:.0f} MiB in all, {:.0f} allocated, "
    "{:.0f} reserved but unallocated"
)


class OutOfMemory(RuntimeError):
    """The capacity is exhausted, even after all cached segments were given back."""


@dataclass(eq=False, slots=True)
class Block:
    """A piece of a segment, as `CachingAllocator.malloc` returns it.

    Attributes
    ----------
    address : int
        Where it begins.
    size : int
        Its bytes; at least what was requested.
    pool : str
        ``"small"`` or ``"large"``.
    allocated : bool
        False after it was freed.
    """

    address: int
    size: int
    pool: str
    allocated: bool = True


@dataclass
class CachingAllocator:
    """The allocator of one device, empty at first.

    Attributes
    ----------
    capacity : int or None
        Bytes that all segments together may have; None is no limit. Each segment is one
        cudaMalloc.
    segments : dict of int to int
        The address and the bytes of each segment.
    cached : dict of str to list
        The free pieces of each pool, as sorted pairs (bytes, address).
    allocated : int
        Bytes in blocks at present.
    reserved : int
        Bytes in segments at present.
    max_allocated : int
        The peak, as of `torch.cuda.max_memory_allocated`.
    max_reserved : int
        The peak, as of `torch.cuda.max_memory_reserved`.
    """

    capacity: int | None = None
    segments: dict[int, int] = field(default_factory=dict)
    cached: dict[str, list] = field(default_factory=lambda: {"small": [], "large": []})
    # Free pieces by where they begin, and by where they end.
    _size_at: dict[int, int] = field(default_factory=dict)
    _start_before: dict[int, int] = field(default_factory=dict)
    _next_segment: int = 0
    allocated: int = 0
    reserved: int = 0
    max_allocated: int = 0
    max_reserved: int = 0

    def malloc(self, requested: int) -> Block:
        """Allocate memory, from the cache if a free piece is large enough.

        Parameters
        ----------
        requested : int
            Bytes; at least 1.

        Returns
        -------
        Block

        Raises
        ------
        InvalidValue
            If `requested` is below 1: PyTorch allocates nothing for empty tensors.
        OutOfMemory
            If neither the cache nor a new segment within the capacity has room.
        """
        if requested < 1:
            raise InvalidValue(
                f"A request of {requested} bytes: PyTorch allocates nothing for empty "
                "tensors. Request at least 1 byte."
            )
        size = _round_up(requested, MIN_BLOCK_SIZE)
        pool = "small" if size <= SMALL_SIZE else "large"
        cached = self.cached[pool]
        best_fit = bisect_left(cached, (size, -1))  # smallest; then the lowest address
        if best_fit < len(cached):
            available, address = cached[best_fit]
            self._uncache(pool, address)
        else:
            available, address = self._new_segment(pool, size)
        rest = available - size
        if rest > SMALL_SIZE or (pool == "small" and rest):
            self._cache(pool, address + size, rest)
        else:
            size = available
        self.allocated += size
        self.max_allocated = max(self.max_allocated, self.allocated)
        return Block(address, size, pool)

    def free(self, block: Block) -> None:
        """Return a block to its pool, merged with its free neighbours in the segment.

        Parameters
        ----------
        block : Block
            From `malloc`, not freed yet.

        Raises
        ------
        InvalidValue
            If the block was freed before.
        """
        if not block.allocated:
            raise InvalidValue(f"The block at {block.address} is free already.")
        block.allocated = False
        self.allocated -= block.size
        start = block.address
        end = start + block.size
        if end in self._size_at and end not in self.segments:
            end += self._uncache(block.pool, end)
        if start in self._start_before and start not in self.segments:
            start -= self._uncache(block.pool, self._start_before[start])
        self._cache(block.pool, start, end - start)

    def empty_cache(self) -> int:
        """Give every wholly free segment back, like `torch.cuda.empty_cache`.

        Returns
        -------
        int
            The bytes given back.
        """
        before = self.reserved
        for pool, pieces in self.cached.items():
            for size, address in list(pieces):
                if self.segments.get(address) == size:
                    self._uncache(pool, address)
                    self.reserved -= self.segments.pop(address)
        return before - self.reserved

    def _new_segment(self, pool: str, size: int) -> tuple[int, int]:
        """Take a segment from CUDA; its bytes and its address."""
        length = SMALL_BUFFER if pool == "small" else LARGE_BUFFER
        if size >= MIN_LARGE_ALLOC:
            length = _round_up(size, ROUND_LARGE)
        if self.capacity is not None and self.reserved + length > self.capacity:
            self.empty_cache()
            if self.reserved + length > self.capacity:
                cached = self.reserved - self.allocated
                numbers = (size, self.capacity, self.allocated, cached)
                raise OutOfMemory(OUT_OF_MEMORY.format(*(n / MIB for n in numbers)))
        address = self._next_segment
        self._next_segment += length
        self.segments[address] = length
        self.reserved += length
        self.max_reserved = max(self.max_reserved, self.reserved)
        return length, address

    def _cache(self, pool: str, address: int, size: int) -> None:
        """Add a free piece."""
        insort(self.cached[pool], (size, address))
        self._size_at[address] = size
        self._start_before[address + size] = address

    def _uncache(self, pool: str, address: int) -> int:
        """Remove a free piece; its bytes."""
        size = self._size_at.pop(address)
        del self._start_before[address + size]
        del self.cached[pool][bisect_left(self.cached[pool], (size, address))]
        return size


def _round_up(size: int, multiple: int) -> int:
    """Round up to a multiple."""
    return -(-size // multiple) * multiple


def replay(
    events: Iterable[tuple[Any, bool]], allocator: CachingAllocator
) -> CachingAllocator:
    """Feed the events of a trace to an allocator.

    Parameters
    ----------
    events : iterable of (object, bool)
        An object with a `size` in bytes; True if it was allocated, False if it was
        released. `Trace.events` is such a list.
    allocator : CachingAllocator
        Changed in place.

    Returns
    -------
    CachingAllocator
        The same allocator.

    Raises
    ------
    OutOfMemory
        At the first request that does not fit its capacity.
    """
    blocks = {}
    for allocation, made in events:
        if made:
            blocks[allocation] = allocator.malloc(allocation.size)
        else:
            allocator.free(blocks.pop(allocation))
    return allocator
