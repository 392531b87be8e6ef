import threading
import time
import urllib.request
from dataclasses import asdict, fields
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agnews_helpers import HubUnreachable, Recipe, recipe_for_this_machine
from agnews_helpers import profiles as module
from agnews_helpers.plumbing.hub import hub_status, why_unreachable
from agnews_helpers.recipe import ALLOWED, HUB_DATA, HUB_MODEL


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    """No profile asked for, no cache, and a Hub that is asked anew in each test."""
    monkeypatch.delenv("AGNEWS_PROFILE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        "agnews_helpers.plumbing.hub.in_cache", lambda model, data: False
    )
    why_unreachable.cache_clear()
    yield
    why_unreachable.cache_clear()


def hub(monkeypatch, reachable, cached=False):
    monkeypatch.setattr(
        module,
        "hub_status",
        lambda model, data: (reachable or cached, "the Hub is a test"),
    )


def cuda(monkeypatch, there):
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)


@pytest.fixture
def loopback(monkeypatch):
    """A stand-in for the Hub on loopback; `answer(code)` starts it for one request."""
    servers = []

    def answer(code):
        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.send_response(code)
                self.end_headers()

            def log_message(self, *args):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        server.timeout = 5
        servers.append((server, threading.Thread(target=server.handle_request)))
        servers[-1][1].start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)

    yield answer
    for server, thread in servers:
        thread.join(5)
        server.server_close()


def test_the_defaults_are_the_recipe():
    recipe = Recipe()
    assert (
        recipe.model,
        recipe.max_length,
        recipe.batch_size,
        recipe.learning_rate,
        recipe.epochs,
    ) == (
        "distilbert/distilbert-base-uncased",
        512,
        8,
        2e-5,
        4,
    )
    assert (recipe.padding, recipe.group_by_length, recipe.precision) == (
        "longest",
        True,
        "fp32",
    )


