"""Which of the three sizes runs here, and the ``AGNEWS_`` variables. Notebook 01."""

import os
from typing import Any

from .plumbing.errors import HubUnreachable
from .plumbing.hub import hub_status
from .recipe import HUB_DATA, HUB_MODEL, Recipe

# What each profile changes; everything else is the recipe's default.
PROFILES = {
    "offline": {"model": "mini", "data": "sample"},
    "laptop": {"train_rows": 800, "test_rows": 400},
    "full": {},
}
VARIABLES = ("model", "data", "label_column", "text_columns", "train_rows", "test_rows")


def recipe_for_this_machine(**overrides: Any) -> Recipe:
    """Return the recipe in the size that fits this machine.

    The profile is `overrides["profile"]`, else ``AGNEWS_PROFILE``, otherwise chosen
    automatically: ``full`` with the Hub (or its cache) and CUDA, ``laptop`` with the
    Hub only, else ``offline``. ``laptop`` draws rows of AG News only: of your own data
    all are used. `environment_overrides` override single fields, and `overrides`
    override those.

    Parameters
    ----------
    **overrides
        Field of `Recipe` -> value.

    Returns
    -------
    Recipe

    Raises
    ------
    HubUnreachable
        If the profile was asked for, needs the Hub, and the Hub does not answer.
    InvalidValue
        If a variable or an override is out of range.
    """
    source = "argument" if "profile" in overrides else "AGNEWS_PROFILE"
    asked = overrides.pop("profile", None) or os.environ.get("AGNEWS_PROFILE")
    profile, reason = (asked, f"asked for by {source}") if asked else _choose_profile()
    fields = environment_overrides() | overrides
    size = PROFILES.get(profile, {})  # Recipe refuses another name
    if profile == "laptop" and fields.get("data", HUB_DATA) != HUB_DATA:
        size = {}  # your own rows are all used
    recipe = Recipe(profile, **size | fields)
    if asked and {HUB_MODEL, HUB_DATA} & {recipe.model, recipe.data}:
        is_usable, why = hub_status(HUB_MODEL, HUB_DATA)
        if not is_usable:
            raise HubUnreachable(
                f"The profile '{profile}' needs the Hugging Face Hub, and "
                f"{why}. Go online (certificate: SSL_CERT_FILE; proxy: HTTPS_PROXY), "
                "or set AGNEWS_PROFILE=offline, or point "
                "AGNEWS_MODEL and AGNEWS_DATA at local folders."
            )
    return recipe.with_reason(reason)


def environment_overrides() -> dict:
    """Return the fields that ``AGNEWS_*`` variables set; an empty one counts as unset.

    ``AGNEWS_MODEL``, ``AGNEWS_DATA``, ``AGNEWS_LABEL_COLUMN``, ``AGNEWS_TEXT_COLUMNS``,
    ``AGNEWS_TRAIN_ROWS`` and ``AGNEWS_TEST_ROWS``.

    Returns
    -------
    dict
        Field of `Recipe` -> value.
    """
    values = {}
    for name in VARIABLES:
        text = os.environ.get(f"AGNEWS_{name.upper()}")
        if text:
            is_number = name.endswith("rows") and text.isdecimal()
            values[name] = int(text) if is_number else text  # Recipe refuses others
    return values


def _choose_profile():
    """Return the profile that fits this machine, and why."""
    is_usable, why = hub_status(HUB_MODEL, HUB_DATA)
    if not is_usable:
        return "offline", why
    import torch  # only now: the answer above needs no torch

    if torch.cuda.is_available():
        return "full", f"a CUDA device is there, and {why}"
    # Where PyTorch has no CUDA, no card would be found.
    device = f"no CUDA device (PyTorch's CUDA: {torch.version.cuda})"
    return "laptop", f"{device}, and {why}"
