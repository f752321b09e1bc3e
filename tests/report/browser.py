"""Chromium without a window: what it shows of a page, its console, and which hosts the page requests."""

import json
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = "no browser: chromium, chromium-browser or google-chrome (Debian: apt-get install chromium)"
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr"),
    "--host-resolver-rules=MAP * ~NOTFOUND",  # the browser itself must not use the network either
]
PROBE = r"""<script>
addEventListener("load", () => parent.postMessage({
  pictures: [...document.images].map((image) => [image.getAttribute("src"), image.naturalWidth]),
  videos: [...document.querySelectorAll("video")].map((video) => [video.currentSrc, video.videoWidth]),
  page_width: document.documentElement.scrollWidth,
  window_width: document.documentElement.clientWidth,
  page_height: document.documentElement.scrollHeight,
  lightness: getComputedStyle(document.body).backgroundColor.match(/\d+/g).reduce((sum, level) => sum + +level / 3, 0),
}, "*"));
</script></body>"""
# A window cannot be as narrow as a phone, but a frame can.
FRAME = """<!DOCTYPE html><html><head><meta name="color-scheme" content="light dark"></head><body>
<script>addEventListener("message", (event) => {{
  const found = document.createElement("pre");
  found.textContent = JSON.stringify(event.data);
  document.body.append(found);
}});</script>
<iframe src="probed.html" width="{width_px}" height="900"></iframe></body></html>"""


def look_at(page: Path, profile: Path, *, width_px: int, dark: bool) -> tuple[dict[str, Any], list[str], list[str]]:
    """Return what a script finds in the page, what stands on its console, and what it asks the network for."""
    page.with_name("probed.html").write_text(page.read_text().replace("</body>", PROBE))
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.format(width_px=width_px))
    net_log = profile / "net.json"
    command = [CHROMIUM, *FLAGS, f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--window-size=1600,1000"]
    command += [f"--user-data-dir={profile}", f"--log-net-log={net_log}", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run([*command, frame.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    state = json.loads(unescape(done.stdout.partition("<pre>")[2].partition("</pre>")[0]))
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return state, console, _asked_for_by_pages(json.loads(net_log.read_text()))


def _asked_for_by_pages(net_log: dict[str, Any]) -> list[str]:
    """Return the addresses on the network that a page asked for; the browser's own requests have no origin."""
    found = [event["params"] for event in net_log["events"] if isinstance(event.get("params"), dict)]
    asked = [
        params for params in found if "url" in params and params.get("initiator", "not an origin") != "not an origin"
    ]
    return [params["url"] for params in asked if not params["url"].startswith(("file:", "data:"))]
