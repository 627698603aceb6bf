"""Every page in a real browser, at phone and desktop width, light and dark: nothing sticks out, tables sort, nothing is
asked for."""

import base64
import json
import re
import shutil
import subprocess

import pytest

from taskarith_fast.analysis.figures import all_figures
from taskarith_fast.analysis.figures_theme import axes_of, in_both
from taskarith_fast.analysis.outcome import Check, Outcome, Table
from taskarith_fast.analysis.report import render_report
from taskarith_fast.analysis.reproduce_page import render_index, render_reproduction
from taskarith_fast.analysis.sweep_page import render_sweep

from .conftest import invented_results

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs a browser: apt-get install chromium")

# Run inside the page: what a reader would see, told to the frame's parent.
PROBE = """
<script>
const luminance = words => { const [r, g, b] = words.match(/[\\d.]+/g).map(v => v / 255).map(
  v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const style = getComputedStyle(document.body), table = document.querySelector("table.sort");
const [low, high] = [style.color, style.backgroundColor].map(luminance).sort((a, b) => a - b);
const rows = () => [...table.tBodies[0].rows];
const column = () => rows().filter(r => !r.matches(".mean, .extra")).map(r => r.cells[1].textContent);
const button = table.tHead.rows[0].cells[1].querySelector("button");
button.click(); const down = column(); button.click(); const up = column();
parent.postMessage(JSON.stringify({
  width: innerWidth, needed: document.documentElement.scrollWidth, dark: luminance(style.backgroundColor) < 0.2,
  contrast: (high + 0.05) / (low + 0.05), down, up, last: rows().at(-1).className,
  broken: [...document.images].filter(i => i.complete && !i.naturalWidth).length, images: document.images.length,
  requests: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
}), "*");
</script>
"""
FRAME = """<!DOCTYPE html><body><iframe src="page.html" style="width:{width}px;height:800px;border:0"></iframe><script>
onmessage = event => {{
  document.body.innerHTML = "<pre id=found>" + btoa(unescape(encodeURIComponent(event.data))) + "</pre>";
}};
</script>"""


def figure():
    drawing, axes = axes_of()
    axes.plot([0, 1], [0, 1])
    return drawing


def reproduced():
    rows = [["TaLoS", "71.3 ± 0.9", "79.67"], ["full", "9.5 ± 0.9", "71.25"], ["linearized", "80.1 ± 0.8", "76.70"]]
    columns = ["method", "here, abs", "paper, abs", *(f"a further column {i}" for i in range(20))]
    table = Table("Accuracy (%)", columns, [row + [""] * 20 for row in rows])
    outcome = Outcome([table], [Check("a statement", 1.0, 0.2)], {"A caption": in_both(figure)})
    return render_reproduction(
        name="talos/table1", caption="invented", source="nobody", claim="A claim.", setting="Nothing ran.",
        papers=False, outcome=outcome, seconds=1.0, peak_mb=2.0, facts={"a": "x" * 500},
    )  # fmt: skip


def listed():
    names = ("cart/figure1", "talos/table1", "jin/table2")
    documents = [
        {
            "name": name,
            "checks": [{"verdict": "holds"}] * i,
            "papers_protocol": False,
            "stages": [{"seconds": 10.0 * i}],
        }
        for i, name in enumerate(names)
    ]
    return render_index(documents, dict.fromkeys(names, "an invented caption, " * 8))


def swept():
    points = [
        {"method": "ties", "scale": s, "mean": m, "normalized": None, "mean_stderr": 0.01, "line": "ties",
         "chart": "all", "tasks": "all", "recipe": None, "seed": 0, "settings": "scale=1"}
        for s, m in ((0.0, 0.5), (0.5, 0.7), (1.0, 0.095))
    ]  # fmt: skip
    return render_sweep("Sweep of nothing", points[:1], points, ["method", "mean"], {"a": 1})


def report():
    results = invented_results()
    return render_report(results, all_figures(results))


PAGES = {"reproduce": reproduced, "index": listed, "sweep": swept, "report": report}


@pytest.fixture(scope="module")
def pages():
    return {name: make() for name, make in PAGES.items()}


def looked_at(page, folder, width, dark):
    (folder / "page.html").write_text(page.replace("</body>", PROBE + "</body>"))
    (folder / "frame.html").write_text(FRAME.format(width=width))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1600,900"]
    flags += [
        f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=5000",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ]
    flags += ["--force-dark-mode"] if dark else []
    done = subprocess.run(
        [BROWSER, *flags, "--dump-dom", (folder / "frame.html").as_uri()], capture_output=True, text=True, timeout=120
    )
    found = re.search(r'<pre id="found">([^<]+)</pre>', done.stdout)
    assert found, f"the page's script did not run: {done.stderr[-500:]}"
    return json.loads(base64.b64decode(found[1]))


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)], ids=["phone, dark", "desktop, light"])
@pytest.mark.parametrize("name", PAGES)
def test_page_in_a_browser(name, width, dark, pages, tmp_path):
    seen = looked_at(pages[name], tmp_path, width, dark)
    assert seen["width"] == width
    assert seen["needed"] <= width, "the page scrolls sideways"
    assert seen["dark"] == dark
    assert seen["contrast"] > 7
    assert seen["requests"] == []
    assert seen["broken"] == 0 and (seen["images"] > 0 or name in ("sweep", "index"))
    values = [[float(re.match(r"\S+", text.strip())[0]) for text in seen[way]] for way in ("down", "up")]
    assert values[0] == sorted(values[0], reverse=True) and values[1] == sorted(values[1])
    assert len(set(values[0])) > 1
    if name == "report":
        assert seen["last"] == "extra" or "mean" in seen["last"]
