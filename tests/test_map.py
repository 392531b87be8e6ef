"""The map at the end of notebook 01: all notebooks, and the helpers' names."""

import ast
import re

import pytest

from tests import test_notebooks as rules

CELLS, CODE = rules.read(rules.NOTEBOOKS[0])
ROW = re.compile(r"^\|(★?)(\d+)\|\[([^]]+)\]\((\w+)\.ipynb\)\|[^|]+\?\|$", re.MULTILINE)
MAP = {
    int(number): {"star": bool(star), "title": title, "file": file}
    for star, number, title, file in ROW.findall("".join(c["text"] for c in CELLS))
}
SHORT_WAY = {1, 2, 3, 5, 7}


def number_of(path):
    return int(path.stem[:2])


def users_of(package):
    """Name -> the numbers of the notebooks that import it from a package."""
    users = {}
    for path in rules.NOTEBOOKS:
        for cell in rules.read(path)[1]:
            for node in ast.walk(ast.parse(cell["text"])):
                if isinstance(node, ast.ImportFrom):
                    if node.module.partition(".")[0] == package:
                        for alias in node.names:
                            users.setdefault(alias.name, set()).add(number_of(path))
    return users


def taught_in():
    """Name -> the notebook that teaches it, as the cell of notebook 01 says."""
    [cell] = [cell for cell in CODE if "taught_in = {" in cell["text"]]
    [table] = [
        ast.literal_eval(node.value)
        for node in ast.parse(cell["text"]).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "taught_in"
    ]
    pairs = [(name, number) for number, many in table.items() for name in many.split()]
    assert len(dict(pairs)) == len(pairs)  # no name stands there twice
    return {name.rpartition(".")[2]: number for name, number in pairs}


def test_the_names_are_those_that_the_notebooks_import():
    """Each is taught where the reader first meets it."""
    users = users_of("agnews_helpers")
    assert taught_in() == {name: min(numbers) for name, numbers in users.items()}


def test_the_table_shows_each_name_with_what_it_does():
    [cell] = [cell for cell in CODE if "taught_in" in cell["text"]]
    html = "".join(cell["outputs"][0]["data"]["text/html"])
    rows = re.findall(r"<th>(\d+)</th>\s*<td>([\w.]+)</td>\s*<td>(.*?)</td>", html)
    shown = {name.rpartition(".")[2]: int(number) for number, name, _ in rows}
    assert shown == taught_in()
    assert all(len(does.split()) >= 4 and does.endswith(".") for _, _, does in rows)


def test_only_one_notebook_needs_the_other_package():
    assert set().union(*users_of("vram_budget").values()) == {7}


def test_the_map_has_ten_notebooks_and_the_short_way():
    assert [*MAP] == [*range(1, 11)]
    assert {number for number, row in MAP.items() if row["star"]} == SHORT_WAY


@pytest.mark.parametrize("path", rules.NOTEBOOKS, ids=lambda path: path.stem)
def test_the_map_is_true_of_a_notebook(path):
    opening = rules.read(path)[0][0]["text"]
    row = MAP[number_of(path)]
    assert opening.startswith(f"# {number_of(path)} · {row['title']}\n")
    assert row["file"] == path.stem
    assert ("You can skip this notebook." in opening) != row["star"]
