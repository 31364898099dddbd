"""The page for trying a prompt, in Chromium against the real engine: plain beside aligned, with rewards and counters."""

from __future__ import annotations

import re
import time
from importlib import resources

import pytest

from tests import browser
from tests.serving_host import serving
from tests.serving_model import real_host
from trueline.serving.keys import Keys

PAGE = resources.files("trueline.serving").joinpath("page", "index.html").read_text(encoding="utf-8")


def test_the_page_asks_for_nothing_but_this_server_and_writes_no_html():
    assert not re.findall(r"https?://|//cdn|@import|url\(", PAGE)
    assert "innerHTML" not in PAGE and "document.write" not in PAGE and "eval(" not in PAGE


def wait_for(page, expression):
    deadline = time.monotonic() + browser.PATIENCE
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"{expression} never held; the page says {page.errors}"
        time.sleep(0.05)


def open_url(page, url):
    page.call("Page.navigate", url=url)
    wait_for(page, f"document.readyState === 'complete' && location.href === {url!r}")


@pytest.mark.browser
@pytest.mark.skipif(browser.why_absent() is not None, reason=str(browser.why_absent()))
def test_a_person_compares_plain_with_aligned(tmp_path):
    with (
        serving(real_host(tmp_path / "model", method="best_of_n", options={"n": 4})) as served,
        browser.browser() as page,
    ):
        open_url(page, served.url + "/")
        wait_for(page, "document.querySelectorAll('#method option').length > 3")
        page.evaluate("document.querySelector('#prompt').value = '<b>the cat</b> & <img src=x onerror=alert(1)>'")
        page.evaluate("document.querySelector('#tokens').value = 24")
        page.evaluate("document.querySelector('#form').requestSubmit()")
        for box in ("plain", "aligned"):
            wait_for(page, f"document.querySelector('#{box}').dataset.state === 'done'")
            facts = page.evaluate(f"document.querySelector('#{box} dl').textContent")
            assert "reward reward" in facts and "model token-forwards" in facts
            assert page.evaluate(f"document.querySelector('#{box} .text').textContent.length") > 3
        assert page.evaluate("document.querySelector('#aligned h2').textContent") == "best_of_n"
        assert page.errors == [] and all(request.startswith(served.url) for request in page.requests[1:])
        for name, dark, width in (("light", False, 1280), ("dark", True, 1280), ("narrow", False, 420)):
            page.emulate(width=width, dark=dark)
            page.screenshot(tmp_path / f"{name}.png")
            assert (tmp_path / f"{name}.png").stat().st_size > 10_000
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.browser
@pytest.mark.skipif(browser.why_absent() is not None, reason=str(browser.why_absent()))
def test_a_server_with_a_key_asks_for_it_on_the_page(tmp_path):
    with serving(real_host(tmp_path), Keys(["a-key-for-the-page"])) as served, browser.browser() as page:
        open_url(page, served.url + "/")
        wait_for(page, "!document.querySelector('#keybox').hidden")
        page.evaluate("document.querySelector('#key').value = 'a-key-for-the-page'")
        page.evaluate("document.querySelector('#prompt').value = 'the cat'")
        page.evaluate("document.querySelector('#form').requestSubmit()")
        wait_for(page, "document.querySelector('#plain').dataset.state === 'done'")
