"""The report in a real Chromium: it sorts, filters and opens samples; nothing is fetched, nothing foreign runs, nothing overflows.

Screenshots are kept in the folder `screenshots` of pytest's base temporary folder; with ALIGNKIT_SCREENSHOTS in that one, and
some of them of the whole page.
"""

import os
import re
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
        found = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
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
    viewport = {"width": width, "height": 1150 if width > 600 else 844}
    context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
    page, events = context.new_page(), []
    page.on("request", lambda r: events.append(r.url) if r.url != address and not r.url.startswith("data:") else None)
    page.on("console", lambda message: events.append(message.text))
    page.on("pageerror", lambda error: events.append(str(error)))
    page.on("dialog", lambda dialog: (events.append(dialog.message), dialog.dismiss()))
    page.goto(address)
    page.wait_for_timeout(200)
    return page, events


@pytest.fixture(scope="module")
def keep(tmp_path_factory):
    """Keep a screenshot under a name."""
    asked = os.environ.get("ALIGNKIT_SCREENSHOTS")
    folder = Path(asked or tmp_path_factory.getbasetemp() / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)

    def save(page, name, whole=False):
        page.screenshot(path=str(folder / f"{name}.png"), full_page=whole and asked is not None)

    return save


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
def test_nothing_leaves_runs_or_overflows(browser, pages, keep, name, width, scheme):
    page, events = open_page(browser, pages[name], width, scheme)
    page.eval_on_selector_all("details", "all => all.forEach(d => d.open = true)")
    assert events == []
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    run = page.evaluate("[...document.scripts].filter(s => s.type !== 'application/json').length")
    assert run == 1 and page.evaluate("document.scripts[document.scripts.length - 1].src") == ""
    assert (
        page.evaluate("performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length") == 0
    )
    page.eval_on_selector_all("details", "all => all.forEach(d => d.open = false)")
    keep(page, f"report-{name}-{width}-{scheme}", whole=name == "plain")
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


# ---------------------------------------------------------------------------------------------- leaderboards


@pytest.fixture
def board(browser, pages):
    """The first leaderboard at work: (page, its section, what must not happen)."""
    page, events = open_page(browser, pages["plain"], 1280)
    yield page, page.locator("#language-models"), events
    assert events == []
    page.context.close()


def names(section, table=0):
    rows = section.locator("table.board").nth(table).locator("tbody tr:not([hidden])")
    return rows.evaluate_all("rows => rows.map(r => r.dataset.name)")


def test_sort_by_clicks(board):
    _, section, _ = board
    assert names(section) == ["ppo", "dpo", "pretrain", "sft"]
    head = section.get_by_role("columnheader", name="Bits per byte")
    button = head.get_by_role("button")
    button.click()
    assert names(section) == ["pretrain", "sft", "ppo", "dpo"] and head.get_attribute("aria-sort") == "ascending"
    button.click()
    assert names(section) == ["dpo", "ppo", "sft", "pretrain"] and head.get_attribute("aria-sort") == "descending"
    button.click()
    assert names(section) == ["ppo", "dpo", "pretrain", "sft"] and head.get_attribute("aria-sort") is None


def test_rows_without_a_number_stay_last(board):
    _, section, _ = board
    for order in ("best first", "worst first"):
        section.get_by_label("Sort by").select_option(label=f"Win rate, {order}")
        assert names(section)[2:] == ["pretrain", "sft"]
    assert names(section)[0] == "dpo"


def test_find_rows_and_metrics(board, keep):
    page, section, _ = board
    section.get_by_label("Find a row").fill("P")
    assert names(section) == ["ppo", "dpo", "pretrain"] and section.get_by_role("status").inner_text() == "3 of 4 rows"
    assert section.locator(".marks li:visible", has_text="sft").count() == 0
    section.get_by_label("Find a metric").fill("refusal")
    assert section.get_by_role("columnheader", name="Over-refusal").is_visible()
    assert not section.get_by_role("columnheader", name="Bits per byte").is_visible()
    assert section.locator("figure:visible").count() == 1
    keep(page, "leaderboard-filtered")
    for label in ("Find a row", "Find a metric"):
        section.get_by_label(label).fill("")
    assert len(names(section)) == 4 and section.get_by_role("status").inner_text() == ""


