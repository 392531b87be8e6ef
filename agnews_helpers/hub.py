"""Loading from the Hugging Face Hub: every wait ends, what a second try can cure gets one, a failure is one clear line."""
import re
from contextlib import contextmanager
from pathlib import Path

from .recipe import HUB_MODEL, HubUnreachable, hub_status

WAIT = 10      # seconds for an answer or the next bytes; the libraries allow some requests a minute, and some for ever
TRIES = 5      # requests in a row without a usable answer; the libraries make 7 for a file, and then begin with another
PATIENCE = 60  # seconds that a Hub with too many requests may make us wait
LATER, LOGIN = "Run the same again later.", "Set HF_TOKEN to a valid token, or unset it."
# Reason, remedy, and what may cure it: "again", "anew" (leaving the cache aside) or None, by status and by the words of an exception.
REFUSALS = {401: (" (it wants a login)", LOGIN, None), 403: (" (it wants a login)", LOGIN, None),
            404: (" (there is no such thing)", "Look at the name, and at HF_ENDPOINT if it is set.", None),
            429: (" (too many requests)", "Wait {} seconds, or set HF_TOKEN, and run the same again.", None)}
BREAKS = {"No space left on device": ("the disk is full", "Make room, or set HF_HOME to a folder on another disk.", None),
          "Timeout": (f"it stopped answering, {WAIT} seconds at a time", LATER, None),
          "ConnectError": ("there is no connection to it", "Look at the network, the proxy and HF_ENDPOINT, and run the same again.", None),
          "RemoteProtocolError": ("the connection is cut again and again", LATER, None),  # the libraries tried to go on
          "ReadError|Consistency check failed": ("the connection was cut", LATER, "again")}


def from_hub(name: str, load):
    """What ``load(anew)`` returns; `anew` is whether to download again what lies in the cache.

    Where a file is damaged or the failure may pass, it is tried a second time. Where the Hub does not answer,
    nothing is asked of it, and its cache must do.

    Raises
    ------
    HubUnreachable
        The message has `name`, the file where it is known, the reason and the remedy.
    """
    hub, cure = hub_status(), None
    for last in (False, True):
        watch = _Watch()
        try:
            with watch.over_requests(hub.reachable):
                return load(cure == "anew")
        except Exception as error:  # three libraries and what they are built on have many ways to fail
            reason, remedy, cure = watch.explain(error)
            if not hub.reachable:
                reason, remedy = f"{hub.reason}; {reason}", "Go online and run the same again."
            elif cure and not last:
                print(f"note: {name}: {reason}; trying once more.")
                continue
            raise HubUnreachable(f"{name} cannot be loaded from the Hugging Face Hub: {reason}. {remedy} "
                                 "Files that arrived whole are kept. AGNEWS_PROFILE=offline needs no Hub.") from error


def pretrained(auto_class, name: str, **options):
    """What ``auto_class.from_pretrained`` makes of the folder `name`, or of what the Hub has by that name.

    Raises
    ------
    FileNotFoundError
        When the folder holds nothing that can be read.
    HubUnreachable
        As of `from_hub`.
    """
    if not Path(name).is_dir():
        shown = name if name == HUB_MODEL else f"The model {name!r} (there is no such folder)"
        return from_hub(shown, lambda anew: auto_class.from_pretrained(name, force_download=anew, **options))
    try:
        if not (Path(name) / "config.json").is_file():
            raise FileNotFoundError("it has no config.json")  # of an empty folder transformers 5.0 makes a tokenizer
        return auto_class.from_pretrained(name, local_files_only=True, **options)
    except Exception as error:  # transformers, tokenizers and safetensors each have their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(f"The folder {str(name)!r} does not hold a model that can be read ({reason[:200]}). "
                                "Give another folder; AGNEWS_MODEL=mini needs none.") from error


class _Watch:
    """Sees the requests of one load, ends what would take too long, and knows afterwards why it failed."""

    def __init__(self):
        self.in_vain, self.asked, self.refusal, self.files = 0, "", None, {}

    @contextmanager
    def over_requests(self, online: bool):
        from huggingface_hub import constants, get_session

        client, offline, no_xet = get_session(), constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET
        hooks = client.event_hooks
        client.event_hooks = {"request": [*hooks["request"], self.request], "response": [*hooks["response"], self.response]}
        constants.HF_HUB_OFFLINE = offline or not online  # no argument reaches all requests, and each costs 25 s in vain
        # Xet, the faster way for large files, makes its requests where nobody sees them, and is reported to stall
        # for ever on poor networks where plain HTTP goes on (xet-core issues 850 and 898).
        constants.HF_HUB_DISABLE_XET = True
        try:
            yield
        finally:
            client.event_hooks, constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = hooks, offline, no_xet

    def request(self, request):
        if self.in_vain >= TRIES:
            raise HubUnreachable(f"no answer to {TRIES} requests in a row, the last for {self.asked}")
        self.in_vain, self.asked = self.in_vain + 1, self.file(request.url)
        waits = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {kind: min(waits.get(kind) or WAIT, WAIT) for kind in ("connect", "read", "write", "pool")}

    def response(self, response):
        code, expected = response.status_code, response.headers.get("x-error-code") == "EntryNotFound"
        if code == 404 and (expected or "/resolve/" not in response.url.path):  # libraries look for what need not be there
            self.in_vain = 0
        elif code >= 400:
            self.refusal = self.refusal or response
            if code == 429 and _asked_to_wait(response) > PATIENCE:
                response.raise_for_status()
        else:
            self.in_vain, self.refusal = 0, None
            self.files[response.headers.get("location")] = self.file(response.url)

    def file(self, url) -> str:
        """The file behind an address, or the path of the address."""
        return self.files.get(str(url)) or re.sub(r"^.*/resolve/[^/]+/", "", url.path)

    def explain(self, error: BaseException) -> tuple[str, str, str | None]:
        """The first link in the chain of exceptions that tells, or else the first refusal; its reason, remedy and cure."""
        link = error
        while link is not None:
            kind = type(link).__name__
            if getattr(link, "response", None) is not None and "EntryNotFound" not in kind:
                return self.refused(link.response)
            if isinstance(link, HubUnreachable) and self.refusal is None:
                return str(link), LATER, None
            if found := next((told for words, told in BREAKS.items() if re.search(words, f"{kind}: {link}")), None):
                return found
            link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
        if self.refusal is not None:
            return self.refused(self.refusal)
        text = " ".join(str(error.__cause__ or error).split())
        return f"a file is missing or damaged ({text[:200]})", LATER, "anew"

    def refused(self, response) -> tuple[str, str, str | None]:
        why, remedy, cure = REFUSALS.get(response.status_code, ("", LATER, "again"))
        return (f"error {response.status_code} for {self.file(response.url)}{why}",
                remedy.format(max(_asked_to_wait(response), PATIENCE)), cure)


def _asked_to_wait(response) -> int:
    """Seconds, from the header ``Retry-After`` or from the Hub's own ``RateLimit``."""
    headers = f"{response.headers.get('retry-after', '')} {response.headers.get('ratelimit', '')}"
    found = re.search(r"^(\d+) |r=0;\s*t=(\d+)", headers)
    return int(found[1] or found[2]) if found else 0
