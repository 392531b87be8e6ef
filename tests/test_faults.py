"""The fault campaign in short; ``python benchmarks/faults.py`` is the long one."""

import random

import pytest

from benchmarks import faults

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    with faults.quiet():
        return faults.SmallRun(tmp_path_factory.mktemp("long"))


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    with faults.quiet():
        return faults.SmallRun(tmp_path_factory.mktemp("short"), train_rows=44)


def assert_nothing_lost(result, tried):
    assert result.tried >= tried and result.survived == result.tried and result.runs
    assert result.rows_lost == 0 and result.weights_different == 0


@pytest.mark.parametrize(
    "kind, count", [("killed", 4), ("SIGTERM or Ctrl-C", 2), ("full disk", 2)]
)
@pytest.mark.slow
def test_processes_that_end_at_a_random_moment(kind, count, long):
    assert_nothing_lost(faults.disturbed(long, kind, count, random.Random(kind)), count)


@pytest.mark.parametrize("kind", ["byte flipped", "file cut off"])
@pytest.mark.slow
def test_checkpoints_that_are_damaged_at_a_random_place(kind, short):
    assert_nothing_lost(faults.damaged(short, kind, 8, random.Random(kind)), 8)


@pytest.mark.slow
def test_steps_that_run_out_of_memory(short):
    assert_nothing_lost(faults.out_of_memory(short, 6, random.Random(0)), 6)


def test_the_judge_sees_a_lost_row_and_another_weight(short, tmp_path):
    """The campaign itself must be able to fail."""
    recipe = short.recipe.replace(seed=1)
    with faults.quiet(), faults.logged(tmp_path):
        faults.train(faults.load_model(recipe), short.tokens, recipe, tmp_path)
    result = faults.Result("another run")
    short.judge(tmp_path, result)
    assert result.weights_different == 1 and result.rows_lost > 0
