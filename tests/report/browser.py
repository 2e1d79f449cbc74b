"""A headless Chromium that opens a page in a frame of a given width and says what it sees."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--virtual-time-budget=5000",
    "--enable-logging=stderr",
    "--v=0",
    "--window-size=1300,900",
)
PROBE = """<script>
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const right = (element) => element.getBoundingClientRect().right;
const count = (chart, selector) => chart.querySelectorAll(selector).length;

function measure(chart) {
  return {
    drawings: count(chart, "svg.main-svg"),
    traces: count(chart, ".scatterlayer .trace path"),
    foreign: count(chart, "a, img, script"),
    right: right(chart.querySelector("svg.main-svg")),
  };
}

function overhang() {
  const edge = right(document.querySelector("main"));
  const drawings = [...document.querySelectorAll(".chart svg.main-svg")];
  return Math.round(Math.max(0, ...drawings.map((drawing) => right(drawing) - edge)));
}

function pick(kind, place) {
  [...document.querySelectorAll(`.choices input[type=${kind}]`)].at(place)?.click();
  const lines = (chart) => chart.data.filter((trace) => trace.visible !== false).length;
  return [...document.querySelectorAll(".chart")].map((chart) => [lines(chart), chart.layout.yaxis.title.text]);
}

addEventListener("load", async () => {
  await pause(1000);
  const root = document.documentElement;
  const button = document.querySelector(".code button");
  const details = document.querySelector("details");
  const charts = [...document.querySelectorAll(".chart")].map((chart) => [chart.id, measure(chart)]);
  const seen = {viewport: root.clientWidth, scroll_width: root.scrollWidth};
  const fewer = pick("checkbox", 0);
  const other = pick("radio", -1);
  button?.click();
  await pause(200);
  dispatchEvent(new Event("beforeprint"));
  await pause(200);
  const printed = {is_open: details.open, overhang: overhang()};
  dispatchEvent(new Event("afterprint"));
  await pause(200);
  const after = {is_open: details.open, overhang: overhang()};
  const is_owned = Boolean(window.owned);
  const done = {printed, after, is_owned, fewer, other, button: button?.textContent};
  parent.postMessage({...seen, ...done, charts: Object.fromEntries(charts)}, "*");
});
</script></body>"""
FRAME = """<!DOCTYPE html><title>waiting</title>
<script>addEventListener("message", (event) => { document.title = JSON.stringify(event.data); });</script>
<iframe src="page.html" style="width: WIDTHpx; height: 800px; border: 0"></iframe>"""


class Sight(NamedTuple):
    """What a browser saw of a page."""

    page: dict[str, Any]
    console: list[str]


def look_at(page: str, width: int, folder: Path) -> Sight:
    """Open a page in a frame of some width; return its measures and what it wrote to the console."""
    (folder / "page.html").write_text(page.replace("</body>", PROBE), encoding="utf-8")
    (folder / "frame.html").write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    address = (folder / "frame.html").as_uri()
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert title, f"the page did not report: {done.stdout[:300]} {done.stderr[-2000:]}"
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Sight(json.loads(html.unescape(title[1])), console)
