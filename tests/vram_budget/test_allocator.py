import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vram_budget.allocator import (
    LARGE_BUFFER,
    MIB,
    SMALL_SIZE,
    CachingAllocator,
    OutOfMemory,
)

# hand-worked cases, each from one rule of the real allocator


@pytest.mark.parametrize(
    "requested, size",
    [(1, 512), (512, 512), (513, 1024), (MIB, MIB), (MIB + 1, MIB + 512)],
)
def test_sizes_are_multiples_of_512(requested, size):
    assert CachingAllocator().malloc(requested).size == size


@pytest.mark.parametrize(
    "requested, segment",
    [
        (1, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (10 * MIB + 1, 12 * MIB),
        (21 * MIB, 22 * MIB),
    ],
)
def test_what_a_request_takes_from_cuda(requested, segment):
    allocator = CachingAllocator()
    allocator.malloc(requested)
    assert allocator.reserved == segment and list(allocator.segments.values()) == [
        segment
    ]


def test_small_blocks_share_a_segment():
    allocator = CachingAllocator()
    blocks = [
        allocator.malloc(1000) for _ in range(2048)
    ]  # 1,024 bytes each: two MiB, exactly
    assert allocator.reserved == 2 * MIB and allocator.allocated == 2 * MIB
    allocator.malloc(1)
    assert allocator.reserved == 4 * MIB
    assert [block.address for block in blocks[:3]] == [
        0,
        1024,
        2048,
    ]  # the front is handed out


def test_a_large_block_is_split_only_above_one_mib_of_rest():
    allocator = CachingAllocator()
    allocator.free(allocator.malloc(12 * MIB))
    assert (
        allocator.malloc(11 * MIB).size == 12 * MIB
    )  # rest of exactly 1 MiB: not split, and all of it counts
    assert allocator.allocated == 12 * MIB
    again = CachingAllocator()
    again.free(again.malloc(12 * MIB))
    assert again.malloc(11 * MIB - 512).size == 11 * MIB - 512


def test_best_fit_then_lowest_address():
    allocator = CachingAllocator()
    sizes = (14, 12, 12, 30)
    blocks = [allocator.malloc(size * MIB) for size in sizes]
    for block in blocks:
        allocator.free(block)
    assert (
        allocator.malloc(12 * MIB).address == 14 * MIB
    )  # the first of the two that fit exactly
    assert allocator.malloc(12 * MIB).address == 26 * MIB
    assert allocator.malloc(12 * MIB).address == 0  # then the next larger one
    assert allocator.reserved == sum(sizes) * MIB


def test_the_pools_do_not_lend_to_each_other():
    allocator = CachingAllocator()
    allocator.free(allocator.malloc(19 * MIB))
    allocator.malloc(SMALL_SIZE)
    assert (
        list(allocator.segments.values()) == [20 * MIB, 2 * MIB]
        and allocator.reserved == 22 * MIB
    )


def test_neighbours_merge_in_any_order():
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 1, 0)):
        allocator = CachingAllocator()
        blocks = [allocator.malloc(5 * MIB) for _ in range(3)]  # one segment of 20 MiB
        assert allocator.reserved == LARGE_BUFFER
        for i in order:
            allocator.free(blocks[i])
        assert allocator.cached["large"] == [(20 * MIB, 0)]


@pytest.mark.parametrize("first, second", [(0, 1), (1, 0)])
def test_neighbours_in_different_segments_stay_apart(first, second):
    """Segments lie beside each other, but CUDA gives them back one by one."""
    allocator = CachingAllocator()
    blocks = [allocator.malloc(size * MIB) for size in (12, 14)]
    allocator.free(blocks[first])
    allocator.free(blocks[second])
    assert allocator.cached["large"] == [(12 * MIB, 0), (14 * MIB, 12 * MIB)]
    assert allocator.malloc(26 * MIB).address == 26 * MIB  # a new segment
    assert allocator.empty_cache() == 26 * MIB


def test_a_full_card_gives_back_whole_segments_first():
    allocator = CachingAllocator(capacity=40 * MIB)
    allocator.free(allocator.malloc(20 * MIB))
    kept = allocator.malloc(15 * MIB)  # takes the cached 20 MiB, splits 5 off
    allocator.free(allocator.malloc(12 * MIB))
    assert allocator.reserved == 32 * MIB
    allocator.malloc(
        20 * MIB
    )  # 32 + 20 > 40: the free 12 goes back, the split 20 stays
    assert kept.allocated and allocator.reserved == 40 * MIB
    assert sorted(allocator.segments.values()) == [20 * MIB, 20 * MIB]


def test_out_of_memory_says_what_there_was():
    allocator = CachingAllocator(capacity=30 * MIB)
    allocator.malloc(19 * MIB)
    with pytest.raises(
        OutOfMemory,
        match=r"tried to allocate 12.0 MiB: 30 MiB in all, 20 allocated, "
        "0 reserved but unallocated",
    ):
        allocator.malloc(12 * MIB)
    allocator.malloc(10 * MIB)  # what fits still does


