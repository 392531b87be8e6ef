"""A model of PyTorch's CUDA caching allocator: what it splits, keeps, merges and gives back. Notebook 05.

Rules and constants are those of c10/cuda/CUDACachingAllocator.cpp in PyTorch 2.13, in its default
configuration and for a single stream. Not modelled: expandable segments, `max_split_size`, garbage
collection, private pools of CUDA graphs.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass, field

from ..plumbing.errors import InvalidValue

MIB = 2**20
ROUND = 512  # kMinBlockSize: every block is a multiple of this
SMALL = MIB  # kSmallSize: up to this a request goes to the small pool
SMALL_SEGMENT = 2 * MIB  # kSmallBuffer: what the small pool takes from CUDA at a time
LARGE_SEGMENT = 20 * MIB  # the large pool's segment for requests below MIN_LARGE
MIN_LARGE = 10 * MIB  # kMinLargeAlloc: from here a request gets a segment of its own
ROUND_LARGE = 2 * MIB  # kRoundLarge: which is a multiple of this
FULL = "tried to allocate {:.1f} MiB: {:.0f} MiB in all, {:.0f} allocated, {:.0f} reserved but unallocated"


class OutOfMemory(RuntimeError):
    """The capacity is exhausted, also after all cached segments were given back."""


@dataclass(eq=False, slots=True)
class Block:
    """What a request got: a piece of a segment, `size` bytes from `address` on."""

    address: int
    size: int
    pool: str
    allocated: bool = True


@dataclass
class CachingAllocator:
    """The allocator of one device, empty.

    Parameters
    ----------
    capacity : bytes that segments may take together; None is no limit. Each segment is one cudaMalloc.
    """

    capacity: int | None = None
    segments: dict[int, int] = field(default_factory=dict)  # address -> size
    # free pieces: (size, address) in each pool, as they are searched; and by where they begin and end
    cached: dict[str, list] = field(default_factory=lambda: {"small": [], "large": []})
    _size_at: dict[int, int] = field(default_factory=dict)
    _start_before: dict[int, int] = field(default_factory=dict)
    _top: int = 0  # where the next segment begins
    allocated: int = 0  # bytes in blocks
    reserved: int = 0  # bytes in segments
    max_allocated: int = 0  # as of `torch.cuda.max_memory_allocated`
    max_reserved: int = 0

    def malloc(self, requested: int) -> Block:
        """Allocate `requested` bytes; none is a ValueError, since PyTorch allocates nothing for it.

        OutOfMemory where neither a cached piece nor a new segment is to be had within the capacity.
        """
        if requested < 1:
            raise InvalidValue(
                f"a request of {requested} bytes; PyTorch allocates nothing for empty tensors"
            )
        size = -(-requested // ROUND) * ROUND
        pool = "small" if size <= SMALL else "large"
        fit = bisect_left(
            self.cached[pool], (size, -1)
        )  # the smallest that is enough, at the lowest address
        if fit < len(self.cached[pool]):
            found, address = self.cached[pool][fit]
            self._uncache(pool, address)
        else:
            found, address = self._new_segment(pool, size)
        rest = found - size
        if rest >= ROUND if pool == "small" else rest > SMALL:
            self._cache(pool, address + size, rest)
        else:
            size = found
        self.allocated += size
        self.max_allocated = max(self.max_allocated, self.allocated)
        return Block(address, size, pool)

    def free(self, block: Block) -> None:
        """Give a block back to its pool, merged with free neighbours of the same segment."""
        if not block.allocated:
            raise InvalidValue(f"the block at {block.address} is free already")
        block.allocated = False
        self.allocated -= block.size
        start, end = block.address, block.address + block.size
        if end in self._size_at and end not in self.segments:
            end += self._uncache(block.pool, end)
        if start in self._start_before and start not in self.segments:
            start -= self._uncache(block.pool, self._start_before[start])
        self._cache(block.pool, start, end - start)

    def empty_cache(self) -> int:
        """Give every wholly free segment back to CUDA; returns the bytes. As `torch.cuda.empty_cache`."""
        before = self.reserved
        for pool, pieces in self.cached.items():
            for size, address in list(pieces):
                if self.segments.get(address) == size:
                    self._uncache(pool, address)
                    self.reserved -= self.segments.pop(address)
        return before - self.reserved

    def _new_segment(self, pool: str, size: int) -> tuple[int, int]:
        length = SMALL_SEGMENT if pool == "small" else LARGE_SEGMENT
        if size >= MIN_LARGE:
            length = -(-size // ROUND_LARGE) * ROUND_LARGE
        if self.capacity is not None and self.reserved + length > self.capacity:
            self.empty_cache()
            if self.reserved + length > self.capacity:
                known = (
                    size,
                    self.capacity,
                    self.allocated,
                    self.reserved - self.allocated,
                )
                raise OutOfMemory(FULL.format(*(number / MIB for number in known)))
        address, self._top = self._top, self._top + length
        self.segments[address] = length
        self.reserved += length
        self.max_reserved = max(self.max_reserved, self.reserved)
        return length, address

    def _cache(self, pool: str, address: int, size: int) -> None:
        insort(self.cached[pool], (size, address))
        self._size_at[address], self._start_before[address + size] = size, address

    def _uncache(self, pool: str, address: int) -> int:
        size = self._size_at.pop(address)
        del self._start_before[address + size]
        del self.cached[pool][bisect_left(self.cached[pool], (size, address))]
        return size


def replay(events, allocator: CachingAllocator) -> CachingAllocator:
    """Feed the events of a trace, pairs of (something with a `size`, made or released), to an allocator.

    The first request that the allocator's capacity cannot meet is an OutOfMemory.
    """
    blocks = {}
    for allocation, made in events:
        if made:
            blocks[allocation] = allocator.malloc(allocation.size)
        else:
            allocator.free(blocks.pop(allocation))
    return allocator
