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
    "kind, count",
    [("killed", 4), ("signal", 2), ("two presses of stop", 2), ("full disk", 2)],
)
@pytest.mark.slow
def test_processes_that_end_at_a_random_moment(kind, count, long):
    assert_nothing_lost(faults.disturbed(long, kind, count, random.Random(kind)), count)


@pytest.mark.parametrize("kind", ["byte flipped", "file cut off"])
@pytest.mark.slow
def test_checkpoints_that_are_damaged_at_a_random_place(kind, short):
    assert_nothing_lost(faults.damaged(short, kind, 8, random.Random(kind)), 8)


@pytest.mark.parametrize("kind", ["out of memory", "out of memory between two parts"])
@pytest.mark.slow
def test_steps_that_run_out_of_memory(kind, short):
    assert_nothing_lost(faults.out_of_memory(short, kind, 6, random.Random(0)), 6)


@pytest.mark.parametrize("kind", faults.SPOIL)
@pytest.mark.slow
def test_folders_in_which_files_are_forged_or_foreign(kind, short):
    result = faults.spoiled(short, kind, 8, random.Random(kind))
    assert result.tried == result.survived + result.refused == 8
    assert result.damage == result.tracebacks == result.weights_different == 0


@pytest.mark.slow
def test_folders_that_are_renamed_under_a_run(short):
    result = faults.renamed(short, "folder renamed", 4, random.Random(0))
    assert result.refused == result.survived == 4 and result.runs > 4
    assert result.tracebacks == result.weights_different == 0


@pytest.mark.slow
def test_no_bit_of_a_record_makes_silently_another_run(short):
    for counts in faults.sweep_bits(short, every=101).values():
        assert sum(counts.values()) > 3 * 80
        assert not any("silently" in outcome for outcome in counts)
        assert counts["train: set aside and said"] > 80


def test_the_sweep_sees_another_run(short, monkeypatch):
    """If nothing compares the checksum."""

    def unchecked(path):
        # A name that was flipped is as good as missing.
        names = ("format", "run", "identity", "recipe", "finished", "files")
        return {name: {} for name in names} | faults.storage.read_json(path)

    monkeypatch.setattr(faults.storage, "read_record", unchecked)
    for counts in faults.sweep_bits(short, every=101).values():
        assert counts["evaluate, classify: silently another"] > 5


def test_the_judge_sees_a_file_that_is_gone_and_one_that_was_changed(short):
    bases = faults.Bases(short)
    for spoil in (lambda path: path.unlink(), lambda path: path.write_bytes(b"other")):
        with bases.copied("finished") as folder:
            foreign = faults._foreign(folder.parent)
            spoil(folder.parent / "victims" / "known.txt")
            spoil(folder / "checkpoints" / "my.txt")
            (folder / "thesis.txt").rename(folder / "thesis.txt.set-aside-2")
            there = [faults._is_there(folder.parent, *item) for item in foreign.items()]
            assert sorted(there) == [False, False, True]


def test_the_judge_sees_a_lost_row_and_another_weight(short, tmp_path):
    """The campaign itself must be able to fail."""
    recipe = short.recipe.replace(seed=1)
    with faults.quiet(), faults.logged(tmp_path):
        faults.train(faults.load_model(recipe), short.tokens, recipe, tmp_path)
    result = faults.Result("another run")
    short.judge(tmp_path, result)
    assert result.weights_different == 1 and result.rows_lost > 0


# Files that another program holds, as on Windows


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [2, 60])
def test_files_that_another_program_holds(seconds, short):
    counts = faults.sweep_held(short, seconds, every=211)
    assert counts["operations"] > 2
    assert counts["went_on"] + counts["told"] == counts["operations"]
    assert counts["told"] == 0 or seconds == 60
    assert not counts["lost"] + counts["damage"] + counts["weights_different"]


@pytest.mark.slow
def test_the_sweep_sees_a_run_that_does_not_wait(short, monkeypatch):
    monkeypatch.setattr("tests.windows_shim.WAITS", 0)
    counts = faults.sweep_held(short, 0.2, every=211)
    assert 0 < counts["told"] + counts["unclear"] <= counts["operations"]
