"""The pages in a real browser: no error, no request, sorting, phones and paper.

Needs chromium and chromium-driver, which Debian and Ubuntu install by those names.
"""

import base64
import functools
import http.server
import json
import shutil
import threading

import pytest

from distill_jax.report import page
from tests import page_samples

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is missing")
By = pytest.importorskip("selenium.webdriver.common.by").By
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys

KINDS = ("run", "comparison", "active")


def program(*names: str) -> str:
    for name in names:
        if path := shutil.which(name):
            return path
    pytest.skip(f"no {names[0]} is installed: apt-get install {names[-1]}")


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = program(
        "chromium", "chromium-browser", "google-chrome", "chromium"
    )
    # In a container there is neither a sandbox nor much of /dev/shm.
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    options.add_argument("--hide-scrollbars")  # paper and phones have none
    logs = {"browser": "ALL", "performance": "ALL"}
    options.set_capability("goog:loggingPrefs", logs)
    service = webdriver.ChromeService(program("chromedriver", "chromium-driver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Served as a site would, where a page can ask for more than from a file."""
    folder = tmp_path_factory.mktemp("pages")
    for name, content in page_samples.pages().items():
        page.write(folder / f"{name}.html", content)

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            """Says nothing."""

    handler = functools.partial(Silent, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def opened(browser, address):
    """Opens a page at a width in pixels; its logs begin with it."""

    def visit(kind: str, width: int = 1280, media: str = "screen"):
        size = {"width": width, "height": 800, "deviceScaleFactor": 1}
        size["mobile"] = width < 600
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media})
        for name in ("browser", "performance"):
            browser.get_log(name)
        browser.get(f"{address}/{kind}.html")
        return browser

    return visit


def column(table, name: str):
    """The header of a column, its index and a function that reads its cells."""
    heads = table.find_elements(By.TAG_NAME, "th")
    index = next(i for i, head in enumerate(heads) if head.text.startswith(name))
    read = "return [...arguments[0].tBodies[0].rows].map(r => r.cells[arguments[1]].%s)"
    script = read % "textContent"
    return heads[index], lambda: table.parent.execute_script(script, table, index)


def table_of(driver, name: str):
    return driver.find_element(By.CSS_SELECTOR, f'table[aria-label^="{name}"]')


@pytest.mark.parametrize("kind", KINDS)
def test_no_error_and_no_request(opened, address, kind):
    driver = opened(kind)
    driver.execute_script("document.querySelectorAll('details').forEach(d=>d.open=1)")
    driver.execute_script("window.scrollTo(0, document.body.scrollHeight)")
    assert driver.get_log("browser") == []
    events = [
        json.loads(e["message"])["message"] for e in driver.get_log("performance")
    ]
    asked = [
        e["params"]["request"]["url"]
        for e in events
        if e["method"] == "Network.requestWillBeSent"
    ]
    assert asked.pop(0) == f"{address}/{kind}.html"
    assert all(url.startswith("data:") for url in asked), asked
    assert driver.execute_script("return typeof window.hacked") == "undefined"
    drawn = driver.execute_script(
        "return [...document.images].map(i => i.complete && i.naturalWidth > 300)"
    )
    assert drawn and all(drawn)


def test_nothing_foreign_can_be_loaded_or_run(opened):
    driver = opened("run")
    refused = driver.execute_async_script(
        """
        const done = arguments[0], seen = [];
        document.addEventListener("securitypolicyviolation", (event) => {
          seen.push(event.effectiveDirective);
          if (seen.length === 2) done(seen.sort());
        });
        const image = document.createElement("img");
        image.src = "/image.png";
        const script = document.createElement("script");
        script.textContent = "window.hacked = 1";
        document.body.append(image, script);
        """
    )
    assert refused == ["img-src", "script-src-elem"]
    assert driver.execute_script("return typeof window.hacked") == "undefined"


def test_a_click_sorts(opened):
    table = table_of(opened("comparison"), "Test accuracy on")
    head, cells = column(table, "accuracy")
    before = cells()
    assert head.get_attribute("aria-sort") == "none"
    button = head.find_element(By.TAG_NAME, "button")
    button.click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert cells() == sorted(before, key=float) != before
    button.click()
    assert head.get_attribute("aria-sort") == "descending"
    assert cells() == sorted(before, key=float, reverse=True)
    other, names = column(table, "method")
    other.find_element(By.TAG_NAME, "button").click()
    assert head.get_attribute("aria-sort") == "none"
    assert other.get_attribute("aria-sort") == "ascending"
    assert names()[-3:] == ["random"] * 3


def test_numbers_sort_as_numbers_and_gaps_stay_last(opened):
    table = table_of(opened("comparison"), "Test accuracy on")
    head, cells = column(table, "bytes")
    button = head.find_element(By.TAG_NAME, "button")
    for sign in (1, -1):
        button.click()
        shown = cells()
        assert shown[-3:] == ["–"] * 3
        numbers = [int(text.replace(",", "")) for text in shown[:-3]]
        assert numbers == sorted(numbers, reverse=sign < 0)
    assert max(numbers) == 50_000 and min(numbers) == 100


def test_keys_sort(opened):
    driver = opened("comparison")
    table = table_of(driver, "Distilled beats the best")
    head, cells = column(table, "difference")
    button = head.find_element(By.TAG_NAME, "button")
    reached = False
    for _ in range(60):
        driver.switch_to.active_element.send_keys(Keys.TAB)
        if reached := driver.switch_to.active_element == button:
            break
    assert reached
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert driver.execute_script(outline) != "none"
    for key, order in ((Keys.ENTER, "ascending"), (Keys.SPACE, "descending")):
        driver.switch_to.active_element.send_keys(key)
        assert head.get_attribute("aria-sort") == order
    assert cells() == ["+7.0", "-1.0"]


def test_an_order_that_is_the_point_cannot_be_lost(opened):
    table = table_of(opened("active"), "What is printed")
    assert not table.find_elements(By.TAG_NAME, "button")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [320, 375])