def test_peaks_stay_and_empty_cache_does_not_touch_live_blocks():
    allocator = CachingAllocator()
    live, gone = allocator.malloc(12 * MIB), allocator.malloc(14 * MIB)
    allocator.free(gone)
    assert allocator.empty_cache() == 14 * MIB
    assert (allocator.reserved, allocator.max_reserved) == (12 * MIB, 26 * MIB)
    assert (allocator.allocated, allocator.max_allocated) == (12 * MIB, 26 * MIB)
    assert live.allocated
    first, second = allocator.malloc(5 * MIB), allocator.malloc(5 * MIB)
    allocator.free(first)  # the beginning of a segment that is in use
    assert allocator.empty_cache() == 0 and second.allocated
    allocator.free(second)
    allocator.empty_cache()
    allocator.malloc(1)
    assert (allocator.reserved, allocator.max_reserved) == (14 * MIB, 32 * MIB)
    assert (allocator.allocated, allocator.max_allocated) == (12 * MIB + 512, 26 * MIB)


def test_free_twice_and_nothing_at_all():
    allocator = CachingAllocator()
    block = allocator.malloc(1)
    allocator.free(block)
    with pytest.raises(ValueError, match="free already"):
        allocator.free(block)
    with pytest.raises(ValueError, match="0 bytes"):
        allocator.malloc(0)


# what holds after any sequence of requests

sizes = st.one_of(
    st.integers(1, 4096), st.integers(1, 3 * MIB), st.integers(MIB, 64 * MIB)
)
steps = st.lists(st.one_of(sizes, st.integers(-30, -1), st.just(None)), max_size=60)


@settings(max_examples=300, deadline=None)
@example([12 * MIB, 14 * MIB, -1, -1], None)  # two segments, the second freed first
@given(steps, st.one_of(st.none(), st.integers(8 * MIB, 200 * MIB)))
def test_invariants(steps, capacity):
    allocator, live = CachingAllocator(capacity), []
    for step in steps:
        if step is None:
            allocator.empty_cache()
        elif step > 0:
            try:
                live.append(allocator.malloc(step))
            except OutOfMemory:
                assert capacity is not None
        elif live:
            allocator.free(live.pop(step % len(live)))
        check(allocator, live)


def check(allocator, live):
    free = [
        (address, size, pool)
        for pool, pieces in allocator.cached.items()
        for size, address in pieces
    ]
    pieces = sorted(
        [
            *((b.address, b.size, b.pool, True) for b in live),
            *((*piece, False) for piece in free),
        ]
    )
    ends = {start: start + size for start, size in allocator.segments.items()}
    covered, last = 0, None
    for piece in pieces:
        address, size, pool, taken = piece
        assert size > 0 and size % 512 == 0
        own = max(start for start in ends if start <= address)
        assert address + size <= ends[own]  # no piece reaches into another segment
        if (
            address not in allocator.segments
        ):  # then it goes on where the one before ends
            assert last is not None and last[0] + last[1] == address and last[2] == pool
            assert taken or last[3]  # two free ones would have been merged
        else:
            assert last is None or last[0] + last[1] <= address  # no overlap
        covered, last = covered + size, piece
    assert (
        covered == allocator.reserved == sum(allocator.segments.values())
    )  # segments are covered
    assert allocator.allocated == sum(b.size for b in live) <= allocator.reserved
    assert (
        allocator.allocated <= allocator.max_allocated
        and allocator.reserved <= allocator.max_reserved
    )
    assert allocator.capacity is None or allocator.reserved <= allocator.capacity
    assert all(pieces == sorted(pieces) for pieces in allocator.cached.values())


# against the real allocator


def replay_snapshot(trace):
    """Feed one device's trace of `torch.cuda.memory._snapshot()` to the model.

    Allocations that were made before it are unknown to it.
    """
    allocator, live = CachingAllocator(), {}
    for entry in trace:
        if entry["action"] == "alloc":
            live[entry["addr"]] = allocator.malloc(entry["size"])
        elif entry["action"] == "free_completed" and entry["addr"] in live:
            allocator.free(live.pop(entry["addr"]))
    return allocator


def test_a_snapshot_made_by_hand():
    trace = [
        {"action": "segment_alloc", "addr": 100, "size": 20 * MIB},
        {"action": "alloc", "addr": 100, "size": 3 * MIB},
        {"action": "alloc", "addr": 200, "size": 512},
        {"action": "free_requested", "addr": 100, "size": 3 * MIB},
        {"action": "free_completed", "addr": 100, "size": 3 * MIB},
        {"action": "free_completed", "addr": 999, "size": 1},
        {"action": "alloc", "addr": 100, "size": 12 * MIB},
    ]
    allocator = replay_snapshot(trace)
    assert allocator.allocated == 12 * MIB + 512 and allocator.reserved == 22 * MIB


@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs a CUDA device, whose own allocator is the reference",
)
def test_a_real_snapshot_is_replayed_to_the_byte():
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    torch.cuda.memory._record_memory_history()
    layers = [torch.nn.Linear(700, 900, device="cuda") for _ in range(8)]
    for rows in (64, 4096, 300):
        sum(
            layer(torch.ones(rows, 700, device="cuda")).square().mean()
            for layer in layers
        ).backward()
    trace = torch.cuda.memory._snapshot()["device_traces"][0]
    torch.cuda.memory._record_memory_history(enabled=None)
    assert replay_snapshot(trace).reserved == torch.cuda.memory_reserved() - before
