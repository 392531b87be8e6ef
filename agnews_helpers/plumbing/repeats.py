"""The same story twice: texts that stand in two splits, or nearly so. Notebook 06."""

import re
import time
from collections import Counter, defaultdict
from itertools import takewhile

ALIKE = 0.8  # Jaccard: words in both, as a share of the words in either
MOST_ROWS = 200_000  # of all splits; more are not compared
SECONDS = 10.0  # after which only a part of the training rows has been looked at


def note_repeats(train: dict, test: dict) -> None:
    """Print how many test texts stand in train as well, and how many nearly do."""
    if shared := len({*train["text"]} & {*test["text"]}):
        print(
            f"note: {shared:,} texts stand in both train and test; a test score counts them as known."
        )
    if (rows := len(train["text"])) + len(test["text"]) > MOST_ROWS:
        return
    looked, pairs = near_repeats(train["text"], test["text"])
    part = f" (of {rows:,} training rows {looked:,} were compared, then {SECONDS:.0f} seconds were over)"
    if pairs or looked < rows:
        other = sum(
            test["label"][here] != train["label"][there] for here, there in pairs
        )
        found = f"{len(pairs):,} test rows have a near twin in train, {other:,} of them with another label"
        print(f"note: {found}{part if looked < rows else ''}.")


def words(text: str) -> frozenset[str]:
    """The words of a text in small letters, without sources in brackets such as (Reuters)."""
    return frozenset(re.findall(r"\w+", re.sub(r"\([^()]*\)", " ", text.lower())))


def near_repeats(
    train: list[str], test: list[str], seconds=SECONDS
) -> tuple[int, list[tuple[int, int]]]:
    """For each test text its nearest training text, if their words are `ALIKE`: (texts of train seen, pairs).

    An exact join by prefix filter (Chaudhuri, Ganti and Kaushik, ICDE 2006): two sets with that Jaccard share
    one of the rarest words that remain when `ALIKE` of each is left out. Equal texts are no near repeats.
    """
    end, sets = time.perf_counter() + seconds, [words(text) for text in test]
    count = Counter(word for found in sets for word in found)

    def prefix(found):
        rarest = sorted(found, key=lambda word: (count[word], word))
        return rarest[: len(rarest) - -(-len(rarest) * 4 // 5) + 1]

    index, best, looked = defaultdict(list), {}, 0
    for here, found in enumerate(sets):
        for word in prefix(found):
            index[word].append(here)
    for looked, text in enumerate(
        takewhile(lambda _: time.perf_counter() < end, train), 1
    ):
        theirs = words(text)
        for here in {i for word in prefix(theirs) for i in index.get(word, ())}:
            both = len(theirs & sets[here])
            share = both / (len(theirs) + len(sets[here]) - both)
            if (
                share >= ALIKE
                and share > best.get(here, (0,))[0]
                and test[here] != text
            ):
                best[here] = share, looked - 1
    return looked, sorted((here, there) for here, (_, there) in best.items())