def test_choose_rows(browser, pages):
    page, events = open_page(browser, pages["plain"], 1280)
    images = page.locator("#image-generators")
    assert len(names(images)) == 5
    images.get_by_label("Rows").select_option(label="without yardsticks")
    assert names(images) == ["diffusion", "gan", "vae"]
    images.get_by_label("Rows").select_option(label="of the first group")
    assert names(images) == ["diffusion"] and events == []


def test_another_baseline(board):
    page, _, _ = board
    part = page.locator("#language-models-differences")
    assert part.locator("h3").inner_text() == "Language models less sft"
    part.get_by_role("combobox", name="Baseline").select_option(label="dpo")
    assert part.locator("h3").inner_text() == "Language models less dpo"
    cells = part.locator("tbody tr", has_text="Win rate").first.locator("th, td").all_inner_texts()
    assert cells[0] == "ppo" and cells[2].startswith("+8.0 points") and cells[6] in ("better", "not told apart")
    assert part.locator("tbody th").evaluate_all("all => all.every(e => e.textContent !== 'dpo')")


def test_a_value_leads_to_its_method_and_protocol(board):
    page, section, _ = board
    section.get_by_role("link", name="66.0").first.click()
    entry = page.locator("#numbers details[open]")
    assert entry.count() == 1 and "wilson" in entry.inner_text() and "protocol: judge" in entry.inner_text()


# ---------------------------------------------------------------------------------------------- samples


@pytest.fixture
def viewer(browser, pages):
    page, events = open_page(browser, pages["plain"], 1280)
    yield page
    assert events == []
    page.context.close()


def found(page):
    return int(page.locator("#viewer-count").inner_text().split()[0].replace(",", ""))


def test_filter_and_open_samples(viewer, keep):
    page = viewer
    assert found(page) == 400 and page.locator("#viewer-list button").count() == 25
    page.get_by_label("Show").select_option(label="wrong")
    assert found(page) == 136
    page.locator("#viewer-list button").nth(3).click()
    assert page.locator("#viewer-place").inner_text().startswith("Sample 4 of 136")
    assert page.locator("#viewer-answers .answer").first.inner_text().startswith("ppo ✗ wrong")
    page.locator("#samples").scroll_into_view_if_needed()
    keep(page, "sample-viewer")
    page.get_by_label("Show").select_option(label="right")
    assert found(page) == 264


def test_figures_wrap_inside_their_card(viewer):
    page = viewer
    over = """text => [...document.querySelectorAll('#viewer-answers .answer')].map(card => {
        const head = card.querySelector('header > span'), range = document.createRange();
        if (text) head.textContent = text;
        range.selectNodeContents(head);
        return range.getBoundingClientRect().right - card.getBoundingClientRect().right;
    })"""
    for text in ("", "reward -0.60, outcome 0.00, 15 tokens, " * 3, "reward -0." + "6" * 80):
        assert max(page.evaluate(over, text)) <= 0, text
    page.reload()


def test_long_numbers_stay_beside_their_whisker(browser, pages):
    page, _ = open_page(browser, pages["plain"], 1280)
    over = """([value, interval]) => [...document.querySelectorAll('.marks .what')].filter(e => e.checkVisibility()).map(e => {
        e.firstChild.data = value + ' ';
        e.querySelector('i').textContent = interval;
        const box = e.getBoundingClientRect(), range = document.createRange();
        range.selectNodeContents(e);
        const text = range.getBoundingClientRect();
        return Math.max(box.left - text.left, text.right - box.right);
    })"""
    for numbers in (
        ["0.45", "[0.41, 0.49]"],
        ["\u22120.00016", "[\u22120.00056, 0.00024]"],
        ["1" * 40, f"[{'1' * 40}, 2]"],
    ):
        found = page.evaluate(over, numbers)
        assert len(found) > 20 and max(found) <= 0.5, numbers


