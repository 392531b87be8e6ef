"""Every number of the recipe, and the three sizes in which it runs. Notebook 01."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from .plumbing.errors import HubUnreachable, InvalidValue
from .plumbing.hub import hub_status as status_of

LABELS = ("World", "Sports", "Business", "Sci/Tech")
HUB_MODEL = "distilbert/distilbert-base-uncased"
HUB_DATA = "fancyzhx/ag_news"
hub_status = partial(
    status_of, HUB_MODEL, HUB_DATA
)  # asks the network, once, when it is called

# What each profile changes; everything else is the recipe's default.
PROFILES = {
    "offline": dict(model="mini", data="sample", train_rows=None, test_rows=None),
    "laptop": dict(model=HUB_MODEL, data=HUB_DATA, train_rows=800, test_rows=400),
    "full": dict(model=HUB_MODEL, data=HUB_DATA, train_rows=None, test_rows=None),
}


@dataclass(frozen=True)
class Recipe:
    """The recipe of the tutorial: DistilBERT, batches of 8, Adam at 2e-5, four epochs.

    What each number means, and why it is this one, stands beside it: ``Recipe??`` shows it in a notebook.

    ValueError where a value is out of range or of another type, with the field and what is allowed.
    """

    profile: str = "full"  # the size: "offline", "laptop" or "full"
    model: str = HUB_MODEL  # a Hub id, a folder written by save_pretrained, or "mini" (the offline model)
    data: str = HUB_DATA  # this one from the Hub, a folder with train and test files, or "sample"
    label_column: str | None = (
        None  # what a file calls its labels; None finds them (data.load_data)
    )
    text_columns: str | None = None  # and its texts; several with commas between
    train_rows: int | None = (
        None  # rows to draw, the same share from each class; None means all
    )
    test_rows: int | None = None  # the same of the test rows
    validation_share: float = (
        0.05  # share of the training rows held out to choose the best epoch
    )
    max_length: int = 512  # tokens after which a text is cut; DistilBERT has positions for no more, others do
    padding: str = "longest"  # pads a batch to its longest row; "max_length" pads every row to max_length
    group_by_length: bool = True  # whether batches are made of rows of similar length
    batch_size: int = 8  # rows in one step: eight, because of the 4 GB of the GTX 1650 Ti (notebook 05)
    micro_batch_size: int | None = (
        None  # rows taken at a time, the same step in less memory; None for all
    )
    gradient_checkpointing: bool = (
        False  # whether layers are computed twice instead of kept: less memory
    )
    class_weights: str | None = (
        None  # or "balanced": rows of rare classes weigh more in the loss
    )
    learning_rate: float = (
        2e-5  # Adam's step size, as in datascience.stackexchange.com question 64583
    )
    epochs: int = 4  # passes over all training rows; batch 8 and 4 epochs are in the grid of Turc et al. 2019
    precision: str = "fp32"  # or "bf16", "fp16"; stay with fp32 on GTX 16xx cards, they have no tensor cores
    seed: int = 42  # the one source of randomness: subset, split, new weights, order of batches, dropout
    reason = "as given"  # why this profile; it decides nothing, so it is no field

    def __post_init__(self):
        for name, kind in type(self).__annotations__.items():
            value, (fits, allowed) = getattr(self, name), ALLOWED[name]
            right_type = isinstance(value, kind) and isinstance(value, bool) == (
                kind is bool
            )
            if not (right_type and fits(value)):
                raise InvalidValue(f"Recipe.{name} is {value!r}; it must be {allowed}.")

    @classmethod
    def for_this_machine(cls, **overrides) -> "Recipe":
        """The recipe in the size that fits this machine.

        The profile is `overrides["profile"]`, else ``AGNEWS_PROFILE``, else decided here: the Hub, or its
        cache, gives ``full`` with CUDA and ``laptop`` without; else it is ``offline``. Then come
        ``AGNEWS_MODEL``, ``AGNEWS_DATA``, ``AGNEWS_LABEL_COLUMN``, ``AGNEWS_TEXT_COLUMNS``,
        ``AGNEWS_TRAIN_ROWS`` and ``AGNEWS_TEST_ROWS``, then `overrides` (None is ignored).

        HubUnreachable where a profile that needs the Hub was asked for by name and the Hub does not answer,
        ValueError where a variable or an override is out of range.
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        if unknown := ", ".join(sorted(set(given) - set(cls.__annotations__))):
            raise InvalidValue(
                f"Recipe has no field {unknown}; it has {', '.join(cls.__annotations__)}."
            )
        source = "argument" if "profile" in given else "AGNEWS_PROFILE"
        asked = given.pop("profile", None) or os.environ.get("AGNEWS_PROFILE")
        profile, reason = asked, f"asked for by {source}"
        if not asked and not (status := hub_status()).usable:
            profile, reason = "offline", status.reason
        elif not asked:
            import torch  # only now: the answer above needs no torch

            cuda = torch.cuda.is_available()
            there = "a CUDA device is there" if cuda else "no CUDA device"
            profile, reason = (
                "full" if cuda else "laptop",
                f"{there}, and {status.reason}",
            )
        if profile not in [*PROFILES]:
            raise InvalidValue(
                f"{source} is {profile!r}; it must be one of {', '.join(PROFILES)}."
            )
        recipe = cls(
            profile, **{**PROFILES[profile], **from_environment(os.environ), **given}
        )
        on_hub = {HUB_MODEL, HUB_DATA} & {recipe.model, recipe.data}
        if asked and on_hub and not (status := hub_status()).usable:
            advice = "set AGNEWS_PROFILE=offline, or point AGNEWS_MODEL and AGNEWS_DATA at local folders."
            needs = f"The profile '{profile}' needs the Hugging Face Hub, and {status.reason}."
            raise HubUnreachable(f"{needs} Go online, or {advice}")
        return recipe.with_reason(reason)

    @classmethod
    def from_dict(cls, values: Mapping) -> "Recipe":
        """From the fields' values, of now or of version 1; what is no field today is left out."""
        if not isinstance(values, Mapping):
            raise InvalidValue(
                f"A recipe is made of names and values, not of {values!r}."
            )
        return cls(
            **{name: values[name] for name in cls.__annotations__ if name in values}
        )

    def from_anywhere(self) -> dict:
        """The fields' values, folders from the root on: for a run that is continued in another place."""
        places = {name: Path(getattr(self, name)) for name in ("model", "data")}
        return asdict(self) | {
            name: str(path.resolve()) for name, path in places.items() if path.is_dir()
        }

    @property
    def pad_to(self) -> int | None:
        """Tokens to which every row is padded; None: to the longest of its batch."""
        return self.max_length if self.padding == "max_length" else None

    def replace(self, **changes) -> "Recipe":
        """A copy with some fields changed, checked again."""
        return replace(self, **changes).with_reason(self.reason)

    def with_reason(self, reason: str) -> "Recipe":
        """The recipe itself, after noting for `describe` why its profile was chosen."""
        object.__setattr__(self, "reason", reason)  # only the fields are frozen
        return self

    def describe(self) -> str:
        """Which profile runs and why, in three lines."""
        train, test = (
            "all" if n is None else f"{n:,}" for n in (self.train_rows, self.test_rows)
        )
        data = (
            self.data if self.data == HUB_DATA else Path(self.data).name
        )  # notebooks store this: no home
        how = (
            "grouped by length, " * self.group_by_length
            + "classes balanced, " * bool(self.class_weights)
        )
        return (
            f"profile    {self.profile} ({self.reason})\n"
            f"model      {self.model}; data {data}: {train} train rows, {test} test rows\n"
            f"training   {self.epochs} epoch{'s' * (self.epochs > 1)}, batch size {self.batch_size} ({how}"
            f"padded to {self.padding}), Adam {self.learning_rate:g}, {self.precision}, seed {self.seed}"
        )


