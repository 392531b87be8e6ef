"""The exported pages on a phone, in the light and in the dark theme."""

import shutil
from pathlib import Path

import nbformat
import pytest

from agnews_helpers import running

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL_LETTERS = """[...document.querySelectorAll('main *')]
    .filter(it => it.children.length === 0 && it.innerText?.trim())
    .filter(it => it.tagName !== 'SUP' && it.offsetWidth)
    .filter(it => parseFloat(getComputedStyle(it).fontSize) < 10)
    .map(it => it.innerText)"""
CONTRAST = """() => {
    const channel = value => {
        const share = value / 255
        return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4
    }
    const light = colour => {
        const [red, green, blue] = colour.match(/[\\d.]+/g).map(Number).map(channel)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue
    }
    const ratio = element => {
        let under = element
        while (getComputedStyle(under).backgroundColor === 'rgba(0, 0, 0, 0)')
            under = under.parentElement
        const pair = [getComputedStyle(element).color,
                      getComputedStyle(under).backgroundColor].map(light)
        return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05)
    }
    return [...document.querySelectorAll('main *')]
        .filter(it => it.children.length === 0 && it.innerText?.trim())
        .filter(it => ratio(it) < 4.5).map(it => it.innerText.slice(0, 60))}"""


@pytest.fixture(scope="session")
def pages(tmp_path_factory):
    """The stored notebooks as pages, in the folder where they find their pictures."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copytree(ROOT / "notebooks" / "pictures", folder / "pictures")
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        running._save_page(notebook, folder / f"{path.stem}.html")
    return folder


@pytest.fixture(params=["light", "dark"])
def phone(request, browser):
    page = browser.new_page(
        viewport={"width": 380, "height": 800}, color_scheme=request.param
    )
    yield page
    page.close()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_page_can_be_read_on_a_phone(path, pages, phone):
    asked, complaints = [], []
    phone.on("request", lambda request: asked.append(request.url))
    phone.on("requestfailed", lambda request: complaints.append(request.url))
    phone.on("console", lambda message: complaints.append(message.text))
    phone.on("pageerror", lambda error: complaints.append(str(error)))
    phone.goto((pages / f"{path.stem}.html").as_uri())
    assert not complaints
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
    assert phone.evaluate("document.documentElement.scrollWidth") <= 380
    assert phone.evaluate(
        "[...document.images].every(it => it.naturalWidth && it.width <= 380)"
    )
    assert not phone.evaluate("[...document.images].some(it => it.alt.length < 40)")
    assert not phone.evaluate("[...document.querySelectorAll('details[open]')].length")
    assert phone.evaluate(SMALL_LETTERS) == []
    assert phone.evaluate(CONTRAST) == []
