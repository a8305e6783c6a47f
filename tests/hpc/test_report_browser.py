"""report.html in a browser: Debian's headless Chromium, one session for all, with no network. How it looks was judged by eye.

The page itself carries bokeh's script, which runs here under the page's own policy.
"""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from fake_sweep import FakeSweep

from hpc import report
from hpc.comparison import compare
from hpc.gather import gather
from seresnet.config import ModelConfig

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("chromium and chromium-driver (Debian's packages) are not installed", allow_module_level=True)

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--window-size=1280,900",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
ARMS = {"baseline": ModelConfig(width=16)} | {f"se r{r}": ModelConfig(width=16, attention="se", reduction=r) for r in (2, 10)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in FLAGS:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(20)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sweep of three arms, of which one run failed."""
    sweep = FakeSweep(tmp_path_factory.mktemp("page"), arms=ARMS, seeds=2, epochs=40)
    for arm, seed, accuracy in (("baseline", 0, 90.0), ("baseline", 1, 90.2), ("se r2", 0, 91.5), ("se r2", 1, 91.1), ("se r10", 0, 90.7)):
        sweep.finish(arm, seed, last_test_top1_pct=accuracy)
    sweep.attempt("se r10", 1, "crashed", "RuntimeError: boom")
    gathered = gather([sweep.folder.path])
    return report.write(compare(gathered), sweep.folder.path).as_uri()


@pytest.fixture
def page(browser: Any, address: str) -> Any:
    """The page, loaded anew and drawn."""
    browser.get(address)
    wait_for(browser, "document.documentElement.dataset.ready === 'yes'")
    return browser


def wait_for(browser: Any, claim: str) -> None:
    """Until it is true, or the browser's own limit for scripts has passed."""
    browser.execute_async_script(f"const done = arguments[0]; (function look() {{ {claim} ? done() : setTimeout(look, 20) }})()")


def click(page: Any, selector: str) -> None:
    page.execute_script("document.querySelector(arguments[0]).click()", selector)


def column(page: Any, number: int) -> list[str]:
    return page.execute_script(
        "return [...document.querySelectorAll('#results tbody tr')].map(r => r.children[arguments[0]].innerText.trim())", number
    )


def shown(page: Any, arm: int) -> set[bool]:
    """Whether the arm's means are drawn, over all figures."""
    script = (
        "const isMean = model => (model.tags || []).includes('arm' + arguments[0]) && model.tags.includes('mean');"
        "return [...Bokeh.documents[0].all_models].filter(isMean).map(model => model.visible)"
    ).replace("arguments[0]", str(arm))
    return set(page.execute_script(script))


def test_it_loads_without_an_error_and_fetches_nothing(page: Any) -> None:
    errors = [entry for entry in page.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert errors == []
    fetched = page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in fetched if not name.startswith("data:")] == []
    canvases = page.execute_script("return [...document.querySelectorAll('[id^=plot-]')].map(e => e.getBoundingClientRect().height > 100)")
    assert len(canvases) == 6 and all(canvases), canvases


def test_the_policy_stops_a_script_that_is_not_the_pages_own(page: Any) -> None:
    page.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.harm = 1'; document.body.append(s);"
        "const i = document.createElement('img'); i.setAttribute('onerror', 'window.harm = 2'); i.src = 'data:,'; document.body.append(i)"
    )
    assert page.execute_script("return new Promise(done => setTimeout(() => done(window.harm ?? null), 100))") is None
    page.get_log("browser")  # the refusals, which the next test need not see


def test_the_table_sorts_by_click_and_says_how(page: Any) -> None:
    assert column(page, 0) == ["baseline", "se r2", "se r10"]
    click(page, "#results th:nth-child(2) .sort")
    assert column(page, 0) == ["se r2", "se r10", "baseline"], column(page, 1)
    click(page, "#results th:nth-child(2) .sort")
    assert column(page, 0) == ["baseline", "se r10", "se r2"]
    assert page.execute_script("return document.querySelector('#results th:nth-child(2)').getAttribute('aria-sort')") == "ascending"