# What a value must pass, beside the type of its field, and the same in words.
ALLOWED = {
    "profile": (lambda name: name in PROFILES, f"one of {', '.join(PROFILES)}"),
    "model": (len, "a Hub id, the path of a folder, or 'mini'"),
    "data": (len, f"'{HUB_DATA}', the path of a folder, or 'sample'"),
    "label_column": (
        lambda name: name != "",
        "the name of the column of labels; by default it is found",
    ),
    "text_columns": (
        lambda names: names != "",
        "names of columns, commas between; by default found",
    ),
    "train_rows": (
        lambda n: n is None or n >= 4,
        "a whole number of rows from 4; by default all",
    ),
    "test_rows": (
        lambda n: n is None or n >= 4,
        "a whole number of rows from 4; by default all",
    ),
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
        lambda n: n is None or n >= 1,
        "a whole number of rows from 1; by default all",
    ),
    "gradient_checkpointing": (
        lambda yes: True,
        "True or False: layers are computed twice, not kept",
    ),
    "class_weights": (
        lambda name: name in (None, "balanced"),
        "'balanced'; by default all weigh the same",
    ),
    "learning_rate": (
        lambda x: 0 < x < 1,
        "above 0 and below 1 (the recipe's is 2e-5)",
    ),
    "epochs": (lambda n: n >= 1, "a whole number of passes over the rows, from 1"),
    "precision": (
        lambda name: name in ("fp32", "bf16", "fp16"),
        "'fp32', 'bf16' or 'fp16'",
    ),
    "seed": (
        lambda n: 0 <= n < 2**32,
        "a whole number from 0 to 4294967295; it decides all that is random",
    ),
}


def from_environment(environment: Mapping[str, str]) -> dict:
    """The overrides that ``AGNEWS_*`` variables ask for; an empty one counts as not set."""
    names = ("model", "data", "label_column", "text_columns", "train_rows", "test_rows")
    values = {
        name: text
        for name in names
        if (text := environment.get(f"AGNEWS_{name.upper()}"))
    }
    for name in {"train_rows", "test_rows"} & values.keys():
        if not values[name].isdecimal():
            raise InvalidValue(
                f"AGNEWS_{name.upper()} is {values[name]!r}; it must be a whole number."
            )
        values[name] = int(values[name])
    return values
