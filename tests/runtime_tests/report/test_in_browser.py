"""The pages in a real browser, as wide as a phone and as a desk, light and dark: nothing sticks out, all is legible."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lowrank_export.runtime_tests.report.report import Report
from lowrank_export.runtime_tests.report.report_page import report_page
from lowrank_export.runtime_tests.studies.compare_html import page as compare_page
from lowrank_export.runtime_tests.studies.compare_results import Comparison
from lowrank_export.runtime_tests.studies.sweep_page import sweep_page
from lowrank_export.runtime_tests.studies.sweep_results import Sweep

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

# Contrast of every text with what lies behind it, as WCAG defines it; letters of charts take `fill`.
CONTRAST = """
() => {
  const parse = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const light = ([r, g, b]) => [r, g, b].map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c[3] > 0) return c;
    }
    return [255, 255, 255, 1];
  };
  const worst = {};
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || ['title', 'STYLE'].includes(e.tagName)) continue;
    const style = getComputedStyle(e);
    const a = light(parse(e.closest('svg') ? style.fill : style.color)), b = light(behind(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const kind = e.tagName + '.' + (e.getAttribute('class') || '');
    worst[kind] = Math.min(worst[kind] ?? 99, ratio);
  }
  return worst;
}
"""
# Letters of one chart that lie on one another, or outside its frame.
COLLISIONS = """
() => {
  const found = [];
  for (const svg of document.querySelectorAll('svg')) {
    const frame = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll('text')].map((t) => [t.textContent, t.getBoundingClientRect()]);
    texts.forEach(([a, r], i) => {
      if (r.left < frame.left - 1 || r.right > frame.right + 1 || r.top < frame.top - 1 || r.bottom > frame.bottom + 1)
        found.push(a + ' outside ' + svg.getAttribute('aria-label'));
      for (const [b, s] of texts.slice(i + 1))
        if (r.left < s.right - 1 && s.left < r.right - 1 && r.top < s.bottom - 1 && s.top < r.bottom - 1)
          found.push(a + ' on ' + b + ' in ' + svg.getAttribute('aria-label'));
    });
  }
  return found;
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium: the system's, or the one that playwright brought."""
    installed = os.environ.get("LOWRANK_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_api.sync_playwright() as play:
        try:
            opened = play.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(
                f"no browser: {str(error).splitlines()[0]} (apt install chromium, or name one: LOWRANK_BROWSER)"
            )
        yield opened
        opened.close()


@pytest.fixture(scope="module", params=["report", "compare", "sweep"])
def file(
    request: pytest.FixtureRequest,
    report: Report,
    comparison: Comparison,
    swept: Sweep,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    makers: dict[str, Callable[[], str]] = {
        "report": lambda: report_page(report),
        "compare": lambda: compare_page(comparison),
        "sweep": lambda: sweep_page(swept),
    }
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(makers[request.param](), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page(browser: Any, file: Path, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(file.as_uri())
    assert asked == [file.as_uri()] and said == []
    wide, seen = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide <= seen == width
    edges = page.evaluate("[...document.querySelectorAll('svg, .wide, pre')].map(e => e.getBoundingClientRect().right)")
    assert edges and max(edges) <= width
    low = {kind: ratio for kind, ratio in page.evaluate(CONTRAST).items() if ratio < 4.5}
    assert not low, low
    assert page.evaluate(COLLISIONS) == []
    letters = page.evaluate("[...document.querySelectorAll('svg text')].map(e => e.getBoundingClientRect().height)")
    assert min(letters) > 10.5
    context.close()
