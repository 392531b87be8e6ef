"""How several processes share a batch; test_parallel.py starts real ones."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState

from agnews_helpers import InvalidValue
from agnews_helpers.plumbing import processes
from agnews_helpers.plumbing.processes import (
    any_process,
    from_each_process,
    from_main,
    is_main,
    make_accelerator,
    my_share,
    over_processes,
    world_size,
)


def share_of(monkeypatch, batch, rank, world):
    """What `my_share` returns in one of several processes."""
    state = SimpleNamespace(
        process_index=rank, num_processes=world, device=torch.device("cpu")
    )
    with monkeypatch.context() as patch:
        patch.setattr(processes, "process_state", lambda: state)
        return my_share(batch)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_the_shares_of_a_batch_add_up_to_it(world, monkeypatch):
    """Each row once, and the mean of the processes' losses is that of the batch."""
    for rows in range(1, 18):
        logits = torch.arange(4.0 * rows).reshape(rows, 4).sin()
        batch = {"input_ids": logits, "labels": torch.arange(rows) % 4}
        shares = [share_of(monkeypatch, batch, rank, world) for rank in range(world)]
        seen = [
            row.tolist()
            for share in shares
            for row, label in zip(share["input_ids"], share["labels"])
            if label != processes.IGNORED_LABEL
        ]
        assert sorted(seen) == sorted(logits.tolist())
        assert all(len(share["labels"]) for share in shares), "a process without rows"
        losses = [
            F.cross_entropy(share["input_ids"], share["labels"], reduction="sum")
            / (rows / world)
            for share in shares
        ]
        whole = F.cross_entropy(logits, batch["labels"])
        mean = sum(loss.item() for loss in losses) / world
        assert mean == pytest.approx(whole.item(), abs=1e-6)


def test_one_process_has_the_whole_batch_and_asks_only_itself():
    batch = {"input_ids": torch.ones(3, 2), "labels": torch.arange(3)}
    assert all(torch.equal(my_share(batch)[name], batch[name]) for name in batch)
    assert is_main() and world_size() == 1
    assert any_process(True) is True and any_process(False) is False
    assert from_main(("a", None)) == ("a", None)
    assert from_each_process([1, 2]) == [[1, 2]]
    assert over_processes(torch.tensor(3.0), "mean").item() == 3


@pytest.mark.parametrize(
    "message, advice", [("CUDA error: out of memory", ""), ("no rank 1", "WORLD_SIZE")]
)
def test_a_card_too_full_to_begin_with_is_not_a_missing_process(
    message, advice, monkeypatch
):
    def fails(**_):
        raise RuntimeError(message)

    monkeypatch.setattr(processes, "PartialState", fails)
    with pytest.raises(Exception, match=message) as error:
        processes.process_state()
    assert isinstance(error.value, InvalidValue) == bool(advice)
    assert advice in str(error.value)


def test_any_of_several_processes_is_enough(monkeypatch):
    """With a stand-in for the sum over two processes."""
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    for other in (0.0, 1.0):
        monkeypatch.setattr(
            processes, "reduce", lambda tensor, _, other=other: tensor + other
        )
        assert any_process(False) is bool(other) and any_process(True) is True


def test_a_notebook_trains_again_in_another_precision():
    for precision, mixed in (("fp32", "no"), ("bf16", "bf16"), ("fp32", "no")):
        assert make_accelerator(precision).mixed_precision == mixed
        assert AcceleratorState().mixed_precision == mixed
