"""All notebooks, top to bottom, in every size and with everybody's data.

Those marked ``rehearsal`` are run by ``make rehearse`` only.
"""

import re

import pytest

from tests.rehearsal.rehearse import other_head, own_texts, run, stand_in_hub

pytestmark = pytest.mark.slow
NOTEBOOKS = 10


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A Hub with more rows than the windows of batches, and texts of every length."""
    with stand_in_hub(tmp_path_factory.mktemp("large"), 12_000, 800) as address:
        yield address


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    with stand_in_hub(tmp_path_factory.mktemp("small"), 400, 100) as address:
        yield address


def check(done):
    """Each notebook ran to its end."""
    print(done.stdout)  # shown if it fails
    lines = [line for line in done.stdout.splitlines() if re.match(r"\d\d_", line)]
    assert [line for line in lines if not line.endswith(" ok")] == []
    assert len(lines) == NOTEBOOKS and done.returncode == 0


@pytest.mark.parametrize("profile", ["full", "laptop"])
@pytest.mark.rehearsal
def test_as_many_rows_as_ag_news(profile, tmp_path):
    """The longest of all: it comes first, beside the others."""
    with stand_in_hub(tmp_path / "hub", 120_000, 7_600) as address:
        done = run(address, tmp_path, AGNEWS_PROFILE=profile)
    check(done)
    peak = re.search(r"peak memory ([\d.]+) GiB", done.stdout)[1]
    assert float(peak) <= 4


@pytest.mark.parametrize("profile", ["laptop", "full"])
def test_a_profile_that_needs_the_hub(profile, large, tmp_path):
    check(run(large, tmp_path, AGNEWS_PROFILE=profile))


@pytest.mark.parametrize("classes", [2, 3, 6, 20])
@pytest.mark.rehearsal
def test_texts_of_your_own(classes, small, tmp_path):
    folder = own_texts(tmp_path / "texts", classes)
    check(run(small, tmp_path, AGNEWS_PROFILE="laptop", AGNEWS_DATA=str(folder)))


@pytest.mark.rehearsal
def test_few_rows(small, tmp_path):
    few = {"AGNEWS_TRAIN_ROWS": "60", "AGNEWS_TEST_ROWS": "20"}
    check(run(small, tmp_path, AGNEWS_PROFILE="laptop", **few))


@pytest.mark.rehearsal
def test_a_model_with_another_head(small, tmp_path):
    folder = other_head(tmp_path / "model", classes=7)
    check(run(small, tmp_path, AGNEWS_PROFILE="laptop", AGNEWS_MODEL=str(folder)))


@pytest.mark.rehearsal
def test_every_cell_twice(small, tmp_path):
    check(run(small, tmp_path, "--twice", AGNEWS_PROFILE="laptop"))


@pytest.mark.rehearsal
def test_the_cells_after_a_stopped_run(small, tmp_path):
    """Nobody runs the cell again: the run stays as it is."""
    check(run(small, tmp_path, "--stop", AGNEWS_PROFILE="laptop"))


@pytest.mark.rehearsal
def test_stop_in_each_cell_that_trains(small, tmp_path):
    """The cell is run again, and all cells after it."""
    check(run(small, tmp_path, "--interrupt", AGNEWS_PROFILE="laptop"))
