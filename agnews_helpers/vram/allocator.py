"""A model of PyTorch's CUDA caching allocator: which blocks it splits, keeps, merges and gives back. Notebook 05.

Rules and constants are those of c10/cuda/CUDACachingAllocator.cpp in PyTorch 2.13, in its default
configuration and for a single stream. Not modelled: expandable segments, `max_split_size`, garbage
collection, private pools of CUDA graphs.
"""
from bisect import bisect_left, insort
from collections import defaultdict
from dataclasses import dataclass, field

MIB = 2**20
ROUND = 512                # kMinBlockSize: every block is a multiple of this
SMALL = MIB                # kSmallSize: up to this a request goes to the small pool
SMALL_SEGMENT = 2 * MIB    # kSmallBuffer: what the small pool takes from CUDA at a time
LARGE_SEGMENT = 20 * MIB   # the large pool's segment for requests below MIN_LARGE
MIN_LARGE = 10 * MIB       # kMinLargeAlloc: from here a request gets a segment of its own
ROUND_LARGE = 2 * MIB      # kRoundLarge: which is a multiple of this


class OutOfMemory(RuntimeError):
    """The capacity is exhausted, also after all cached segments were given back."""


@dataclass(eq=False, slots=True)
class Block:
    """A piece of a segment; `previous` and `next` are its neighbours by address."""

    address: int
    size: int
    pool: str
    requested: int = 0
    allocated: bool = False
    previous: "Block | None" = None
    next: "Block | None" = None

    @property
    def is_split(self) -> bool:
        return self.previous is not None or self.next is not None


@dataclass
class Stat:
    """Current value, highest value so far, and the sums of everything added and taken away."""

    current: int = 0
    peak: int = 0
    allocated: int = 0
    freed: int = 0

    def add(self, amount: int) -> None:
        self.current += amount
        self.peak = max(self.peak, self.current)
        if amount > 0:
            self.allocated += amount
        else:
            self.freed -= amount


