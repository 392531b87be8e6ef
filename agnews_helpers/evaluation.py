"""How good is the classifier, and how far to trust it: accuracy, F1, confusions, mistakes, calibration. Notebooks 04 and 06."""
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from .prediction import predict_logits
from .recipe import LABELS, Recipe


@dataclass(frozen=True)
class Report:
    """What `evaluate` found.

    accuracy : share of right answers; interval : its 95 % Wilson score interval, as (low, high).
    macro_f1 : F1 averaged over the classes, each counting the same. loss : mean cross-entropy in nats.
    per_class : DataFrame, precision, recall, F1 and rows of each class.
    confusion : DataFrame of counts, true class down, predicted class across.
    answers : DataFrame, one line a row: true and predicted class, confidence (the probability of the answer),
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
        """The wrong answers by loss, the surest mistake first."""
        return self.answers[self.answers["true"] != self.answers["predicted"]].sort_values("loss", ascending=False, kind="stable")

    def __str__(self) -> str:
        low, high = self.interval
        return (f"accuracy {self.accuracy:.1%} (95 % interval {low:.1%} to {high:.1%}, {self.rows:,} rows), "
                f"macro-F1 {self.macro_f1:.3f}, loss {self.loss:.3f}")

    def to_dict(self) -> dict:
        """The figures without the texts, for a JSON file."""
        return {"rows": self.rows, "accuracy": self.accuracy, "interval": list(self.interval), "macro_f1": self.macro_f1,
                "loss": self.loss, "per_class": self.per_class.to_dict("index"), "confusion": self.confusion.values.tolist()}

    def save(self, path: str | Path) -> None:
        """Write `to_dict()` as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2), encoding="utf-8")


def evaluate(model, rows, recipe: Recipe) -> Report:
    """Score `model` on tokenized rows (a split of `tokenize`'s result, with ``label`` and ``text``)."""
    return score(predict_logits(model, rows, recipe).numpy(), np.asarray(rows["label"][:]), rows["text"][:])


def score(logits: np.ndarray, labels: np.ndarray, texts: list[str]) -> Report:
    """A `Report` from logits of shape [rows, 4] (or log-probabilities) and true labels of shape [rows]."""
    from scipy.special import log_softmax
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    classes = range(len(LABELS))
    log_p = log_softmax(logits, axis=-1)
    predicted, losses = logits.argmax(-1), -log_p[np.arange(len(labels)), labels]
    right = int((predicted == labels).sum())
    precision, recall, f1, support = precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0)
    answers = pd.DataFrame({
        "true": [LABELS[label] for label in labels],
        "predicted": [LABELS[label] for label in predicted],
        "confidence": np.exp(log_p.max(-1)),
        "p_true": np.exp(-losses),
        "loss": losses,
        "text": texts})
    names = pd.Index(LABELS, name="class")
    return Report(
        rows=len(labels), accuracy=right / len(labels), interval=wilson(right, len(labels)),
        macro_f1=float(f1.mean()), loss=float(losses.mean()),
        per_class=pd.DataFrame({"precision": precision, "recall": recall, "f1": f1, "rows": support}, index=names),
        confusion=pd.DataFrame(confusion_matrix(labels, predicted, labels=classes),
                               index=pd.Index(LABELS, name="true"), columns=pd.Index(LABELS, name="predicted")),
        answers=answers)


def wilson(right: int, rows: int) -> tuple[float, float]:
    """Wilson's 95 % score interval (1927) of a share: it stays inside 0..1 and holds for small samples too."""
    from scipy.stats import binomtest  # SciPy comes with scikit-learn

    interval = binomtest(right, rows).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def calibration(answers: pd.DataFrame, bins: int = 10) -> pd.DataFrame:
    """Does 80 % mean 80 %? The answers by confidence in `bins` equally filled groups, the least sure first.

    Returns
    -------
    pandas.DataFrame
        A line a group: ``rows``, mean ``confidence``, ``accuracy``, and its Wilson interval ``low``, ``high``.

    Raises
    ------
    ValueError
        For fewer answers than groups.
    """
    if not 1 <= bins <= len(answers):
        raise ValueError(f"bins is {bins}; it must be from 1 to {len(answers)}, the number of answers.")
    groups = []
    for part in np.array_split(np.argsort(answers["confidence"].to_numpy(), kind="stable"), bins):
        group = answers.iloc[part]
        right = int((group["true"] == group["predicted"]).sum())
        low, high = wilson(right, len(group))
        groups.append({"rows": len(group), "confidence": group["confidence"].mean(), "accuracy": right / len(group), "low": low, "high": high})
    return pd.DataFrame(groups)


def calibration_error(groups: pd.DataFrame) -> float:
    """Expected calibration error: how far accuracy lies from confidence, averaged over the rows (Naeini et al., 2015)."""
    return float(np.average((groups["accuracy"] - groups["confidence"]).abs(), weights=groups["rows"]))