def test_the_table_sorts_by_keyboard(page: Any) -> None:
    first = page.find_element("css selector", "#results th:nth-child(1) .sort")
    first.send_keys("\ue004")  # tab, to the next column's name
    page.switch_to.active_element.send_keys("\ue007")  # enter
    assert column(page, 0) == ["se r2", "se r10", "baseline"]


def test_the_pointer_over_a_line_shows_its_numbers(page: Any) -> None:
    x, y = page.execute_script(
        "const box = document.querySelector('#plot-test_top1_pct'); box.scrollIntoView({block: 'center'});"
        "const view = [...Bokeh.index.roots].find(root => box.contains(root.el)), at = view.canvas_view.el.getBoundingClientRect();"
        "const line = [...Bokeh.documents[0].all_models].find(model => model.name === 'se r2 (n = 2)'), data = line.data_source.data;"
        "return [at.left + view.frame.x_scale.compute(data.x[20]), at.top + view.frame.y_scale.compute(data.y[20])]"
    )
    chain = webdriver.ActionChains(page)
    chain.w3c_actions.pointer_action.move_to_location(int(x) - 3, int(y))
    chain.w3c_actions.pointer_action.move_to_location(int(x), int(y))
    chain.perform()
    found = page.execute_script(
        "const all = root => [...root.querySelectorAll('*')].flatMap(e => [e, ...(e.shadowRoot ? all(e.shadowRoot) : [])]);"
        "return all(document).filter(e => e.classList.contains('bk-tooltip-content')).map(e => e.textContent)"
    )
    assert any("arm: se r2 (n = 2)" in text and "± 1 std" in text for text in found), found


def test_an_arm_hides_in_every_figure_and_comes_back(page: Any) -> None:
    assert shown(page, 1) == {True}
    click(page, "button.arm[data-arm='1']")
    assert (shown(page, 1), shown(page, 0)) == ({False}, {True})
    assert page.execute_script("return document.querySelector('button.arm[data-arm=\"1\"]').getAttribute('aria-pressed')") == "false"
    click(page, "[data-show-all]")
    assert shown(page, 1) == {True}


def test_the_last_quarter_and_single_runs_are_shown_on_request(page: Any) -> None:
    start = "return [...Bokeh.documents[0].all_models].find(m => m.type === 'Range1d' && m.end > 35 && m.end < 45).start"
    assert page.execute_script(start) < 1
    click(page, "[data-view=late]")
    assert page.execute_script(start) == 30
    runs = "return [...Bokeh.documents[0].all_models].filter(m => (m.tags || []).includes('runs')).map(m => m.visible)"
    assert set(page.execute_script(runs)) == {False}
    click(page, "[data-runs]")
    assert set(page.execute_script(runs)) == {True}


def test_a_runs_section_opens(page: Any) -> None:
    visible = "return document.querySelectorAll('.run .body')[2].checkVisibility()"
    closed = page.execute_script(visible)
    page.find_elements("css selector", ".run summary")[2].send_keys("\ue007")
    assert (closed, page.execute_script(visible)) == (False, True)


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(page: Any, width: int) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    )
    wait_for(page, f"innerWidth === {width}")
    page.execute_script("document.querySelectorAll('details').forEach(details => { details.open = true })")
    wide = page.execute_script("return document.documentElement.scrollWidth")
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert wide <= width


def test_the_text_to_copy_is_what_the_clipboard_gets(page: Any) -> None:
    page.execute_script("window.copied = []; document.addEventListener('copy', () => window.copied.push(String(getSelection())))")
    page.execute_script("navigator.clipboard.writeText = text => { window.copied.push(text); return Promise.resolve() }")
    click(page, "[data-copy=methods-text]")
    click(page, "[data-copy=bibtex-text]")
    paragraph, bibtex = page.execute_script("return new Promise(done => setTimeout(() => done(window.copied), 100))")
    assert paragraph.startswith("We trained 3 configurations") and bibtex.startswith("@software{hpc-seresnet,")
    assert "he2016deep" in bibtex and bibtex.count("\n") > 20
