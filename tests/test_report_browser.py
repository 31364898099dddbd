"""The page in a real browser, cut off from the network: nothing is asked for, nothing fails, everything is drawn."""

from __future__ import annotations

import json
import re

import pytest

from tests.browser import browser, why_absent
from tests.report_folders import Plan, demo_runs, make_run
from trueline.compare import compare
from trueline.report.build import report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(why_absent() is not None, reason=f"no browser to drive: {why_absent()}"),
]

MARKS = "[...document.querySelectorAll('svg.figure')].map(s => s.querySelectorAll('.mark').length)"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def page():
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def gap(tmp_path_factory):
    root = tmp_path_factory.mktemp("gap")
    return compare(demo_runs(root), root / "gap.html")


def opened(page, file, **emulated):
    page.requests.clear()
    page.errors.clear()
    page.emulate(**emulated)
    page.open(file)
    return page


@pytest.mark.parametrize("look", [{}, {"dark": True}, {"width": 390, "height": 844}, {"media": "print"}])
def test_the_comparison_asks_for_nothing_logs_no_error_and_draws_every_figure(page, gap, look, tmp_path):
    opened(page, gap, **look)
    assert page.evaluate(MARKS) and min(page.evaluate(MARKS)) > 0
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    page.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 50_000
    assert page.evaluate(OVERFLOW) <= 0  # wide things scroll inside themselves
    assert page.requests == [] and page.errors == []


def test_the_browser_helper_notices_requests_and_errors(page, tmp_path):
    file = tmp_path / "bad.html"
    file.write_text("<img src='http://example.invalid/x.png'><script>console.error('no'); nothing()</script>", "utf-8")
    opened(page, file)
    page.evaluate("new Promise(done => setTimeout(done, 200))")
    assert page.requests == ["http://example.invalid/x.png"]
    assert any("nothing is not defined" in e for e in page.errors) and "no" in page.errors


def test_a_phone_gets_the_narrow_frontier_and_a_desk_the_wide_one(page, gap):
    shown = "['wide', 'narrow'].map(c => getComputedStyle(document.querySelector('.hero .' + c)).display)"
    assert opened(page, gap).evaluate(shown) == ["block", "none"]
    assert opened(page, gap, width=390, height=844).evaluate(shown) == ["none", "block"]


def test_dark_mode_turns_the_page_dark(page, gap):
    ground = "getComputedStyle(document.body).backgroundColor"
    assert opened(page, gap).evaluate(ground) == "rgb(255, 255, 255)"
    assert opened(page, gap, dark=True).evaluate(ground) == "rgb(19, 22, 25)"


def test_pointing_at_a_panel_reads_every_panel_at_that_step(page, gap):
    opened(page, gap)
    page.hover("#panel-kl svg", 0.42)
    read = page.evaluate("[...document.querySelectorAll('.read')].map(r => r.textContent)")
    step = re.match(r"step \d+", read[0]).group()
    assert all(r.startswith(step) for r in read)
    assert page.evaluate("document.querySelector('#panel-kl svg').matches(':hover')")  # nothing moved from under it
    loss = next(r for r in read if "offline" in r)
    assert all(name in loss for name in ("offline", "online-proxy", "online-gold"))
    assert page.evaluate("document.querySelectorAll('.cross line').length") == len(read)
    page.hover("h1")
    assert page.evaluate("document.querySelectorAll('.cross line').length") == 0


def test_arrow_keys_read_the_panels_without_a_pointer(page, gap):
    opened(page, gap)
    page.evaluate("document.querySelector('#panel-loss').focus()")
    for _ in range(3):
        page.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight")
    assert page.evaluate("document.querySelector('#panel-loss .read').textContent").startswith("step 3")


def test_a_point_of_the_frontier_tells_its_numbers(page, gap):
    opened(page, gap)
    page.hover(".hero .wide .point:last-of-type .reach")
    tip = page.evaluate("document.getElementById('tip').hidden ? '' : document.getElementById('tip').textContent")
    assert "step 120" in tip and "win rate" in tip and "KL" in tip and "[" in tip


def test_a_table_opens_behind_every_figure_and_its_csv_holds_the_same_numbers(page, gap):
    opened(page, gap)
    script = """(async () => {
      const saved = []; let text;
      URL.createObjectURL = (blob) => { text = blob.text(); return 'data:,'; };
      HTMLAnchorElement.prototype.click = function () { saved.push(this.download); };
      const result = [];
      for (const details of document.querySelectorAll('details.table')) {
        details.open = true;
        await new Promise(done => setTimeout(done, 10));
        const rows = details.querySelectorAll('tbody tr').length;
        details.querySelector('.csv').click();
        const lines = (await text).trim().split('\\r\\n');
        result.push([details.dataset.of, rows, lines.length - 1, lines[0]]);
      }
      return JSON.stringify([saved, result]);
    })()"""
    saved, result = json.loads(page.evaluate(script))
    assert len(result) == page.evaluate("document.querySelectorAll('figure').length") == len(saved)
    assert all(rows > 0 and rows == lines for _, rows, lines, _ in result)
    headers = {name: header for name, _, _, header in result}
    assert (
        headers["frontier-1"].startswith("run,step,KL (nats)")
        and headers["loss"] == "step,offline,online-proxy,online-gold"
    )
    assert dict((name, rows) for name, rows, _, _ in result)["loss"] == 120


def test_a_table_in_the_page_shows_non_finite_values_and_gaps(page, tmp_path):
    folder = make_run(tmp_path / "a", Plan(steps=40, evaluations=(0, 40)))
    file = folder / "trueline" / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    rows[9]["loss"] = "Infinity"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    opened(page, report(folder))
    page.evaluate("document.querySelector('#panel-loss details').open = true")
    page.evaluate("new Promise(done => setTimeout(done, 50))")
    cells = "[...document.querySelectorAll('#panel-loss tbody tr')].map(r => r.textContent)"
    assert page.evaluate(cells)[9] == "10not finite"


def test_the_copy_button_copies_the_command(page, gap):
    opened(page, gap)
    script = """(async () => {
      let copied;
      Object.defineProperty(navigator, 'clipboard', { value: { writeText: async (t) => { copied = t; } } });
      document.querySelector('.repeat').open = true;
      const button = document.querySelector('.copy-button');
      button.click();
      await new Promise(done => setTimeout(done, 20));
      return [copied, button.textContent];
    })()"""
    copied, label = page.evaluate(script)
    assert copied.startswith("trueline align --model models/sft") and label == "Copied"


@pytest.mark.parametrize("name", ["offline_only", "one_step", "long_and_right_to_left"])
def test_unusual_runs_still_read_well(page, tmp_path, name):
    plans = {
        "offline_only": Plan(judges=(), online=False),
        "one_step": Plan(steps=1, evaluations=(0, 1)),
        "long_and_right_to_left": Plan(prompts=4),
    }
    folder = make_run(tmp_path / name, plans[name])
    if name == "long_and_right_to_left":
        file = folder / "trueline" / "samples.jsonl"
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        for row in rows:
            row["prompt"] = "أخبرني عن لون المصباح ؟"
            row["text"] = "x" * 10_000 if row["prompt_id"] == "p0" else "لون المصباح أخضر . وداعا"
        file.write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    opened(page, report(folder), width=390, height=844)
    assert min(page.evaluate(MARKS)) > 0
    assert page.evaluate(OVERFLOW) <= 0
    assert page.requests == [] and page.errors == []
    if name == "long_and_right_to_left":
        assert page.evaluate("getComputedStyle(document.querySelector('.asked')).direction") == "rtl"
