"""How the packages read: small, documented, annotated, and known to an editor."""

import ast
import importlib
import inspect
import io
import tokenize
from pathlib import Path

import jedi
import pytest

import agnews_helpers

ROOT = Path(__file__).resolve().parent.parent
TOKENS = {"agnews_helpers": 25_500, "vram_budget": 8_500}
TOKENS_PER_LINE = 9.0
LINES_OF_A_FUNCTION = 50

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (ast.Module, ast.ClassDef, *FUNCTIONS)
LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
# A method with one of these is used like a value: it takes and returns nothing.
PROPERTIES = {"property", "cached_property"}
# And a context manager may yield nothing.
RETURNS_NOTHING = {"None", "NoReturn", "Never", "Iterator[None]", "Generator[None]"}


def files(package):
    return sorted((ROOT / package).rglob("*.py"))


PROJECT = jedi.Project(ROOT)
PACKAGES = [name for name in TOKENS if files(name)]


def docstring_of(node):
    """The statement that is a node's docstring, or None."""
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        return first if isinstance(first.value.value, str) else None
    return None


def count(text):
    """How many tokens of code a file has, and on how many lines they are.

    Layout, comments and docstrings do not count. An f-string is one token, as in Python
    3.11: later versions take it apart.
    """
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, DOCUMENTED)]
    prose = set()
    for docstring in filter(None, map(docstring_of, nodes)):
        prose.update(range(docstring.lineno, docstring.end_lineno + 1))
    tokens, lines, depth = 0, set(), 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        name = tokenize.tok_name[token.type]
        if token.type in LAYOUT or token.start[0] in prose:
            continue
        lines.update(range(token.start[0], token.end[0] + 1))
        if depth == 0:
            tokens += 1
        depth += name.endswith("STRING_START")
        depth -= name.endswith("STRING_END")
    return tokens, len(lines)


def lengths(text):
    """The lines of each function from `def` to its end, without its docstring."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, FUNCTIONS):
            docstring = docstring_of(node)
            prose = docstring.end_lineno - docstring.lineno + 1 if docstring else 0
            yield node.name, node.end_lineno - node.lineno + 1 - prose


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_stays_small(package):
    """Counted as `ruff format` leaves it; `make lint` holds the format."""
    counted = {
        path.relative_to(ROOT).as_posix(): count(path.read_text(encoding="utf-8"))
        for path in files(package)
    }
    total = sum(tokens for tokens, _ in counted.values())
    assert total <= TOKENS[package], {name: n for name, (n, _) in counted.items()}


@pytest.mark.parametrize("package", PACKAGES)
def test_its_lines_are_not_dense(package):
    dense = {}
    for path in files(package):
        tokens, lines = count(path.read_text(encoding="utf-8"))
        if tokens > TOKENS_PER_LINE * lines:
            dense[path.relative_to(ROOT).as_posix()] = round(tokens / lines, 2)
    assert not dense


@pytest.mark.parametrize("package", PACKAGES)
def test_its_functions_are_short(package):
    long = {
        f"{path.relative_to(ROOT).as_posix()}: {name}": lines
        for path in files(package)
        for name, lines in lengths(path.read_text(encoding="utf-8"))
        if lines > LINES_OF_A_FUNCTION
    }
    assert not long


EXAMPLE = '''\
"""A module."""

# a comment
import os  # another


def double(text: str) -> str:
    """Return a text twice.

    Over some lines.
    """
    twice = f"{text}{os.linesep}" f"{text!r:>{9}}"
    return (
        twice
    )
'''


def test_what_is_counted():
    # import os; def double(text: str) -> str: ; twice = f"" f"" ; return ( twice )
    assert count(EXAMPLE) == (2 + 10 + 4 + 4, 1 + 1 + 1 + 3)
    assert list(lengths(EXAMPLE)) == [("double", 5)]
    assert count('"""Prose alone."""\n') == (0, 0)


def sections(node):
    """The sections of a docstring in NumPy's form: title -> names before a colon."""
    found, title = {}, ""
    lines = inspect.cleandoc(ast.get_docstring(node) or "").splitlines()
    for line, following in zip(lines, [*lines[1:], ""]):
        if line and set(following) == {"-"} and len(following) == len(line):
            title = line
            found[title] = []
        elif title and line and not line.startswith((" ", "--")):
            found[title].append(line.partition(" : ")[0])
    return found


