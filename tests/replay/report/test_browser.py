"""The page in a real browser: it complains of nothing, fetches nothing, sorts, answers, fits."""

from __future__ import annotations

import pytest

from replay.report import write
from tests.helpers.browser import Browser, program
from tests.replay.report.test_page import HOSTILE, studied

pytestmark = pytest.mark.skipif(
    program() is None, reason="there is no Chromium here; .ci/run installs one where it may"
)
NAMED = "document.querySelector('[aria-label^=\"proponents\"] table')"
COLUMN = f"[...{NAMED}.tBodies[0].rows].map(row => Number(row.cells[1].dataset.value))"
HEAD = f"{NAMED}.tHead.rows[0].cells[1]"
DOT = """(() => {
  const figure = document.querySelector("figure.dots"), svg = figure.querySelector("svg");
  svg.scrollIntoView();
  const dots = JSON.parse(figure.querySelector("script").textContent);
  const box = svg.getBoundingClientRect(), scale = box.width / dots.size[0];
  const n = dots.a.indexOf(Math.max(...dots.a));
  return [box.left + dots.x[n] * scale, box.top + dots.y[n] * scale, dots.a[n], dots.b[n]];
})()"""
OUTSIDE = """[...document.querySelectorAll("body *")].filter(
  (one) => one.getBoundingClientRect().right > innerWidth + 1 && !one.closest(".scroll")
).map((one) => one.outerHTML.slice(0, 80))"""
INK = "getComputedStyle(document.querySelector('figure svg text')).fill"
PAPER = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    place = tmp_path_factory.mktemp("page") / "run.html"
    study = studied(lambda k: f"{HOSTILE} {'long' * 30} {k}" if k == 3 else f"example {k}")
    write(study, place, overwrite=False)
    return place


def luminance(colour):
    """Return the brightness of "rgb(r, g, b)", by WCAG 2."""
    parts = [int(part) / 255 for part in colour.strip("rgb()").split(",")[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1200])
def test_it_loads_quietly_and_fits(browser, path, width, scheme):
    browser.open(path, width=width, scheme=scheme)
    assert browser.value("document.querySelectorAll('figure svg').length") > 8
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value(OUTSIDE) == []
    ink, paper = (luminance(browser.value(what)) for what in (INK, PAPER))
    assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 7
    assert (paper > 0.5) == (scheme == "light")
    assert browser.complaints() == []
    assert browser.requests() == [path.as_uri()]


def test_tables_sort(browser, path):
    browser.open(path, width=1200)
    before = browser.value(COLUMN)
    assert len(before) > 1
    browser.value(f"{HEAD}.querySelector('button').click()")
    assert browser.value(COLUMN) == sorted(before, reverse=True)
    assert browser.value(f"{HEAD}.getAttribute('aria-sort')") == "descending"
    browser.value(f"{HEAD}.querySelector('button').click()")
    assert browser.value(COLUMN) == sorted(before)
    assert browser.complaints() == []


def test_dots_answer(browser, path):
    browser.open(path, width=1200)
    assert browser.value("document.getElementById('tip').hidden")
    x, y, a, b = browser.value(DOT)
    browser.mouse("mouseMoved", x + 2, y - 1)
    said = browser.value("document.getElementById('tip').textContent").splitlines()
    assert said[0].startswith("training example ")
    assert said[1].startswith("test example ")
    assert [float(line.split(": ")[1].replace("−", "-")) for line in said[2:]] == [
        pytest.approx(value, rel=1e-3) for value in (a, b)
    ]
    browser.mouse("mouseMoved", 1, 1)
    assert browser.value("document.getElementById('tip').hidden")
    assert browser.complaints() == []


def test_it_prints(browser, path):
    browser.open(path, width=800, scheme="dark")
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert luminance(browser.value(PAPER)) == 1
    assert luminance(browser.value(INK)) < 0.01
    assert browser.value("getComputedStyle(document.querySelector('nav')).display") == "none"
    printed = browser.call("Page.printToPDF", printBackground=True)
    assert len(printed["data"]) > 20_000
