"""The report in a real Chromium: nothing is fetched, nothing runs, nothing overflows. Screenshots are kept.

Set ALIGNKIT_SCREENSHOTS to a folder to look at them.
"""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from evaluation.suites.report import STAGE, ReportConfig

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as engine:
        found = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def pages(lifecycle, hostile_lifecycle, tmp_path_factory):
    """name -> address of the report of the plain and of the hostile lifecycle."""
    found = {}
    for name, root in (("plain", lifecycle), ("hostile", hostile_lifecycle)):
        out = tmp_path_factory.mktemp(name)
        job = SimpleNamespace(runtime=SimpleNamespace(is_main=True), output_dir=out, say=lambda text: None)
        STAGE.run(ReportConfig(output_dir=str(out), inputs=[str(root)], title="Docstrings and digits", show=False), job)
        found[name] = (out / "index.html").as_uri()
    return found


def open_page(browser, address, width, scheme="light"):
    """(page, what happened that must not: requests, console lines, dialogs, errors)."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, events = context.new_page(), []
    page.on("request", lambda r: events.append(r.url) if r.url != address and not r.url.startswith("data:") else None)
    page.on("console", lambda message: events.append(message.text))
    page.on("pageerror", lambda error: events.append(str(error)))
    page.on("dialog", lambda dialog: (events.append(dialog.message), dialog.dismiss()))
    page.goto(address)
    page.wait_for_timeout(200)
    return page, events


def keep(page, name):
    folder = os.environ.get("ALIGNKIT_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page="hostile" not in name)


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [
        ("plain", 320, "light"),
        ("plain", 768, "light"),
        ("plain", 1280, "light"),
        ("plain", 1280, "dark"),
        ("plain", 1920, "light"),
        ("hostile", 320, "light"),
        ("hostile", 1280, "light"),
    ],
)
def test_nothing_leaves_runs_or_overflows(browser, pages, name, width, scheme):
    page, events = open_page(browser, pages[name], width, scheme)
    page.eval_on_selector_all("details", "all => all.forEach(d => d.open = true)")
    assert events == []
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.scripts.length") == 0
    assert (
        page.evaluate("performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length") == 0
    )
    page.eval_on_selector_all("details", "all => all.forEach(d => d.open = false)")
    keep(page, f"report-{name}-{width}-{scheme}")
    page.context.close()


def test_the_style_is_applied_under_its_policy(browser, pages):
    page, _ = open_page(browser, pages["plain"], 1280)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(250, 249, 246)"
    assert page.evaluate("getComputedStyle(document.querySelector('.dot')).strokeWidth") == "8px"
    dark, _ = open_page(browser, pages["plain"], 1280, "dark")
    assert dark.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 25)"


def test_text_has_enough_contrast(browser, pages):
    """WCAG AA, 4.5 to 1, for every colour of text on the paper, in both schemes."""
    script = """() => {
      const numbers = c => c.match(/[\\d.]+/g).map(Number);
      const light = c => { const [r, g, b] = numbers(c).map(v => v / 255).map(
        v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
      const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
        const n = numbers(c); if (n.length < 4 || n[3] > 0) return c; } return 'rgb(255,255,255)'; };
      let worst = 21, where = '';
      for (const e of document.querySelectorAll('p,span,th,td,b,a,dt,dd,h1,h2,h3,li,summary,caption')) {
        if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
        const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
        const ratio = (a + .05) / (b + .05); if (ratio < worst) { worst = ratio; where = e.outerHTML.slice(0, 80); } }
      return [worst, where]; }"""
    for scheme in ("light", "dark"):
        page, _ = open_page(browser, pages["plain"], 1280, scheme)
        worst, where = page.evaluate(script)
        assert worst >= 4.5, where


def test_keyboard_and_names(browser, pages):
    page, _ = open_page(browser, pages["plain"], 1280)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    summary = page.locator("#lineage summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator("#lineage details").first.get_attribute("open") is not None
    assert page.get_by_role("navigation", name="Contents").get_by_role("link").count() >= 9
    assert page.get_by_role("table").first.get_by_role("columnheader").count() == 7
    assert page.evaluate("[...document.querySelectorAll('[role=region]')].every(e => e.ariaLabel)")


def test_small_screens_keep_the_table_readable(browser, pages):
    page, _ = open_page(browser, pages["plain"], 320)
    row = page.locator(".board tbody tr").first
    label = row.locator("td").first.evaluate("e => getComputedStyle(e, '::before').content")
    assert label == '"Win rate ↑"'
    assert row.get_by_role("cell").count() == 6 and page.get_by_role("row").count() > 6
    sizes = page.evaluate(
        "[...document.querySelectorAll('.board .small')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 12
