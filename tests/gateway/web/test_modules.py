"""The page's pure modules, run by node, and what holds for every file of the page."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

WEB = Path(__file__).parents[3] / "gateway" / "web"
SUITES = sorted(Path(__file__).parent.glob("*.test.mjs"))
SCRIPTS = sorted(WEB.glob("*.js"))
OLDEST_NODE = (20, 19)  # the first that reads `.js` files as ES modules by their syntax


def node() -> str:
    """The path of a node that is new enough; skips otherwise."""
    path = shutil.which("node")
    if path is None:
        pytest.skip("node is not installed: the page's modules are not run outside the browser")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    major, minor = (int(part) for part in version.strip().lstrip("v").split(".")[:2])
    if (major, minor) < OLDEST_NODE:
        pytest.skip(f"node {version.strip()} is too old for the page's modules: 20.19 is needed")
    return path


@pytest.mark.parametrize("suite", SUITES, ids=lambda path: path.stem)
def test_suite_passes(suite: Path) -> None:
    """Each suite of a pure module passes in node."""
    done = subprocess.run(
        [node(), "--test", str(suite)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_makes_no_markup_of_data(script: Path) -> None:
    """No script turns text into markup or code."""
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function"
    assert re.search(ways, script.read_text()) is None


def test_page_has_nothing_inline_and_nothing_foreign() -> None:
    """index.html has no inline script, style or handler and names no other server."""
    html = (WEB / "index.html").read_text()
    assert re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", html) is None
    for path in WEB.iterdir():
        if path.suffix in {".js", ".html", ".css"}:
            assert re.search(r"https?://|@import|url\(", path.read_text()) is None, path.name


def test_every_reference_is_a_file_of_the_page() -> None:
    """What the page and its modules load is there, under the one flat folder."""
    html = (WEB / "index.html").read_text()
    wanted = set(re.findall(r'"/static/([^"]+)"', html))
    for script in SCRIPTS:
        text = script.read_text()
        wanted |= set(re.findall(r'"/static/([^"]+)"', text))
        wanted |= set(re.findall(r'from "\./([^"]+)"', text))
    assert {path.name for path in SCRIPTS} <= wanted
    assert wanted <= {path.name for path in WEB.iterdir()}
