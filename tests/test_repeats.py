"""The near repeats of `benchmarks/near_repeats.py`, which the notebooks teach."""

from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import near_repeats as benchmark
from benchmarks.near_repeats import ALIKE, near_repeats, plain

STORY = (
    "a cat sat on the mat and saw nine other cats who all sat on other mats in the "
    "same long hall today"
)


def words(text):
    return set(plain(text).split())


def by_hand(train, test):
    """Compare every text with every other."""
    pairs = []
    for i, text in enumerate(test):
        similarities = [
            (len(words(text) & words(other)) / len(words(text) | words(other)), -j)
            for j, other in enumerate(train)
            if words(text) | words(other) and text != other
        ]
        if similarities and max(similarities)[0] >= ALIKE:
            pairs.append((i, -max(similarities)[1]))
    return pairs


TEXTS = st.lists(
    st.lists(st.sampled_from("abcdefg"), max_size=12).map(" ".join), max_size=12
)
CHANGED = st.lists(st.sets(st.integers(0, 19), max_size=4), max_size=8).map(
    lambda cuts: [
        " ".join(word for i, word in enumerate(STORY.split()) if i not in cut)
        for cut in cuts
    ]
)


@settings(max_examples=60, deadline=None)
@given(TEXTS | CHANGED, TEXTS | CHANGED)
def test_the_product_finds_what_comparing_all_finds(train, test):
    train = [*train, "words"]
    assert near_repeats(train, test) == by_hand(train, test)


def test_exactly_four_fifths_are_alike_and_less_is_not():
    assert near_repeats(["a b c d"], ["a b c d e"]) == [(0, 0)]
    assert near_repeats(["a b c d e f g h x"], ["a b c d e f g h y"]) == [(0, 0)]
    assert near_repeats(["a b c d e f g x"], ["a b c d e f g y"]) == []  # 7 of 9


def test_sources_and_capital_letters_do_not_count_and_equal_texts_do_not():
    assert words("Oil RISES (Reuters) again (AP)") == {"oil", "rises", "again"}
    assert near_repeats(["Oil rises (AP)"], ["OIL rises (Reuters)"]) == [(0, 0)]
    assert near_repeats([STORY], [STORY]) == []


def test_the_nearest_is_taken_and_of_equals_the_first():
    train = [STORY + " x y", STORY + " x", STORY + " y"]
    assert near_repeats(train, [STORY]) == [(0, 1)]


def test_the_size_of_a_block_decides_nothing(monkeypatch):
    test = [f"{STORY} {i}" for i in range(7)]
    whole = near_repeats([STORY, STORY + " 3 4"], test)
    monkeypatch.setattr(benchmark, "BLOCK", 2)
    assert near_repeats([STORY, STORY + " 3 4"], test) == whole
    assert [i for i, _ in whole] == list(range(7))