def decorators(node):
    """The names of a node's decorators: `dataclass` for `@dataclasses.dataclass()`."""
    for decorator in node.decorator_list:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        yield ast.unparse(called).rpartition(".")[2]


def arguments(function, method=False):
    """A function's arguments, as a docstring names them: `*args` has its star.

    Names that begin with _ are left out: `**_` takes what is not used.
    """
    its = function.args
    plain = [*its.posonlyargs, *its.args]
    if method and "staticmethod" not in decorators(function):
        plain = plain[1:]
    found = {argument.arg: argument for argument in plain}
    if its.vararg:
        found[f"*{its.vararg.arg}"] = its.vararg
    found |= {argument.arg: argument for argument in its.kwonlyargs}
    if its.kwarg:
        found[f"**{its.kwarg.arg}"] = its.kwarg
    return {
        name: argument
        for name, argument in found.items()
        if not argument.arg.startswith("_")
    }


def fields(node):
    """The fields that a data class or a named tuple is made of."""
    bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    if "dataclass" not in decorators(node) and "NamedTuple" not in bases:
        return []
    return [
        item.target.id
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and not item.target.id.startswith("_")
        and "ClassVar" not in ast.unparse(item.annotation)
        and "init=False" not in ast.unparse(item.value or ast.Constant(None))
    ]


def returns_nothing(node):
    """None, or a context manager whose `with` has no `as`."""
    if ast.unparse(node.returns) == "Iterator":
        yields = [part for part in ast.walk(node) if isinstance(part, ast.Yield)]
        return not any(part.value for part in yields)
    return ast.unparse(node.returns) in RETURNS_NOTHING


def function_problems(node, name, method):
    """What is missing in the docstring or the annotations of a public function."""
    its, written = arguments(node, method), sections(node)
    if written.get("Parameters", []) != [*its]:
        yield f"{name} takes {[*its]}, documented: {written.get('Parameters', [])}"
    for argument, found in its.items():
        if found.annotation is None:
            yield f"{name}: {argument} has no type"
    if node.returns is None:
        yield f"{name} does not say what it returns"
    elif not returns_nothing(node):
        is_value = PROPERTIES & {*decorators(node)}
        if not (is_value or {"Returns", "Yields"} & {*written}):
            yield f"{name} has no section Returns"


def class_problems(node, name):
    """The same for a class: of what it is made, and of each public method."""
    written = sections(node)
    inside = {item.name: item for item in node.body if isinstance(item, FUNCTIONS)}
    if "__init__" in inside:
        expected = [*arguments(inside["__init__"], method=True)]
        documented = written.get("Parameters", [])
        for argument, found in arguments(inside["__init__"], method=True).items():
            if found.annotation is None:
                yield f"{name}: {argument} has no type"
    else:
        expected = fields(node)
        attributes = written.get("Attributes", [])
        documented = written.get("Parameters", [])
        documented = documented + [field for field in attributes if field in expected]
    if documented != expected:
        yield f"{name} is made of {expected}, documented: {documented}"
    for method, function in inside.items():
        changes_it = {"setter", "deleter", "overload"} & {*decorators(function)}
        if not method.startswith("_") and not changes_it:
            yield from function_problems(function, f"{name}.{method}", method=True)


def problems(text, module="module"):
    """What the public functions and classes of a module lack."""
    for node in ast.parse(text).body:
        name = f"{module}: {getattr(node, 'name', '')}"
        if getattr(node, "name", "_").startswith("_"):
            continue
        if isinstance(node, ast.ClassDef):
            yield from class_problems(node, name)
        elif "overload" not in decorators(node):
            yield from function_problems(node, name, method=False)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_public_function_documents_exactly_what_it_takes_and_returns(package):
    found = []
    for path in files(package):
        if not path.stem.startswith("_") or path.stem == "__init__":
            module = path.relative_to(ROOT).as_posix()
            found += problems(path.read_text(encoding="utf-8"), module)
    assert not found, "\n".join(found)


