"""Made-up news in the shape of AG News: as many classes, as long, as untidy.

The words are drawn from the sample of this package, class by class, so that a model can
learn them; the sentences mean nothing.
"""

import csv

import numpy as np

from agnews_helpers.budgeting import TOKENS
from agnews_helpers.data import SAMPLE

# Of 40,000 training rows of AG News 0.9 % have over 128 tokens, 0.04 % over 256, and
# the longest has 358. `TOKENS` has the median of each twentieth.
LONG, LONGER, LONGEST = 140, 270, 356
TOKENS_PER_WORD = 1.25  # of the sample
AGENCIES = ("Reuters - ", "AP - ", "WASHINGTON (AFP) - ", "NewsWire.example - ")
SPOILED = ("#39;s", "quot;", "\\", "&lt;b&gt;", "#36;45")


def make_rows(n: int, seed: int, repeats_of: list[str] | None = None) -> dict:
    """Draw `n` rows.

    Parameters
    ----------
    n : int
        Number of rows; the classes are equally frequent.
    seed : int
        Equal seeds give equal rows.
    repeats_of : list of str, optional
        Texts of another split; one row in 200 is one of them.

    Returns
    -------
    dict
        ``text`` and ``label``, 0 to 3.
    """
    rng = np.random.default_rng(seed)
    words = _words_by_class()
    labels = rng.permutation(np.arange(n) % len(words))
    lengths = _lengths(n, rng)
    texts = []
    for label, length in zip(labels, lengths):
        # A third of the words could be of any class.
        own = rng.choice(words[label], length)
        other = rng.choice(words[rng.integers(len(words))], length)
        mixed = np.where(rng.random(length) < 2 / 3, own, other)
        texts.append(_untidy(" ".join(mixed), rng))
    for row in range(10, n, 200):
        texts[row] = (repeats_of or texts)[row // 2 % len(repeats_of or texts)]
    for row in range(20, n, 200):  # nearly a repeat, often with another label
        texts[row] = " ".join(texts[row - 10].split()[1:])
    return {"text": texts, "label": labels.tolist()}


def _words_by_class():
    """Return the words of the sample's training rows, by class, with repeats."""
    words = [[] for _ in range(4)]
    with (SAMPLE / "train.csv").open(encoding="utf-8", newline="") as file:
        for label, *parts in csv.reader(file):
            words[int(label) - 1] += " ".join(parts).split()
    return [np.array(of_class) for of_class in words]


def _lengths(n, rng):
    """Draw the number of words of each row, with the long tail of AG News."""
    tokens = rng.choice(TOKENS, n) + rng.integers(-2, 3, n)
    tail = rng.random(n)
    tokens[tail < 0.009] = LONG
    tokens[tail < 0.0004] = LONGER
    tokens[:3] = (LONG, LONGER, LONGEST)[:n]  # in every split, however small
    return (tokens / TOKENS_PER_WORD).astype(int)


def _untidy(text, rng):
    """Add what AG News has: an agency in front, leftovers of HTML, a backslash."""
    if rng.random() < 0.25:
        text = AGENCIES[rng.integers(len(AGENCIES))] + text
    if rng.random() < 0.3:
        text += " " + SPOILED[rng.integers(len(SPOILED))]
    return text