@dataclass
class CachingAllocator:
    """The allocator of one device, empty.

    Parameters
    ----------
    capacity : bytes that segments may take together; None is no limit. Each segment is one cudaMalloc.
    """

    capacity: int | None = None
    segments: dict[int, int] = field(default_factory=dict)  # address -> size
    stats: dict[str, Stat] = field(default_factory=lambda: defaultdict(Stat))
    num_alloc_retries: int = 0
    num_ooms: int = 0
    _free: dict[str, list] = field(default_factory=lambda: {"small": [], "large": []})
    _blocks: dict[int, Block] = field(default_factory=dict)  # free blocks by address
    _top: int = 0

    def malloc(self, requested: int) -> Block:
        """Allocate `requested` bytes, at least 1.

        Raises
        ------
        OutOfMemory
            When neither a cached block nor a new segment is to be had within the capacity.
        ValueError
            For a request of no bytes; PyTorch allocates nothing for it.
        """
        if requested < 1:
            raise ValueError(f"a request of {requested} bytes; PyTorch allocates nothing for an empty tensor")
        size = round_size(requested)
        pool = "small" if size <= SMALL else "large"
        block = self._best_fit(pool, size) or self._new_segment(pool, size)
        remaining = block.size - size
        if remaining >= ROUND if pool == "small" else remaining > SMALL:
            rest = Block(block.address + size, remaining, pool, previous=block, next=block.next)
            if rest.next is not None:
                rest.next.previous = rest
            block.size, block.next = size, rest
            self._insert(rest)
        block.allocated, block.requested = True, requested
        self._count("allocated_bytes", pool, block.size)
        self._count("requested_bytes", pool, requested)
        self._count("allocation", pool, 1)
        return block

    def free(self, block: Block) -> None:
        """Give a block back to its pool, merged with free neighbours of the same segment."""
        if not block.allocated:
            raise ValueError(f"the block at {block.address} is free already")
        block.allocated = False
        self._count("allocated_bytes", block.pool, -block.size)
        self._count("requested_bytes", block.pool, -block.requested)
        self._count("allocation", block.pool, -1)
        before, after = block.previous, block.next
        if before is not None and not before.allocated:
            self._remove(before)
            block.address, block.size, block.previous = before.address, before.size + block.size, before.previous
            if block.previous is not None:
                block.previous.next = block
        if after is not None and not after.allocated:
            self._remove(after)
            block.size, block.next = block.size + after.size, after.next
            if block.next is not None:
                block.next.previous = block
        self._insert(block)

    def empty_cache(self) -> int:
        """Give every wholly free segment back to CUDA; returns the bytes. As `torch.cuda.empty_cache`."""
        whole = [block for block in self._blocks.values() if not block.is_split]
        for block in whole:
            self._remove(block)
            self._count("reserved_bytes", block.pool, -self.segments.pop(block.address))
            self._count("segment", block.pool, -1)
        return sum(block.size for block in whole)

    @property
    def allocated(self) -> int:
        return self.stats["allocated_bytes.all"].current

    @property
    def reserved(self) -> int:
        return self.stats["reserved_bytes.all"].current

    def memory_stats(self) -> dict[str, int]:
        """The statistics under the names of `torch.cuda.memory_stats`, in bytes or counts."""
        flat = {f"{name}.{kind}": getattr(stat, kind) for name, stat in sorted(self.stats.items())
                for kind in ("current", "peak", "allocated", "freed")}
        return flat | {"num_alloc_retries": self.num_alloc_retries, "num_ooms": self.num_ooms}

    def free_blocks(self, pool: str) -> list[tuple[int, int]]:
        """(size, address) of the free blocks in the order in which they are searched."""
        return list(self._free[pool])

    def _best_fit(self, pool: str, size: int) -> Block | None:
        """The smallest free block that is large enough; among equals, the lowest address."""
        blocks = self._free[pool]
        place = bisect_left(blocks, (size, -1))
        if place == len(blocks):
            return None
        block = self._blocks[blocks[place][1]]
        self._remove(block)
        return block

    def _new_segment(self, pool: str, size: int) -> Block:
        length = SMALL_SEGMENT if pool == "small" else LARGE_SEGMENT if size < MIN_LARGE else _ceil(size, ROUND_LARGE)
        if self.capacity is not None and self.reserved + length > self.capacity:
            self.num_alloc_retries += 1
            self.empty_cache()
            if self.reserved + length > self.capacity:
                self.num_ooms += 1
                raise OutOfMemory(
                    f"tried to allocate {size / MIB:.1f} MiB: {self.capacity / MIB:.0f} MiB in all, "
                    f"{self.allocated / MIB:.0f} allocated, {(self.reserved - self.allocated) / MIB:.0f} reserved but unallocated")
        block = Block(self._top, length, pool)
        self.segments[block.address] = length
        self._top += length
        self._count("reserved_bytes", pool, length)
        self._count("segment", pool, 1)
        return block

    def _insert(self, block: Block) -> None:
        insort(self._free[block.pool], (block.size, block.address))
        self._blocks[block.address] = block
        if block.is_split:
            self._count("inactive_split_bytes", block.pool, block.size)

    def _remove(self, block: Block) -> None:
        blocks = self._free[block.pool]
        del blocks[bisect_left(blocks, (block.size, block.address))]
        del self._blocks[block.address]
        if block.is_split:
            self._count("inactive_split_bytes", block.pool, -block.size)

    def _count(self, name: str, pool: str, amount: int) -> None:
        self.stats[f"{name}.all"].add(amount)
        self.stats[f"{name}.{pool}_pool"].add(amount)


def replay(events, allocator: CachingAllocator) -> CachingAllocator:
    """Feed the events of a trace, pairs of (something with a `size`, made or released), to an allocator.

    Raises
    ------
    OutOfMemory
        At the first request that the allocator's capacity cannot meet.
    """
    blocks = {}
    for allocation, made in events:
        if made:
            blocks[allocation] = allocator.malloc(allocation.size)
        else:
            allocator.free(blocks.pop(allocation))
    return allocator


def round_size(requested: int) -> int:
    """A request in bytes as the allocator sees it: a multiple of 512."""
    return _ceil(max(requested, 1), ROUND)


def _ceil(size: int, step: int) -> int:
    return -(-size // step) * step