GOOD = '''\
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


def add(number: int, /, *others: int, times: int = 1, **names: str) -> int:
    """Add numbers.

    Parameters
    ----------
    number : int
        The first: it has a colon.
    *others : int
        More of them.
    times : int
        How often.
    **names : str
        Not used.

    Returns
    -------
    int
        The sum.
    """


def stop(*_) -> None:
    """Stop."""


@contextmanager
def stopped() -> Iterator[None]:
    """Stop for a while."""


def _hidden(number):
    return number


@dataclass(frozen=True)
class Card:
    """A card.

    Attributes
    ----------
    name : str
        What it is called.
    """

    name: str
    known: list = field(init=False)

    @property
    def first(self) -> str:
        """The first letter."""

    def __len__(self) -> int:
        return 3


class Reader:
    """Read a file.

    Parameters
    ----------
    path : str
        Where it is.
    """

    def __init__(self, path: str):
        self.path = path

    @staticmethod
    def lines(text: str) -> list:
        """Count lines.

        Parameters
        ----------
        text : str
            Some text.

        Yields
        ------
        list
            Each line.
        """
'''
BREAKS = [
    ("number : int", "numbers : int", "add takes"),
    ("*others : int", "others : int", "add takes"),
    ("times : int\n        How often.\n    ", "", "add takes"),
    ("**names : str\n", "**names : str\n        Any.\n    more : str\n", "add takes"),
    ("Parameters\n    ----------\n    number", "Takes\n    -----\n    number", "takes"),
    ("number: int, /", "number, /", "number has no type"),
    ("*others: int", "*others", "*others has no type"),
    ("**names: str", "**names", "**names has no type"),
    ("str) -> int:", "str):", "add does not say what it returns"),
    ("Returns\n    -------", "Gives\n    -----", "add has no section Returns"),
    ("stop(*_) -> None", "stop(*_) -> bool", "stop has no section Returns"),
    ("    name : str\n", "    title : str\n", "Card is made of ['name']"),
    ("    known: list = field(init=False)", "    known: list", "Card is made of"),
    ("@property\n    ", "", "Card.first has no section Returns"),
    ("    path : str\n", "    file : str\n", "Reader is made of ['path']"),
    ("self, path: str", "self, path", "path has no type"),
    ("    text : str\n", "    word : str\n", "Reader.lines takes ['text']"),
    ("Yields\n        ------", "Gives\n        -----", "lines has no section Returns"),
]


def test_what_the_docstrings_are_asked_for():
    assert not list(problems(GOOD))
    for right, wrong, problem in BREAKS:
        assert GOOD.count(right) == 1, right
        [found] = problems(GOOD.replace(right, wrong))
        assert problem in found


def exported(package):
    """The public names of a package: name -> module."""
    names = importlib.import_module(package)._NAMES
    return {name: module for module in names for name in names[module].split()}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_stub_names_what_the_package_exports(package):
    """`__init__.py` fetches names when they are used: an editor sees the stub alone."""
    stub = (ROOT / package / "__init__.pyi").read_text(encoding="utf-8")
    in_stub = {}
    for node in ast.parse(stub).body:
        if isinstance(node, ast.ImportFrom):
            [alias] = node.names
            assert node.level == 1 and alias.asname == alias.name, ast.unparse(node)
            in_stub[alias.name] = node.module
    assert in_stub == exported(package)
    assert sorted(in_stub) == importlib.import_module(package).__all__


def definition(package, name):
    """The file in which an editor finds a public name."""
    code = f"from {package} import {name}\n{name}"
    found = jedi.Script(code, project=PROJECT).goto(2, 1, follow_imports=True)
    assert [definition.name for definition in found] == [name], f"no {name}"
    # A module named as one of Python's own, such as time.py, is not found.
    assert found[0].module_path, found[0].full_name
    return found[0].module_path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("package", PACKAGES)
def test_an_editor_finds_the_definition_of_each_public_name(package):
    for name in exported(package):
        file = definition(package, name)
        assert file.endswith(".py") and not file.endswith("__init__.py"), name


def test_an_editor_shows_train_and_its_parameters():
    assert definition("agnews_helpers", "train") == "agnews_helpers/training.py"
    code = "from agnews_helpers import train\ntrain("
    [signature] = jedi.Script(code, project=PROJECT).get_signatures(2, len("train("))
    expected = [*inspect.signature(agnews_helpers.train).parameters]
    assert [parameter.name for parameter in signature.params] == expected
    assert "Fine-tune" in signature.docstring()
