"""The Hugging Face Hub: whether it answers, and loading from it or from its cache."""

import functools
import os
import re
import traceback
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from .errors import HubUnreachable

# the files that are loaded: of a model, and of AG News its training and test rows
FILES = {
    "model": ("config.json", "tokenizer.json", "model.safetensors"),
    "dataset": (
        "data/train-00000-of-00001.parquet",
        "data/test-00000-of-00001.parquet",
    ),
}
# the ids of the Hub look like this: name, or owner/name
HUB_ID = re.compile(r"(?!.*(--|\.\.))(\w[\w.-]*/)?\w([\w.-]*\w)?$")
# What the text of an error contains -> the remedy; the first match counts.
REMEDIES = {
    "error '40[134]|not appear": "Check the name, HF_TOKEN if private, HF_ENDPOINT.",
    "No space left": "Make room, or set HF_HOME to a folder on another disk.",
    "tiktoken|entence[Pp]iece": "It may need: pip install sentencepiece protobuf.",
    "error '|Timeout|ConnectError|ReadError|ProtocolError|Consistency check": (
        "Check the network, the proxy and HF_ENDPOINT, or run the same again later."
    ),
    "": f"If a file is damaged, delete its folder in {constants.HF_HUB_CACHE}, and run "
    "again.",
}


def hub_status(model: str, data: str) -> tuple[bool, str]:
    """Say whether model and data are available from the Hub or from its local cache.

    Parameters
    ----------
    model : str
        The Hub id of a model.
    data : str
        The Hub id of a data set with the files of AG News.

    Returns
    -------
    tuple
        Whether they are, and why, as the rest of a sentence.
    """
    problem = why_unreachable()
    if not problem:
        return True, "the Hugging Face Hub answers"
    if in_cache(model, "model") and in_cache(data, "dataset"):
        return True, f"{problem}, but model and data are in its cache"
    return False, problem


@functools.cache
def why_unreachable() -> str:
    """Say why the Hub cannot be asked. It is tried once per process, for 2.5 seconds.

    Returns
    -------
    str
        The rest of a sentence; empty if the Hub answers.
    """
    from urllib import error, request  # only now: no network before it is asked

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    file = "distilbert/distilbert-base-uncased/resolve/main/config.json"
    try:
        question = request.Request(f"{constants.ENDPOINT}/{file}", method="HEAD")
        # A thread bounds it: to look up a host name can take longer than any timeout.
        with ThreadPool(1) as pool:
            answer = pool.apply_async(request.urlopen, [question], {"timeout": 2.5})
            answer.get(2.5).close()
        return ""
    except error.HTTPError as refusal:
        return f"the Hugging Face Hub answers with error {refusal.code}"
    except Exception:  # no route, an unknown host, a bad certificate, a timeout
        place = f" at {constants.ENDPOINT}" if "HF_ENDPOINT" in os.environ else ""
        return f"the Hugging Face Hub does not answer{place}"


def in_cache(name: str, kind: str) -> bool:
    """Say whether all files of a model or data set are in the Hub's local cache.

    Parameters
    ----------
    name : str
        Its Hub id.
    kind : str
        "model" or "dataset".

    Returns
    -------
    bool
    """
    from huggingface_hub import try_to_load_from_cache

    return all(
        isinstance(try_to_load_from_cache(name, file, repo_type=kind), str)
        for file in FILES[kind]
    )


def from_hub(name: str, load: Callable) -> Any:
    """Load something from the Hub, or from its cache if the Hub does not answer.

    Parameters
    ----------
    name : str
        What is loaded, for the error.
    load : Callable
        Called once, with ``local_files_only`` (bool) by keyword.

    Returns
    -------
    Any
        What `load` returns.

    Raises
    ------
    HubUnreachable
        If `load` fails for any reason; names the cause and the remedy.
    """
    problem = why_unreachable()
    try:
        return load(local_files_only=bool(problem))
    except Exception as error:  # three libraries have many ways to fail
        reason, remedy = _explain(error)
        if problem:
            reason = f"{problem}, and it cannot be loaded from the cache ({reason})"
            remedy = "Go online, and run the same again."
        raise HubUnreachable(
            f"{name} cannot be loaded from the Hugging Face Hub: {reason}. {remedy} "
            "AGNEWS_PROFILE=offline and AGNEWS_MODEL=mini need no Hub."
        ) from error


def pretrained(auto_class: Any, name: str | Path, **options: Any) -> Any:
    """Call ``auto_class.from_pretrained`` for a folder or for a model of the Hub.

    Parameters
    ----------
    auto_class : type
        A class of transformers, such as ``AutoTokenizer``.
    name : str or Path
        A folder, or the Hub id of a model.
    **options
        Further arguments of ``from_pretrained``.

    Returns
    -------
    Any
        What ``from_pretrained`` returns.

    Raises
    ------
    FileNotFoundError
        If the folder is missing, or holds nothing that can be read.
    HubUnreachable
        As of `from_hub`.
    """
    load = functools.partial(
        auto_class.from_pretrained, name, trust_remote_code=False, **options
    )
    if not Path(name).is_dir():
        if Path(name).exists() or not HUB_ID.match(str(name)):
            raise FileNotFoundError(
                f"There is no folder {str(name)!r}. Give another, or the id of a model."
            )
        return from_hub(f"The model {name!r} (there is no such folder)", load)
    try:
        return load(local_files_only=True)
    except Exception as error:  # each of three libraries has its own classes
        raise FileNotFoundError(
            f"The folder {str(name)!r} does not hold a model that can be read "
            f"({_first_line(error)}). Save it again, or give another; "
            "AGNEWS_MODEL=mini needs none."
        ) from error


def _explain(error):
    """Find the root cause of a failed load, in one line, and what helps against it."""
    text = "".join(traceback.format_exception(error, limit=0))  # without lines of code
    remedies = [value for key, value in REMEDIES.items() if re.search(key, text)]
    while error.__cause__:
        error = error.__cause__
    return _first_line(error), remedies[0]


def _first_line(error):
    """Return the first line of an error's message, or the name of its class."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200].rstrip(".")
