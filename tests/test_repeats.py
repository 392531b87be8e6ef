import itertools
from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st

from agnews_helpers.plumbing import repeats
from agnews_helpers.plumbing.repeats import ALIKE, near_repeats, note_repeats, words

STORY = "a cat sat on the mat and saw nine other cats who all sat on other mats in the same long hall today"


def by_hand(train, test):
    """The join that compares every text with every other."""
    pairs = []
    for here, text in enumerate(test):
        shares = [
            (len(words(text) & words(other)) / len(words(text) | words(other)), -there)
            for there, other in enumerate(train)
            if words(text) | words(other) and text != other
        ]
        if shares and max(shares)[0] >= ALIKE:
            pairs.append((here, -max(shares)[1]))
    return len(train), pairs


TEXTS = st.lists(
    st.lists(st.sampled_from("abcdefg"), max_size=12).map(" ".join), max_size=12
)
CHANGED = st.lists(st.sets(st.integers(0, 19), max_size=4), max_size=8).map(
    lambda cuts: [
        " ".join(w for i, w in enumerate(STORY.split()) if i not in cut) for cut in cuts
    ]
)


@settings(max_examples=100, deadline=None)
@given(TEXTS | CHANGED, TEXTS | CHANGED)
def test_the_join_finds_what_comparing_all_finds(train, test):
    assert near_repeats(train, test) == by_hand(train, test)


def test_exactly_four_fifths_are_alike_and_less_is_not():
    assert near_repeats(["a b c d"], ["a b c d e"]) == (1, [(0, 0)])
    assert near_repeats(["a b c d e f g h x"], ["a b c d e f g h y"]) == (
        1,
        [(0, 0)],
    )  # 8 of 10
    assert near_repeats(["a b c d e f g x"], ["a b c d e f g y"]) == (1, [])  # 7 of 9


def test_sources_in_brackets_and_case_do_not_count_and_equal_texts_do_not():
    assert words("Oil RISES (Reuters) again (AP)") == {"oil", "rises", "again"}
    assert near_repeats(["Oil rises (AP)"], ["OIL rises (Reuters)"]) == (1, [(0, 0)])
    assert near_repeats([STORY], [STORY]) == (1, [])
    assert near_repeats(["!", "?"], ["?", ""]) == (2, [])


def test_the_nearest_is_taken_and_of_equals_the_first():
    assert near_repeats([STORY + " x y", STORY + " x", STORY + " y"], [STORY]) == (
        3,
        [(0, 1)],
    )


def rows(texts, label):
    return dict(text=texts, label=[label] * len(texts))


def test_what_is_printed(capsys):
    note_repeats(
        rows([STORY, "same"], 0), rows([STORY + " x", "same", "other words"], 1)
    )
    assert capsys.readouterr().out == (
        "note: 1 texts stand in both train and test; a test score counts them as known.\n"
        "note: 1 test rows have a near twin in train, 1 of them with another label.\n"
    )
    note_repeats(rows([STORY], 1), rows([STORY + " x"], 1))
    assert "1 test rows have a near twin in train, 0 of them" in capsys.readouterr().out
    note_repeats(rows(["one"], 1), rows(["two"], 1))
    assert capsys.readouterr().out == ""


def test_it_stops_in_time_and_says_so(monkeypatch, capsys):
    ticks = (
        itertools.count()
    )  # a clock that goes on by a second whenever it is looked at
    monkeypatch.setattr(
        repeats, "time", SimpleNamespace(perf_counter=lambda: next(ticks))
    )
    train, test = (
        [f"{STORY} {i}" for i in range(50)],
        [f"{STORY} {i} x" for i in range(3)],
    )
    assert near_repeats(train, test, seconds=2) == (1, [(0, 0), (1, 0), (2, 0)])
    note_repeats(rows(train, 0), rows(test, 1))
    found = "3 test rows have a near twin in train, 3 of them with another label"
    part = "(of 50 training rows 9 were compared, then 10 seconds were over)"
    assert capsys.readouterr().out == f"note: {found} {part}.\n"
    note_repeats(rows(train, 0), rows(["quite other words"], 1))
    assert (
        "0 test rows have a near twin" in (out := capsys.readouterr().out)
        and part in out
    )


def test_more_rows_than_can_be_compared_are_not(monkeypatch, capsys):
    monkeypatch.setattr(repeats, "MOST_ROWS", 2)
    note_repeats(rows([STORY, STORY], 0), rows([STORY + " x"], 1))
    assert capsys.readouterr().out == ""