@pytest.mark.parametrize(
    "field, value",
    [
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("batch_size", True),
        ("max_length", 8193),
        ("max_length", 2),
        ("learning_rate", -2e-5),
        ("learning_rate", float("nan")),
        ("epochs", 0),
        ("padding", "none"),
        ("precision", "fp16"),
        ("train_rows", 3),
        ("test_rows", -1),
        ("validation_share", 0.0),
        ("validation_share", 1),
        ("seed", -1),
        ("seed", 2**32),
        ("profile", "huge"),
        # of another type
        ("profile", ["full"]),
        ("model", None),
        ("model", ""),
        ("data", Path("rows")),
        ("train_rows", "8"),
        ("validation_share", "x"),
        ("max_length", 512.0),
        ("padding", 1),
        ("group_by_length", "x"),
        ("group_by_length", 1),
        ("batch_size", "8"),
        ("learning_rate", "x"),
        ("learning_rate", None),
        ("learning_rate", float("inf")),
        ("epochs", None),
        ("precision", None),
        ("seed", "x"),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=rf"Recipe\.{field} is .*must be"):
        Recipe(**{field: value})


def test_every_field_is_checked():
    assert list(ALLOWED) == [item.name for item in fields(Recipe)]


def test_a_copy_is_checked_too():
    with pytest.raises(ValueError, match="batch_size"):
        Recipe().replace(batch_size=0)
    assert Recipe().replace(batch_size=4).batch_size == 4


def test_a_recipe_comes_back_from_its_dict():
    recipe = Recipe(model="mini", train_rows=40, learning_rate=1e-3)
    assert Recipe.from_dict(asdict(recipe)) == recipe
    version_1 = {**asdict(recipe), "reason": "the default", "checkpoint_minutes": 10.0}
    assert Recipe.from_dict(version_1) == recipe
    assert Recipe.from_dict({"epochs": 2}) == Recipe(epochs=2)
    with pytest.raises(ValueError, match=r"Recipe\.epochs is '4'"):
        Recipe.from_dict({"epochs": "4"})


def test_folders_are_absolute_if_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").mkdir()
    recipe = Recipe(model="no-folder", data="rows")
    assert recipe.to_dict() == asdict(recipe)
    absolute = recipe.to_dict(absolute_paths=True)
    assert absolute == asdict(recipe) | {"data": str(tmp_path.resolve() / "rows")}
    (tmp_path / "rows.csv").touch()
    absolute = recipe.replace(data="rows.csv").to_dict(absolute_paths=True)
    assert absolute["data"] == str(tmp_path.resolve() / "rows.csv")
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    absolute = recipe.replace(data="~/rows.csv").to_dict(absolute_paths=True)
    assert absolute["data"] == str(tmp_path.resolve() / "rows.csv")


def test_mini_and_sample_are_no_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mini", "sample"):
        (tmp_path / name).mkdir()
    recipe = Recipe(model="mini", data="sample")
    assert recipe.to_dict(absolute_paths=True) == asdict(recipe)


def test_why_the_profile_was_chosen_is_told_and_is_no_part_of_the_recipe(monkeypatch):
    monkeypatch.setenv("AGNEWS_PROFILE", "offline")
    recipe = recipe_for_this_machine()
    assert recipe.describe().startswith(
        "profile    offline (asked for by AGNEWS_PROFILE)\nmodel      mini;"
    )
    assert recipe.replace(epochs=2).reason == recipe.reason and "reason" not in asdict(
        recipe
    )
    given = Recipe.from_dict(asdict(recipe))
    assert given == recipe and "profile    offline (as given)" in given.describe()


@pytest.mark.parametrize(
    "reachable, gpu, profile",
    [
        (True, True, "full"),
        (True, False, "laptop"),
        (False, True, "offline"),
        (False, False, "offline"),
    ],
)
def test_the_profile_follows_from_the_machine(monkeypatch, reachable, gpu, profile):
    hub(monkeypatch, reachable), cuda(monkeypatch, gpu)
    recipe = recipe_for_this_machine()
    assert recipe.profile == profile
    assert recipe.model == ("mini" if profile == "offline" else HUB_MODEL)
    rows = (800, 400) if profile == "laptop" else (None, None)
    assert (recipe.train_rows, recipe.test_rows) == rows
    assert (
        f"profile    {profile} (" in recipe.describe()
        and "the Hub is a test" in recipe.describe()
    )


def test_the_profile_laptop_uses_all_of_ones_own_rows(monkeypatch):
    hub(monkeypatch, True), cuda(monkeypatch, False)
    monkeypatch.setenv("AGNEWS_MODEL", "mini")
    assert recipe_for_this_machine().train_rows == 800
    own = recipe_for_this_machine(data="tickets.csv")
    assert (own.train_rows, own.test_rows) == (None, None)
    assert recipe_for_this_machine(data="tickets.csv", test_rows=7).test_rows == 7
    assert recipe_for_this_machine(data=HUB_DATA).train_rows == 800
    monkeypatch.setenv("AGNEWS_DATA", "tickets.csv")
    assert recipe_for_this_machine() == own.replace(data="tickets.csv")
    assert own.profile == "laptop" and own.model == "mini"


@pytest.mark.parametrize("data", ["sample", "runs/tickets.csv", ".", HUB_DATA])
def test_the_description_names_the_data_as_it_was_given(data):
    assert f"data {data}: all" in Recipe(data=data).describe()


@pytest.mark.parametrize("built_for", [None, "13.0"])
def test_a_pytorch_without_cuda_is_told_of(built_for, monkeypatch):
    """The owner of a card on Windows may have the CPU build."""
    hub(monkeypatch, True), cuda(monkeypatch, False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    told = recipe_for_this_machine().describe()
    assert f"laptop (no CUDA device (PyTorch's CUDA: {built_for}), and" in told


def test_what_was_downloaded_before_counts_as_hub(monkeypatch):
    hub(monkeypatch, reachable=False, cached=True), cuda(monkeypatch, False)
    assert recipe_for_this_machine().profile == "laptop"


def test_full_without_a_hub_stops_with_the_reason(monkeypatch):
    hub(monkeypatch, reachable=False)
    monkeypatch.setenv("AGNEWS_PROFILE", "full")
    with pytest.raises(
        HubUnreachable,
        match="'full' needs the Hugging Face Hub, and the Hub is a test.*"
        "AGNEWS_PROFILE=offline",
    ):
        recipe_for_this_machine()


def test_full_with_local_folders_needs_no_hub(monkeypatch):
    hub(monkeypatch, reachable=False)
    monkeypatch.setenv("AGNEWS_PROFILE", "full")
    monkeypatch.setenv("AGNEWS_MODEL", "mini")
    monkeypatch.setenv("AGNEWS_DATA", "rows")
    assert recipe_for_this_machine().data == "rows"


def test_the_environment_and_arguments_override(monkeypatch):
    hub(monkeypatch, reachable=False)
    monkeypatch.setenv("AGNEWS_TRAIN_ROWS", "2000")
    monkeypatch.setenv("AGNEWS_DATA", "somewhere/rows")
    recipe = recipe_for_this_machine(epochs=2)
    assert (recipe.train_rows, recipe.epochs, recipe.batch_size) == (2000, 2, 8)
    assert recipe_for_this_machine(train_rows=100).train_rows == 100
    assert "data somewhere/rows: 2,000 train rows" in recipe.describe()


@pytest.mark.parametrize(
    "name, value",
    [("profile", "huge"), ("train_rows", "many"), ("test_rows", "1.5")],
)
def test_a_bad_variable_is_named(monkeypatch, name, value):
    hub(monkeypatch, reachable=False)
    monkeypatch.setenv(f"AGNEWS_{name.upper()}", value)
    with pytest.raises(ValueError, match=f"{name} is '{value}'; it must be "):
        recipe_for_this_machine()


def test_an_unknown_argument_is_named(monkeypatch):
    hub(monkeypatch, reachable=False)
    with pytest.raises(TypeError, match="batchsize"):
        recipe_for_this_machine(batchsize=8)


@pytest.mark.slow
def test_a_silent_network_costs_at_most_three_seconds(monkeypatch):
    asked = []

    def hang(*args, **options):
        asked.append(1)
        time.sleep(6)

    monkeypatch.setattr(urllib.request, "urlopen", hang)
    start = time.perf_counter()
    assert recipe_for_this_machine().profile == "offline"
    assert recipe_for_this_machine().profile == "offline"
    assert (
        time.perf_counter() - start < 3 and len(asked) == 1
    )  # both: decided once per process


def test_a_hub_that_answers_is_reachable(loopback):
    loopback(200)
    assert hub_status(HUB_MODEL, HUB_DATA) == (
        True,
        "the Hugging Face Hub answers",
    )


def test_a_hub_with_an_error_is_not(loopback):
    loopback(503)
    assert hub_status(HUB_MODEL, HUB_DATA) == (
        False,
        "the Hugging Face Hub answers with error 503",
    )


def test_hf_hub_offline_is_respected(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(
        urllib.request, "urlopen", lambda *a, **o: pytest.fail("asked the network")
    )
    assert hub_status(HUB_MODEL, HUB_DATA) == (False, "HF_HUB_OFFLINE is set")


def test_the_hub_names_have_a_namespace():
    assert (
        HUB_MODEL.count("/") == HUB_DATA.count("/") == 1
    )  # bare ids are refused by huggingface_hub since 1.16


VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2)
)


@given(
    st.dictionaries(st.sampled_from(sorted(Recipe.__annotations__)), VALUES, max_size=4)
)
def test_any_values_are_a_recipe_or_a_value_error(values):
    try:
        recipe = Recipe(**values)
    except ValueError as error:
        assert any(f"Recipe.{name} is" in str(error) for name in values)
    else:
        assert Recipe.from_dict(asdict(recipe)) == recipe and recipe.describe()