def test_disagreement_of_two_models_side_by_side(viewer):
    page = viewer
    page.get_by_label("beside").select_option(label="dpo")
    page.get_by_label("Show").select_option(label="where the two disagree")
    apart = found(page)
    page.get_by_label("Show").select_option(label="both wrong")
    both = found(page)
    heads = page.locator("#viewer-answers .answer header b").all_inner_texts()
    assert heads == ["ppo ✗ wrong", "dpo ✗ wrong", "reference"]
    assert apart == 136 + 168 - 2 * both  # 34 % and 42 % of 400 are wrong
    page.get_by_label("beside").select_option(label="nobody")
    page.get_by_label("Show").select_option(label="all")
    assert page.locator("#viewer-answers .answer").count() == 2


def test_categories_and_text(viewer):
    page = viewer
    page.get_by_label("Evaluation").select_option(index=1)
    total = found(page)
    page.locator("#viewer").get_by_label("Category").select_option(label="privacy")
    assert 100 < found(page) < total and "privacy" in page.locator("#viewer-place").inner_text()
    page.get_by_label("Evaluation").select_option(index=0)
    page.get_by_label("Find text").fill("GET_ITEM(self, name):  # 24")
    assert found(page) == 2  # 24 and 240
    page.get_by_label("Find text").fill("no such text")
    assert found(page) == 0 and not page.locator("#viewer-sample").is_visible()


def test_order_by_score(viewer):
    page = viewer

    def first_reward():
        figures = page.locator("#viewer-answers .answer header > span").first.inner_text()
        return float(figures.split()[1].rstrip(",").replace("\u2212", "-"))

    page.get_by_label("Order").select_option(label="lowest score first")
    low = first_reward()
    page.get_by_label("Order").select_option(label="highest score first")
    assert low < 0 < first_reward()


def test_samples_by_keyboard(viewer):
    page = viewer
    page.locator("#viewer-list button").first.focus()
    for key in ("ArrowDown", "ArrowDown", "PageDown"):
        page.keyboard.press(key)
    assert page.locator("#viewer-place").inner_text().startswith("Sample 28 of 400")
    assert (
        page.evaluate("document.activeElement.dataset.index") == "27"
        and "page 2 of 16" in page.locator("#viewer-count").inner_text()
    )
    page.get_by_role("button", name="Previous sample").press("Enter")
    assert page.locator("#viewer-place").inner_text().startswith("Sample 27 of 400")
    page.get_by_role("button", name="Later page").press("Enter")
    assert page.locator("#viewer-place").inner_text().startswith("Sample 51 of 400")


def test_hostile_samples_are_text(browser, pages):
    page, events = open_page(browser, pages["hostile"], 1280)
    leaf = """() => {
      const next = document.querySelector('#viewer-next'), made = [];
      for (let seen = 0; seen < 20; seen++) {
        made.push(document.querySelectorAll('#viewer-sample :is(script, img, iframe, svg, a, link, meta, base)').length);
        if (next.disabled) break;
        next.click();
      }
      return made;
    }"""
    count = page.locator("#viewer-set option").count()
    for index in range(count):
        page.get_by_label("Evaluation").select_option(index=index)
        made = page.evaluate(leaf)
        assert len(made) > 1 and not any(made)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert page.evaluate("window.pwned") is None and events == []


A4 = 718
"""CSS pixels between margins of a centimetre on a page 21 centimetres wide."""


