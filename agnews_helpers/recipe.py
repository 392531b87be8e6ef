"""Every number of the recipe. Notebook 01. Nothing here touches the network."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .plumbing.errors import InvalidValue, check_types

LABELS = ("World", "Sports", "Business", "Sci/Tech")
HUB_MODEL = "distilbert/distilbert-base-uncased"
HUB_DATA = "fancyzhx/ag_news"
PROFILE_NAMES = ("offline", "laptop", "full")


@dataclass(frozen=True)
class Recipe:
    """The recipe of the tutorial: DistilBERT, batches of 8, Adam at 2e-5, four epochs.

    A recipe cannot be changed; `replace` makes a changed copy.

    Parameters
    ----------
    profile : str
        The size: "offline", "laptop" or "full".
    model : str
        A Hub id, a folder written by save_pretrained, or "mini" (the offline model).
    data : str
        The Hub id fancyzhx/ag_news, a folder with a training file, a file, or "sample".
    label_column : str | None
        The name of the column of labels; None: found by data.load_data.
    text_columns : str | None
        The names of the columns of text, with commas between; None: found.
    train_rows : int | None
        Rows to draw at most, the same share from each class; None: all.
    test_rows : int | None
        The same for the test rows.
    validation_share : float
        Share of the training rows held out to choose the best epoch.
    max_length : int
        Tokens after which a text is cut; DistilBERT has 512 positions.
    padding : str
        "longest" pads to the longest row of the batch, "max_length" to max_length.
    group_by_length : bool
        Whether batches are made of rows of similar length.
    batch_size : int
        Rows per step: eight, because of the 4 GB of the GTX 1650 Ti (notebook 07).
    micro_batch_size : int | None
        Rows per forward/backward pass (gradient accumulation); None: the whole batch.
    gradient_checkpointing : bool
        Recompute activations in the backward pass instead of storing them.
    class_weights : str | None
        "balanced": rows of rare classes weigh more in the loss; None: all alike.
    learning_rate : float
        Adam's learning rate, as in datascience.stackexchange.com question 64583.
    epochs : int
        Passes over the training rows; 4 with batch 8 is in the grid of Turc et al.
        2019.
    precision : str
        "fp32" or "bf16"; GTX 16xx cards have no tensor cores: stay with fp32.
    seed : int
        Decides everything random: subset, split, new weights, batch order, dropout.

    Raises
    ------
    InvalidValue
        If a value is out of range or of the wrong type; names the field and what is
        allowed.
    """

    profile: str = "full"
    model: str = HUB_MODEL
    data: str = HUB_DATA
    label_column: str | None = None
    text_columns: str | None = None
    train_rows: int | None = None
    test_rows: int | None = None
    validation_share: float = 0.05
    max_length: int = 512
    padding: str = "longest"
    group_by_length: bool = True
    batch_size: int = 8
    micro_batch_size: int | None = None
    gradient_checkpointing: bool = False
    class_weights: str | None = None
    learning_rate: float = 2e-5
    epochs: int = 4
    precision: str = "fp32"
    seed: int = 42
    # why this profile was chosen; only for display, so not a field
    reason = "as given"

    def __post_init__(self):
        for name, kind in type(self).__annotations__.items():
            value, (is_allowed, allowed) = getattr(self, name), ALLOWED[name]
            right_type = isinstance(value, kind)
            right_type &= isinstance(value, bool) == (kind is bool)
            if not (right_type and (value is None or is_allowed(value))):
                raise InvalidValue(f"Recipe.{name} is {value!r}; it must be {allowed}.")

    @classmethod
    @check_types
    def from_dict(cls, values: dict) -> "Recipe":
        """Make a recipe from the values of its fields.

        Parameters
        ----------
        values : dict
            Field name -> value. Names that are no field today are left out.

        Returns
        -------
        Recipe

        Raises
        ------
        InvalidValue
            If a value is out of range.
        """
        names = cls.__annotations__.keys() & values.keys()
        return cls(**{name: values[name] for name in names})

    def to_dict(self, absolute_paths: bool = False) -> dict:
        """Return the fields as a dict.

        Parameters
        ----------
        absolute_paths : bool
            Whether folders are written as absolute paths, so that a run can be resumed
            from another working directory.

        Returns
        -------
        dict
        """
        values = asdict(self)
        for name in ("model", "data"):
            folder = Path(values[name]).expanduser()
            is_word = values[name] in ("mini", "sample")
            if absolute_paths and folder.exists() and not is_word:
                values[name] = str(folder.resolve())
        return values

    @property
    def pad_to(self) -> int | None:
        """Tokens to which every row is padded; None: to the longest of its batch."""
        return self.max_length if self.padding == "max_length" else None

    def replace(self, **changes: Any) -> "Recipe":
        """Return a copy with some fields changed, checked again.

        Parameters
        ----------
        **changes
            Field name -> new value.

        Returns
        -------
        Recipe

        Raises
        ------
        InvalidValue
            If a value is out of range.
        """
        return replace(self, **changes).with_reason(self.reason)

    def with_reason(self, reason: str) -> "Recipe":
        """Record why the profile was chosen (shown by `describe`).

        Parameters
        ----------
        reason : str
            The rest of a sentence.

        Returns
        -------
        Recipe
            This recipe.
        """
        object.__setattr__(self, "reason", reason)  # only the fields are frozen
        return self

    def describe(self) -> str:
        """Return three lines: the profile and why, model and data, the training.

        Returns
        -------
        str
        """
        rows = (self.train_rows, self.test_rows)
        train, test = ("all" if n is None else f"{n:,}" for n in rows)
        grouped = "grouped by length, " if self.group_by_length else ""
        return (
            f"profile    {self.profile} ({self.reason})\n"
            f"model      {self.model}; data {self.data}: {train} train rows, "
            f"{test} test rows\n"
            f"training   {self.epochs} epochs, batch size {self.batch_size} "
            f"({grouped}padded to {self.padding}), Adam {self.learning_rate:g}, "
            f"{self.precision}, seed {self.seed}"
        )


ROWS = (lambda n: n >= 4, "a whole number of rows from 4; by default all")
# For each field: a check, and the allowed values in words (also the --help text). None
# is checked by its type alone.
ALLOWED = {
    "profile": (
        lambda name: name in PROFILE_NAMES,
        f"one of {', '.join(PROFILE_NAMES)}",
    ),
    "model": (len, "a Hub id, the path of a folder, or 'mini'"),
    "data": (len, f"'{HUB_DATA}', the path of a folder or a file, or 'sample'"),
    "label_column": (
        len,
        "the name of the column of labels; by default it is found",
    ),
    "text_columns": (
        len,
        "names of columns, commas between; by default found",
    ),
    "train_rows": ROWS,
    "test_rows": ROWS,
    "validation_share": (
        lambda x: 0 < x < 1,
        "a share of the training rows, between 0 and 1, both excluded",
    ),
    "max_length": (
        lambda n: 3 <= n <= 8192,
        "a number of tokens from 3 to 8192; DistilBERT takes 512",
    ),
    "padding": (
        lambda to: to in ("longest", "max_length"),
        "'longest' (row of its batch) or 'max_length'",
    ),
    "group_by_length": (
        lambda yes: True,
        "True or False: whether rows of similar length share a batch",
    ),
    "batch_size": (lambda n: n >= 1, "a whole number of rows from 1"),
    "micro_batch_size": (
        lambda n: n >= 1,
        "a whole number of rows from 1; by default the whole batch",
    ),
    "gradient_checkpointing": (
        lambda yes: True,
        "True or False: recompute activations instead of storing them",
    ),
    "class_weights": (
        lambda name: name == "balanced",
        "'balanced'; by default all rows weigh the same",
    ),
    "learning_rate": (
        lambda x: 0 < x < 1,
        "above 0 and below 1 (the recipe's is 2e-5)",
    ),
    "epochs": (lambda n: n >= 1, "a whole number of passes over the rows, from 1"),
    "precision": (
        lambda name: name in ("fp32", "bf16"),
        "'fp32' or 'bf16'",
    ),
    "seed": (
        lambda n: 0 <= n < 2**32,
        "a whole number from 0 to 4294967295; it decides all that is random",
    ),
}
