"""Pages in a browser, checked by axe-core: light and dark. Needs Chromium and axe-core from npm (mark ``browser``)."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mmrec_helpers.files import reports_folder

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
FLAGS += " --disable-component-update --virtual-time-budget=60000 --window-size=1280,900 --dump-dom"
PAGES = sorted(Path(os.environ.get("PAGES", reports_folder() / "tiktok-cpu")).glob("*.html"))
RUN = """<script>%s</script><script>
axe.run(document, {resultTypes: ["violations"]}).then((found) => {
  const row = (v) => [v.id, v.nodes.length, v.nodes[0].html.slice(0, 150), v.nodes[0].failureSummary];
  const rows = found.violations.map(row);
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const shown = document.createElement("pre");
  shown.id = "axe"; shown.textContent = JSON.stringify({rows, dark}); document.body.append(shown);
});
</script></body>"""


def axe_core() -> Path | None:
    """axe.min.js: where AXE_CORE says, or in a node_modules here or among npm's global packages."""
    found = [os.environ.get("AXE_CORE", ""), "node_modules/axe-core/axe.min.js"]
    if npm := shutil.which("npm"):
        root = subprocess.run([npm, "root", "-g"], capture_output=True, text=True, check=False).stdout.strip()
        found.append(f"{root}/axe-core/axe.min.js")
    return next((Path(path) for path in found if path and Path(path).is_file()), None)


AXE = axe_core()
if not (CHROMIUM and AXE):
    pytest.skip("needs Chromium, and axe-core from npm (AXE_CORE names its axe.min.js)", allow_module_level=True)


def violations(html: str, folder: Path, dark: bool) -> list[list]:
    """What axe-core finds on a page: rule, number of elements, the first of them, what to do."""
    page = folder / "page.html"
    page.write_text(html.replace("</body>", RUN % AXE.read_text(encoding="utf-8").replace("</script", "<\\/script")))
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else ["--blink-settings=preferredColorScheme=1"]
    command = [CHROMIUM, *FLAGS.split(), *scheme, f"--user-data-dir={folder / 'profile'}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    result = json.loads(unescape(re.search(r'<pre id="axe">(.*?)</pre>', done.stdout, re.DOTALL)[1]))
    assert result["dark"] == dark
    return result["rows"]


def unescape(text: str) -> str:
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("page", PAGES, ids=[path.stem for path in PAGES])
def test_a_page_has_no_violation(page, dark, tmp_path):
    assert violations(page.read_text(encoding="utf-8"), tmp_path, dark) == []


def test_a_violation_would_be_found(tmp_path):
    bad = '<img src="data:,"><p style="color:#999">pale text</p></main>'
    html = PAGES[0].read_text(encoding="utf-8").replace("</main>", bad)
    assert {"image-alt", "color-contrast"} <= {row[0] for row in violations(html, tmp_path, dark=False)}