@pytest.mark.parametrize("name", ["plain", "hostile"])
def test_print_has_numbers_and_no_tools(browser, pages, keep, name):
    """Nothing is cut off at the paper's edge, also with long names; every cell of a wide table says its column."""
    page, _ = open_page(browser, pages[name], A4)
    page.emulate_media(media="print")
    assert not page.locator(".tools").first.is_visible() and not page.locator("#viewer").is_visible()
    assert page.get_by_role("table").first.is_visible()
    cut = """all => all.filter(e => e.scrollWidth > e.clientWidth).map(e => [e.ariaLabel, e.clientWidth, e.scrollWidth])"""
    assert page.locator(".scroll").evaluate_all(cut) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= A4
    unnamed = (
        """all => all.filter(e => e.checkVisibility() && getComputedStyle(e, '::before').content === 'none').length"""
    )
    wide = page.locator(".board.wide td")
    assert wide.count() > 20 and wide.evaluate_all(unnamed) == 0
    keep(page, f"print-{name}", whole=name == "plain")


def test_print_keeps_badges_and_keys_and_is_short(browser, pages):
    """Badges and the dots of keys are backgrounds, which a printer leaves out unless told; configurations stay folded."""
    page, _ = open_page(browser, pages["plain"], A4, "dark")
    page.emulate_media(media="print")
    kept = "all => all.every(e => getComputedStyle(e).printColorAdjust === 'exact')"
    for kind in (".rank", ".chip"):
        assert page.locator(kind).count() > 5 and page.locator(kind).evaluate_all(kept)
    badge = page.locator(".rank.first").first.evaluate(
        "e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]"
    )
    assert badge == ["rgb(255, 255, 255)", "rgb(13, 95, 103)"]  # of the light scheme, whatever the screen has
    paper = page.pdf(format="A4", margin={side: "1cm" for side in ("top", "bottom", "left", "right")})
    assert len(paper) > 50_000 and len(re.findall(rb"/Type\s*/Page\b", paper)) < 40


def test_without_its_script_the_page_still_reads(browser, pages):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["plain"])
    assert page.get_by_role("table").first.is_visible() and not page.locator(".tools").first.is_visible()
    assert page.locator("#language-models-differences tbody tr").count() > 5
    assert not page.locator("#viewer").is_visible()
    context.close()


def test_phone(browser, pages, keep):
    page, events = open_page(browser, pages["plain"], 390)
    page.locator("#language-models").evaluate("e => e.scrollIntoView()")
    page.locator("#language-models").get_by_label("Sort by").select_option(label="Bits per byte, best first")
    assert names(page.locator("#language-models"))[0] == "pretrain"
    keep(page, "phone-leaderboard")
    page.locator("#samples").evaluate("e => e.scrollIntoView()")
    page.get_by_label("Show").select_option(label="wrong")
    page.locator("#viewer-list button").nth(1).click()
    keep(page, "phone-samples")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390 and events == []


def test_robustness_curves_are_drawn_and_told(browser, pages, keep):
    page, events = open_page(browser, pages["plain"], 1280)
    section = page.locator("#robustness")
    assert section.locator("figcaption").all_inner_texts() == ["JPEG quality", "Blur, sigma in pixels"]
    assert section.locator("ul.key li").all_inner_texts() == ["diffusion", "gan", "vae"]
    figure = section.locator("figure").first
    assert figure.locator("polyline").count() == 3 and figure.locator(".dot").count() == 9
    svg = figure.locator("svg").bounding_box()
    assert svg["width"] > 150 and svg["height"] > 100
    ticks = figure.locator(".x span")
    assert ticks.all_inner_texts() == ["none", "95", "50"]
    for place in range(3):  # each label stands below its points
        box = ticks.nth(place).bounding_box()
        middle = svg["x"] + svg["width"] * (place + 0.5) / 3
        assert abs(box["x"] + box["width"] / 2 - middle) < 2
    section.locator("summary").click()
    cells = section.get_by_role("row").nth(1).inner_text().split("\t")
    assert cells[0] == "none" and cells[3].startswith("0.97 [0.94, 0.99]")
    section.scroll_into_view_if_needed()
    keep(page, "robustness")
    narrow, _ = open_page(browser, pages["plain"], 320)
    narrow.locator("#robustness").scroll_into_view_if_needed()
    keep(narrow, "robustness-320")
    assert events == []
