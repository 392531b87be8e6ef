"""How good is the classifier: accuracy with its interval, F1, confusions, worst mistakes. Notebook 04."""
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
    worst : DataFrame of the wrong answers by loss, the surest mistake first.
    """

    rows: int
    accuracy: float
    interval: tuple[float, float]
    macro_f1: float
    loss: float
    per_class: pd.DataFrame
    confusion: pd.DataFrame
    worst: pd.DataFrame

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
    """A `Report` from logits of shape [rows, 4] (or log-probabilities) and true labels of shape [rows].

    The interval is Wilson's (1927), which stays inside 0..1 and holds for small samples too.
    """
    from scipy.special import log_softmax  # SciPy comes with scikit-learn
    from scipy.stats import binomtest
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    classes = range(len(LABELS))
    log_p = log_softmax(logits, axis=-1)
    predicted, losses = logits.argmax(-1), -log_p[np.arange(len(labels)), labels]
    right = int((predicted == labels).sum())
    interval = binomtest(right, len(labels)).proportion_ci(0.95, method="wilson")
    precision, recall, f1, support = precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0)
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-losses[wrong], kind="stable")]
    worst = pd.DataFrame({
        "row": wrong,
        "true": [LABELS[labels[i]] for i in wrong],
        "predicted": [LABELS[predicted[i]] for i in wrong],
        "p_true": np.exp(-losses[wrong]),
        "loss": losses[wrong],
        "text": [texts[i] for i in wrong]})
    names = pd.Index(LABELS, name="class")
    return Report(
        rows=len(labels), accuracy=right / len(labels), interval=(float(interval.low), float(interval.high)),
        macro_f1=float(f1.mean()), loss=float(losses.mean()),
        per_class=pd.DataFrame({"precision": precision, "recall": recall, "f1": f1, "rows": support}, index=names),
        confusion=pd.DataFrame(confusion_matrix(labels, predicted, labels=classes),
                               index=pd.Index(LABELS, name="true"), columns=pd.Index(LABELS, name="predicted")),
        worst=worst)