def test_a_phone_scrolls_tables_and_not_the_page(opened, kind, width):
    driver = opened(kind, width)
    driver.execute_script("document.querySelectorAll('details').forEach(d=>d.open=1)")
    sizes = "return [document.documentElement.scrollWidth, innerWidth]"
    assert driver.execute_script(sizes) == [width, width]
    wider = driver.execute_script(
        """
        const boxes = [...document.querySelectorAll(".scroll")];
        return boxes.filter((b) => b.scrollWidth > b.clientWidth).length
        """
    )
    assert wider > 0
    assert driver.execute_script(
        "return [...document.images].every((i) => i.clientWidth <= innerWidth)"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_paper(opened, kind):
    driver = opened(kind, 690, "print")  # the printed width of A4, in CSS pixels
    sizes = "return [document.documentElement.scrollWidth, innerWidth]"
    assert driver.execute_script(sizes) == [690, 690]
    cut = driver.execute_script(
        """
        const boxes = [...document.querySelectorAll(".scroll")];
        return boxes.filter((b) => b.scrollWidth > document.body.clientWidth).length
        """
    )
    assert cut == 0
    driver.execute_script(
        """
        window.unfolded = -1;
        addEventListener("beforeprint", () => {
          const folded = "details:not(.deep):not([open])";
          window.unfolded = document.querySelectorAll(folded).length;
        });
        """
    )
    printed = driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    content = base64.b64decode(printed["data"])
    assert content.startswith(b"%PDF-") and len(content) > 10_000
    assert driver.execute_script("return window.unfolded") == 0
    assert not driver.execute_script(
        "return document.querySelectorAll('details[open]').length"
    )
    assert driver.get_log("browser") == []


def test_it_reads_without_script(opened, browser):
    off = "Emulation.setScriptExecutionDisabled"
    browser.execute_cdp_cmd(off, {"value": True})
    try:
        driver = opened("run")
        assert not driver.find_elements(By.CSS_SELECTOR, "th button")
        assert "accuracy %" in table_of(driver, "Accuracy, mean").text
    finally:
        browser.execute_cdp_cmd(off, {"value": False})
