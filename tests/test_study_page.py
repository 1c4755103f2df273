"""The page of a study as a reader meets it: in a browser, with a mouse, on a phone, in the dark, on paper."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from outlay.report.figures import figures
from outlay.report.results import Results
from outlay.report.seed_means import means
from outlay.report.study_page import render_study
from outlay.report.study_report import StudyReport
from outlay.storage.files import write_text
from tests.browser import Chromium, find_chromium
from tests.made_results import made
from tests.test_report import Reader

needs_browser = pytest.mark.browser
TABLE = "<table><tr><th>Strategy</th><th>Test</th></tr><tr><td>distill</td><td>79.1</td></tr></table>"


def written(folder: Path, results: Results) -> Path:
    """A results folder: the page, and the receipts beside it."""
    for after in results.outputs.values():
        target = folder / "receipts" / f"{after.run}.txt"
        target.parent.mkdir(exist_ok=True)
        target.write_text(after.receipt or "", encoding="utf-8")
    write_text(folder / "report.html", render_study(results, [TABLE], figures(results)))
    return folder / "report.html"


@pytest.fixture(scope="module")
def results() -> Results:
    return made("pool")


@pytest.fixture(scope="module")
def page(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("study"), results)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    executable = find_chromium()
    assert executable is not None
    with Chromium(executable, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def marks(browser: Chromium) -> list[dict[str, Any]]:
    """What the marks of the charts say in the page as it stands in the browser."""
    found: list[dict[str, Any]] = browser.evaluate(
        "[...document.querySelectorAll('.charts a')].map(a => ({href: a.getAttribute('xlink:href'),"
        " label: a.querySelector('path').getAttribute('aria-label'), title: a.querySelector('title').textContent}))"
    )
    return found


@needs_browser
def test_the_values_in_the_chart_are_those_of_the_points(browser: Chromium, page: Path, results: Results) -> None:
    browser.open(page.as_uri())
    said = {mark["href"]: mark["label"] for mark in marks(browser)}
    scored = [mean for mean in means(results) if mean.value is not None]
    assert len(said) == len(scored) == 29
    by_id = {point.id: point for point in results.points}
    for mean in scored:
        seeds = [by_id[each].result for each in mean.ids]
        values = dict(part.split(": ") for part in said[f"#point-{mean.ids[0]}"].split("; ")[1:])
        test = sum(seed.test or 0.0 for seed in seeds) / len(seeds)
        charge = sum(seed.charge_usd for seed in seeds) / len(seeds)
        assert float(values["test"]) == pytest.approx(test, abs=0.005)
        assert float(values["charge"].lstrip("$").replace(",", "")) == pytest.approx(charge, abs=0.005)
        assert values["seeds"] == "3"
    assert all(mark["title"] == mark["label"] for mark in marks(browser))


@needs_browser
def test_a_click_on_a_mark_leads_to_its_point_and_on_to_its_receipt(
    browser: Chromium, page: Path, results: Results
) -> None:
    browser.open(page.as_uri())
    browser.resize(1280, 900)
    mean = [each for each in means(results) if each.value is not None][4]
    row = f"#point-{mean.ids[0]}"
    browser.click(f'.charts a[*|href="{row}"] path')
    browser.wait(f"location.hash === {json.dumps(row)}")
    assert browser.evaluate(f"document.querySelector({json.dumps(row)}).matches(':target')")

    run = results.outputs[mean.ids[0]].run
    shown = f"document.getElementById('receipt-{run}')"
    assert browser.evaluate(f"{shown}.closest('details').open") is False
    browser.click(f'{row} a[href="#receipt-{run}"]')
    browser.wait(f"location.hash === '#receipt-{run}'")
    browser.wait(f"{shown}.closest('details').open")
    assert browser.evaluate(f"{shown}.innerText").strip() == (results.outputs[mean.ids[0]].receipt or "").strip()
    top, height = browser.evaluate(f"[{shown}.getBoundingClientRect().top, innerHeight]")
    assert 0 <= top < height


@needs_browser
def test_a_receipt_is_a_file_beside_the_page_too(browser: Chromium, page: Path, results: Results) -> None:
    browser.open(page.as_uri())
    point = results.points[7]
    after = results.outputs[point.id]
    browser.click(f'#point-{point.id} a[href="receipts/{after.run}.txt"]')
    browser.wait("location.href.endsWith('.txt') && document.readyState === 'complete'")
    assert browser.evaluate("document.body.innerText").strip() == (after.receipt or "").strip()


@needs_browser
@pytest.mark.parametrize(("width", "is_dark"), [(390, False), (390, True), (1280, False)])
def test_nothing_leaves_the_screen_and_words_can_be_read(
    browser: Chromium, page: Path, width: int, is_dark: bool
) -> None:
    browser.resize(width, 900, is_dark=is_dark)
    browser.open(page.as_uri())
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    # Beside what scrolls in a frame of its own.
    assert browser.evaluate(WIDER) == []
    smallest = browser.evaluate(
        "Math.min(...[...document.querySelectorAll('.charts svg text')].filter(t => t.textContent)"
        ".map(t => parseFloat(t.getAttribute('font-size')) * Math.hypot(t.getScreenCTM().a, t.getScreenCTM().b)))"
    )
    assert smallest > 9.5
    dark, ink = browser.evaluate(
        "[getComputedStyle(document.body).backgroundColor,"
        " getComputedStyle(document.querySelector('.charts svg text')).fill]"
    )
    assert (brightness(dark) < 40) == is_dark
    assert abs(brightness(dark) - brightness(ink)) > 100


WIDER = (
    "[...document.body.querySelectorAll('*')].filter(e => !e.closest('svg, .wide > *, pre'))"
    ".filter(e => e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 80))"
)
"""What is wider than the window, as a JavaScript expression."""


@needs_browser
def test_a_phone_shows_the_names_and_the_scores_of_a_wide_table(browser: Chromium, tmp_path: Path) -> None:
    report = StudyReport(made("plain", tasks=("fever",), missing=False))
    (tmp_path / "report.html").write_text(report.page(), encoding="utf-8")
    browser.resize(390, 900)
    browser.open((tmp_path / "report.html").as_uri())
    assert browser.evaluate(WIDER) == []
    column = [column.text for column in report.tables[0].columns].index("Test") + 2
    assert (
        browser.evaluate(f"document.querySelector('.laid tbody td:nth-child({column})').getBoundingClientRect().right")
        <= 390
    )
    left = "document.querySelector('.laid tbody th').getBoundingClientRect().left"
    before = browser.evaluate(left)
    browser.evaluate("document.querySelector('.wide').scrollLeft = 200")
    assert browser.evaluate("document.querySelector('.wide').scrollLeft") > 100
    assert browser.evaluate(left) == before
    assert browser.evaluate("parseFloat(getComputedStyle(document.querySelector('.verdict')).fontSize)") >= 18


def brightness(color: str) -> float:
    """Mean of red, green and blue, 0-255, of a computed colour."""
    return sum(map(int, re.findall(r"\d+", color)[:3])) / 3


@needs_browser
def test_the_keyboard_reaches_every_mark_and_shows_where_it_is(browser: Chromium, page: Path) -> None:
    browser.resize(1280, 900)
    browser.open(page.as_uri())
    for kind in ("keyDown", "keyUp"):
        browser.send("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    browser.wait("document.activeElement.matches('.charts a')")
    focused = "getComputedStyle(document.activeElement.querySelector('path'))"
    assert browser.evaluate(f"{focused}.strokeWidth") == "3px"


@needs_browser
def test_on_paper_folded_receipts_and_links_are_left_out(browser: Chromium, page: Path, tmp_path: Path) -> None:
    browser.resize(794, 1123, media="print")
    browser.open(page.as_uri())
    assert browser.evaluate("document.documentElement.scrollWidth") <= 794
    hidden = "[...document.querySelectorAll('.receipts details, .points .link')].every(e => e.offsetParent === null)"
    assert browser.evaluate(hidden)
    assert browser.print(tmp_path / "report.pdf").read_bytes().startswith(b"%PDF-")
    browser.resize(794, 1123)


def test_the_page_is_one_file_whose_links_lead_somewhere(page: Path, results: Results) -> None:
    reader = Reader()
    html = page.read_text(encoding="utf-8")
    reader.feed(html)
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "img", "iframe", "object"}
    ids = [attributes["id"] for _, attributes in reader.tags if attributes.get("id")]
    assert len(set(ids)) == len(ids)
    links = [attributes.get("href") or attributes.get("xlink:href") for tag, attributes in reader.tags if tag == "a"]
    for link in filter(None, links):
        assert link.removeprefix("#") in ids if link.startswith("#") else (page.parent / link).is_file()
    assert all(attributes.get("src") is None for _, attributes in reader.tags)
    assert "@import" not in html
    assert "url(" not in html
    assert TABLE in html
    header = results.header
    assert header.command is not None
    for text in (
        header.title,
        header.command,
        *header.notes,
        "90 (87 ok, 3 na)",
        "needs $412.00 for <the> teacher | pool",
    ):
        assert text in reader.text
    for after in results.outputs.values():
        assert after.receipt is not None
        assert after.receipt in reader.text


def test_the_page_begins_with_what_to_do(results: Results) -> None:
    report = StudyReport(results)
    model = ["model: out/model (distill, seed 0)", "predict: outlay predict out --file new.csv"]
    html = unescape(report.page(model))
    (first, *others) = report.summaries
    order = [
        "<h1>",
        first.sentence.replace(" ± ", "\u00a0±\u00a0"),
        first.lines[0],
        others[-1].sentence.replace(" ± ", "\u00a0±\u00a0"),
        "out/model (distill, seed 0)",
        "outlay predict out --file new.csv",
        "<h2>Tables</h2>",
        "<h2>Figures</h2>",
        "<h2>How it was made</h2>",
        str(results.header.command),
        results.header.notes[0],
        "<h2>Points</h2>",
        "<h2>Receipts</h2>",
    ]
    places = [html.index(text) for text in order]
    assert places == sorted(places)
    assert "out/model" not in report.page()


def test_what_all_points_share_is_said_once() -> None:
    results = made("plain", tasks=("fever",), missing=False)
    html = StudyReport(results).page()
    assert "All: fever, N = 1,000." in html
    names = re.findall(r'<td class="name">([^<]*)</td>', html)
    assert len(set(names)) == len(results.points)
    assert not [name for name in names if "fever" in name or "N = " in name]


def test_a_page_without_figures_and_tables_has_its_receipts(results: Results) -> None:
    html = render_study(results, [], {})
    assert html.count("<details>") == len(results.points)
    assert "nothing to draw" in html
    assert "<h2>Tables</h2>" not in html


def test_many_points_keep_their_receipts_in_files_alone(tmp_path: Path) -> None:
    many = made("pool", n_seeds=11)
    assert len(many.points) == 330
    html = written(tmp_path, many).read_text(encoding="utf-8")
    assert "<details" not in html
    for after in many.outputs.values():
        assert f'<a href="receipts/{after.run}.txt">' in html
    assert html.count('<tr id="point-') == 330
    assert '"#receipt-' not in html
