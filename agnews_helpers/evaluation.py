"""How good is the classifier, and how far to trust it: F1, mistakes, calibration. Notebooks 04 and 06."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from .model import class_names, label_mapping
from .plumbing.errors import InvalidValue
from .plumbing.storage import write_json
from .prediction import predict_logits
from .recipe import LABELS, Recipe


@dataclass(frozen=True)
class Report:
    """What `evaluate` found.

    accuracy : share of right answers; interval : its 95 % Wilson score interval, as (low, high).
    macro_f1 : F1 averaged over the classes that occur, all alike. loss : mean cross-entropy in nats.
    per_class : DataFrame, precision, recall, F1 and rows of each class.
    confusion : DataFrame of counts, true class down, predicted class across.
    answers : DataFrame, one line per row: true and predicted class, confidence (probability of the answer),
    p_true (that of the true class), loss, text.
    """

    rows: int
    accuracy: float
    interval: tuple[float, float]
    macro_f1: float
    loss: float
    per_class: pd.DataFrame
    confusion: pd.DataFrame
    answers: pd.DataFrame

    @property
    def worst(self) -> pd.DataFrame:
        """The wrong answers by loss, the largest first."""
        wrong = self.answers["true"] != self.answers["predicted"]
        return self.answers[wrong].sort_values("loss", ascending=False, kind="stable")

    def __str__(self) -> str:
        low, high = self.interval
        share = f"accuracy {self.accuracy:.1%} (95 % interval {low:.1%} to {high:.1%}, {self.rows:,} rows)"
        return f"{share}, macro-F1 {self.macro_f1:.3f}, loss {self.loss:.3f}"

    def to_dict(self) -> dict:
        """The figures without the texts, for a JSON file."""
        figures = {
            name: getattr(self, name)
            for name in ("rows", "accuracy", "interval", "macro_f1", "loss")
        }
        per_class, confusion = (
            self.per_class.to_dict("index"),
            self.confusion.values.tolist(),
        )
        return figures | {
            "interval": list(self.interval),
            "per_class": per_class,
            "confusion": confusion,
        }

    def save(self, path: str | Path) -> None:
        """Write `to_dict()` as JSON. May raise SaveError."""
        write_json(Path(path), self.to_dict())


def evaluate(model, rows, recipe: Recipe) -> Report:
    """Score `model` on tokenized rows (a split of `tokenize`'s result, with ``label`` and ``text``).

    The classes are called what the model calls them, in its ``config.id2label``; those of the data are
    found by their names. InvalidValue where the data has others.
    """
    labels = np.asarray(label_mapping(model, rows))[rows["label"][:]]
    logits = predict_logits(model, rows, recipe).numpy()
    return score(logits, labels, rows["text"][:], class_names(model))


def score(
    logits: np.ndarray,
    labels: np.ndarray,
    texts: list[str],
    names: Sequence[str] = LABELS,
) -> Report:
    """A `Report` from logits of shape [rows, classes] (or log-probabilities) and true labels of shape [rows].

    `names` has what each class is called, in the order of the logits; by default AG News' four.
    """
    from scipy.special import log_softmax
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    classes, called = range(len(names)), np.asarray(names)
    log_p, predicted = log_softmax(logits, axis=-1), logits.argmax(-1)
    losses = -log_p[np.arange(len(labels)), labels]
    right = int((predicted == labels).sum())
    columns = {
        "true": called[labels],
        "predicted": called[predicted],
        "confidence": np.exp(log_p.max(-1)),
    }
    columns |= {"p_true": np.exp(-losses), "loss": losses, "text": texts}
    figures = precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=0
    )
    table = dict(zip(("precision", "recall", "f1", "rows"), figures))
    counts = confusion_matrix(labels, predicted, labels=classes)
    return Report(
        rows=len(labels),
        accuracy=right / len(labels),
        interval=wilson(right, len(labels)),
        macro_f1=float(table["f1"][counts.sum(0) + counts.sum(1) > 0].mean()),
        loss=float(losses.mean()),
        per_class=pd.DataFrame(table, pd.Index(names, name="class")),
        confusion=pd.DataFrame(
            counts, pd.Index(names, name="true"), pd.Index(names, name="predicted")
        ),
        answers=pd.DataFrame(columns),
    )


def wilson(right: int, rows: int) -> tuple[float, float]:
    """Wilson's 95 % score interval (1927) of a share: it stays inside 0 to 1 and holds for few rows, too."""
    from scipy.stats import binomtest  # SciPy comes with scikit-learn

    return tuple(
        map(float, binomtest(right, rows).proportion_ci(0.95, method="wilson"))
    )


def calibration(answers: pd.DataFrame, bins: int = 10) -> pd.DataFrame:
    """Does 80 % mean 80 %? The answers by confidence in `bins` equally filled groups, least sure first.

    A line per group: ``rows``, mean ``confidence``, ``accuracy``, its Wilson interval ``low``, ``high``.
    ValueError for fewer answers than groups.
    """
    if not 1 <= bins <= len(answers):
        raise InvalidValue(
            f"bins is {bins}; it must be from 1 to {len(answers)}, the number of answers."
        )
    groups = []
    sure, right = (
        answers["confidence"].to_numpy(),
        (answers["true"] == answers["predicted"]).to_numpy(),
    )
    for part in np.array_split(np.argsort(sure, kind="stable"), bins):
        rows, hits = len(part), int(right[part].sum())
        groups.append((rows, sure[part].mean(), hits / rows, *wilson(hits, rows)))
    return pd.DataFrame(
        groups, columns=["rows", "confidence", "accuracy", "low", "high"]
    )


def calibration_error(groups: pd.DataFrame) -> float:
    """Expected calibration error (Naeini et al., 2015): mean distance from confidence to accuracy."""
    return float(
        np.average(
            (groups["accuracy"] - groups["confidence"]).abs(), weights=groups["rows"]
        )
    )
