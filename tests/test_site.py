"""The site, the report and the player, in a real browser: what a reader opens must open, without an error and without the network."""
import contextlib
import functools
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urldefrag, urljoin

import numpy as np
import pytest
from conftest import ROOT
from filelock import FileLock

from vlm_agent.browser import find_chromium
from vlm_agent.core import Observation, Prediction, Step, Task, Trajectory, TrajectoryFile
from vlm_agent.viewer import write_report


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_): pass


@contextlib.contextmanager
def served(folder):
    "The folder at a loopback address."
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield f"http://127.0.0.1:{server.server_port}/"
    finally: server.shutdown(); server.server_close()


@pytest.fixture(scope="module")
def built(tmp_path_factory, worker_id):
    "The site, from the notebooks as they stand; `make docs` does the same. Where several processes test, one of them builds it, once, and the others wait."
    if worker_id == "master": return build()
    done = tmp_path_factory.getbasetemp().parent/"site"  # of this run, common to its processes
    with FileLock(f"{done}.lock"):
        if not done.exists(): build(); done.touch()
    return ROOT/"_docs"


def build():
    run = subprocess.run([sys.executable, str(ROOT/"nbs"/"site"/"build.py")], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "warning" not in run.stderr, run.stderr
    return ROOT/"_docs"


@pytest.fixture(scope="module")
def site(built):
    with served(built) as url: yield url


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def looking(chromium, allowed="http://127.0.0.1", **how):
    "A page, and all that went wrong on it: console errors, exceptions, failed or foreign requests."
    context = chromium.new_context(**how); page = context.new_page(); wrong = []
    page.on("console", lambda m: m.type == "error" and wrong.append(f"{page.url}: {m.text}"))
    page.on("pageerror", lambda e: wrong.append(f"{page.url}: {e}"))
    page.on("response", lambda r: r.status >= 400 and wrong.append(f"{page.url}: {r.status} {r.url}"))
    def request(r):
        if not r.url.startswith((allowed, "data:", "blob:", "file:", "ws://127.0.0.1")): wrong.append(f"{page.url}: asked {r.url}")
    page.on("request", request)
    try: yield page, wrong
    finally: context.close()


def pages(folder): return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.html"))


def test_every_page_opens_without_an_error_and_without_the_network(built, site, chromium):
    for scheme in ("light", "dark"):
        with looking(chromium, color_scheme=scheme) as (page, wrong):
            for name in pages(built): page.goto(site + name, wait_until="load")
            assert not wrong, "\n".join(wrong)
    names = set(pages(built))
    for notebook in (ROOT/"nbs").rglob("[!_.]*.ipynb"):
        if ".ipynb_checkpoints" in notebook.parts: continue
        at = notebook.relative_to(ROOT/"nbs")
        assert at.with_name(re.sub(r"^\d+_", "", at.stem) + ".html").as_posix() in names, f"{at} has no page"


class Links(HTMLParser):
    def __init__(self, text): super().__init__(); self.links, self.ids, self.pictures = [], set(), []; self.feed(text)
    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        if "id" in a: self.ids.add(a["id"])
        if tag == "a" and a.get("href"): self.links.append(a["href"])
        if tag in ("img", "script") and a.get("src"): self.links.append(a["src"])
        if tag == "link" and a.get("href"): self.links.append(a["href"])
        if tag == "img": self.pictures.append(a)


def test_no_link_inside_is_broken_and_every_picture_has_words(built):
    read = {name: Links((built/name).read_text(encoding="utf-8")) for name in pages(built)}
    assert all(p.ids for p in read.values())
    broken, checked = [], 0
    for name, page in read.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link): continue
            to, mark = urldefrag(urljoin("http://x/" + name, link)); to = to.removeprefix("http://x/") or "index.html"; checked += 1
            if not (built/to).exists(): broken.append(f"{name}: {link}")
            elif mark and to in read and mark not in read[to].ids: broken.append(f"{name}: {link} has no such place")
        broken += [f"{name}: a picture without alt" for p in page.pictures if not p.get("alt")]
    assert not broken, "\n".join(sorted(set(broken)))
    assert checked > 500


def test_links_to_the_repository_lead_to_files_that_exist(built):
    repo = re.search(r'repo-url: "(.*)"', (ROOT/"_quarto.yml").read_text())[1] + "/blob/main/"
    for name in pages(built):
        for link in Links((built/name).read_text(encoding="utf-8")).links:
            if link.startswith(repo):
                path, _, line = link.removeprefix(repo).partition("#L")
                assert (ROOT/path).exists(), f"{name}: {link}"
                if line.isdigit(): assert re.match(r"(@|class |def |async def )", (ROOT/path).read_text(encoding="utf-8").splitlines()[int(line) - 1]), f"{name}: {link} is no definition"


def test_search_finds_a_name_and_opens_it(site, chromium):
    with looking(chromium, viewport={"width": 1300, "height": 900}) as (page, wrong):
        page.goto(site + "tutorials/first_agent.html")
        page.keyboard.press("/"); page.keyboard.type("RejectionSampling")
        page.wait_for_selector(".search-result")
        page.locator(".search-result", has_text="RejectionSampling").first.wait_for()
        hit = page.locator('.search-result[href*="rejection_sampling.html"]').first; hit.click()
        page.wait_for_url("**/rejection_sampling.html*")
        assert page.locator("#rejectionsampling").count() == 1 and not wrong, wrong


CONTRAST = """() => {
 const lum = c => { const [r, g, b] = c.map(v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4 }); return .2126 * r + .7152 * g + .0722 * b };
 const paint = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d', {willReadFrequently: true});
 const rgba = s => { paint.clearRect(0, 0, 1, 1); paint.fillStyle = s; paint.fillRect(0, 0, 1, 1); const d = [...paint.getImageData(0, 0, 1, 1).data]; return [...d.slice(0, 3), d[3] / 255] };  // any colour space
 const under = e => { const over = []; for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] > 0) { over.push(c); if (c[3] === 1) break } }
   let base = [255, 255, 255]; if (over.length && over.at(-1)[3] === 1) base = over.pop().slice(0, 3);
   for (const c of over.reverse()) base = base.map((v, i) => v * (1 - c[3]) + c[i] * c[3]); return base };
 const bad = [];
 for (const e of document.querySelectorAll('body *')) {
  if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || !e.offsetParent || ['SCRIPT', 'STYLE', 'OPTION', 'SELECT'].includes(e.tagName) || e.closest('svg,math')) continue;
  const b = under(e), f = rgba(getComputedStyle(e).color), c = f.slice(0, 3).map((v, i) => v * f[3] + b[i] * (1 - f[3]));
  const [x, y] = [lum(c), lum(b)].sort((p, q) => q - p), ratio = (x + .05) / (y + .05);
  if (ratio < 3.5) bad.push(ratio.toFixed(1) + ' ' + e.tagName + '.' + e.className + ': ' + e.textContent.trim().slice(0, 40));
 } return [...new Set(bad)].slice(0, 12) }"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable(site, chromium, scheme):
    "Every word stands out from what is behind it (3.5 to 1 at least; 4.5 is usual for prose, comments in code are paler)."
    with looking(chromium, color_scheme=scheme, viewport={"width": 1300, "height": 900}) as (page, wrong):
        for name in ("index.html", "rejection_sampling.html", "evaluation.html", "guides/troubleshooting.html", "api.html"):
            page.goto(site + name)
            page.evaluate("Promise.all(document.getAnimations().map(a => a.finished))")  # colours fade over when a theme is set
            dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((a, b) => a + +b, 0) < 300")
            assert dark == (scheme == "dark"), f"{name} is not {scheme}"
            assert page.evaluate(CONTRAST) == [], name
        assert not wrong


def test_nothing_is_wider_than_a_telephone(built, site, chromium):
    with looking(chromium, viewport={"width": 390, "height": 844}) as (page, _):
        for name in pages(built):
            page.goto(site + name)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, f"{name} scrolls sideways"


def test_for_language_models(built):
    text = (built/"llms.txt").read_text()
    assert text.startswith("# vlm_agent") and "rejection_sampling" in text
    assert "def select" in (built/"rejection_sampling.llms.md").read_text()
    assert not [p.name for p in built.rglob("*.llms.md") if re.search(r"base64,[\w+/]{80}", p.read_text())]
    assert "<math" in (built/"evaluation.html").read_text()


# ---- the report

@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run of 200 episodes of 3 steps on 10 screens of 1280x720 that no codec makes small, with two tasks."
    folder = tmp_path_factory.mktemp("run"); rng = np.random.default_rng(0)
    screens = [rng.integers(0, 256, (90, 160, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1) + rng.integers(0, 9, (720, 1280, 1), dtype=np.uint8) for _ in range(10)]
    for r in range(1, 6):
        file, lines = TrajectoryFile(folder/"rounds"/f"{r:04d}"), []
        for i in range(40):
            good = (i + r) % 3 == 0
            steps = [Step(Observation(screens[(i + j) % 10], f"Goal {i} <b>bold</b>"), Prediction(f"click({i}, {j})"), {"type": "click", "x": 10 * i, "y": 20 * j}, float(good)) for j in range(3)]
            t = Trajectory(Task(("toy/a", "toy/b")[i % 2], i), steps, "success" if good else "failure", float(good), round=r); file.append(t)
            lines.append(json.dumps(dict(id=t.id, kept=good and i % 4 == 0, reason="success" if good else "return below 0.5")))
        (folder/"rounds"/f"{r:04d}"/"selection.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_the_report_is_small_and_goes_by_keyboard(run, chromium):
    path = write_report(run, most=20, total=200)
    assert path.stat().st_size < 10 * 2**20
    assert write_report(run, most=20, size=1_000_000).stat().st_size < 1_300_000  # whatever the pictures are, they fit
    with looking(chromium, allowed="file:", viewport={"width": 1200, "height": 900}) as (page, wrong):
        page.goto(path.as_uri())
        n = lambda: page.locator("#list article").count()
        every = n(); assert every > 100
        page.keyboard.press("ArrowDown"); page.keyboard.press("j")
        assert page.locator("article.on").count() == 1 and page.locator("#list article").nth(1).get_attribute("class").endswith("on")
        page.keyboard.press("k"); assert page.locator("#list article").nth(0).get_attribute("class").endswith("on")
        page.keyboard.press("End"); assert page.locator("#list article").nth(every - 1).get_attribute("class").endswith("on")
        for key, name, value in (("o", "outcome", "success"), ("t", "task", "toy/a"), ("r", "round", "3"), ("d", "kept", "kept")):
            page.keyboard.press(key)
            assert page.evaluate("document.activeElement.id") == name
            page.keyboard.type(value[:5]); page.wait_for_timeout(30)
            assert page.locator(f"#{name}").input_value() == value, name
            page.keyboard.press("Escape")
            after = n(); assert 0 < after < every, (name, after); every = after
        assert f"{every} of" in page.locator("#count").inner_text()
        page.keyboard.press("ArrowDown"); assert page.locator("article.on").count() == 1
        picture = page.locator("article img").first
        assert page.wait_for_function("document.querySelector('article img').naturalWidth > 100") and picture.is_visible()
        assert page.locator("#list b b").count() == 0 and "<b>bold</b>" in page.locator("article").first.inner_text()  # the page's words stay words
        assert not wrong, wrong


def test_the_report_of_a_run_that_is_not_finished(tmp_path):
    judged = dict(event="evaluation", round=0, name="untrained", step=0, success=0.25, low=0.2, high=0.3, episodes=200)
    (tmp_path/"metrics.jsonl").write_text(json.dumps(judged) + "\n")
    page = write_report(tmp_path).read_text()
    assert "untrained (zero-shot)</td><td>25.0%" in page and "after rejection sampling" not in page
    (tmp_path/"summary.json").write_text(json.dumps(dict(untrained=judged, trained=judged, rounds=0)))
    assert "after rejection sampling" not in write_report(tmp_path).read_text()  # there was no round


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_is_readable(run, chromium, scheme):
    path = run/"report.html"
    if not path.exists(): write_report(run, most=4)
    with looking(chromium, allowed="file:", color_scheme=scheme, viewport={"width": 390, "height": 844}) as (page, wrong):
        page.goto(path.as_uri())
        assert page.evaluate(CONTRAST) == [] and page.evaluate("document.documentElement.scrollWidth") <= 390 and not wrong


# ---- JupyterLab

def free_port():
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); return s.getsockname()[1]


@pytest.fixture
def lab(tmp_path):
    "A JupyterLab on loopback with a token, in a folder of its own."
    import nbformat
    cells = ["from vlm_agent.viewer import player\nplayer('run')"]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells], metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    nbformat.write(nb, tmp_path/"look.ipynb")
    port, token = free_port(), "a-token-for-this-test"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JUPYTER_CONFIG_DIR": str(tmp_path/"c"), "JUPYTER_RUNTIME_DIR": str(tmp_path/"r"), "JUPYTER_DATA_DIR": str(tmp_path/"d"), "JUPYTERLAB_SETTINGS_DIR": str(tmp_path/"s"), "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path/"w"),
           "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    log = open(tmp_path/"lab.log", "w")
    process = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", f"--IdentityProvider.token={token}", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
                                "--LabApp.news_url=None", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={tmp_path}"], env=env, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            assert process.poll() is None, (tmp_path/"lab.log").read_text()[-3000:]
            try: urllib.request.urlopen(f"{url}/api?token={token}", timeout=5).read(); break
            except OSError: time.sleep(0.25)
        else: pytest.fail((tmp_path/"lab.log").read_text()[-3000:])
        yield tmp_path, f"{url}/lab/tree/look.ipynb?token={token}"
    finally:
        process.terminate()
        try: process.wait(20)
        except subprocess.TimeoutExpired: process.kill(); process.wait()
        log.close()


def test_the_player_in_jupyterlab(run, lab, chromium):
    from playwright.sync_api import TimeoutError
    folder, url = lab
    (folder/"run").symlink_to(run)
    with looking(chromium, viewport={"width": 1400, "height": 1000}) as (page, wrong):
        page.goto(url, timeout=60_000)
        page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for(timeout=60_000)
        page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(timeout=120_000)  # a key pressed before the kernel is there runs nothing
        asked = page.locator("dialog.jp-Dialog")
        for _ in range(20):  # while JupyterLab still lays itself out or looks for its kernel, a key reaches nobody, or it asks for the kernel
            with contextlib.suppress(TimeoutError):
                if asked.count(): asked.locator(".jp-mod-accept").last.click(timeout=3000)
                page.locator(".jp-Cell .cm-content").first.click(timeout=3000)
                page.keyboard.press("Control+Enter")
                page.wait_for_function(r"/[*\d]/.test(document.querySelector('.jp-Cell .jp-InputPrompt').innerText)", timeout=3000); break
        words = page.locator(".jp-OutputArea .widget-html-content").first
        try: words.wait_for(timeout=60_000)
        except Exception: pytest.fail(f"no player after a minute: {wrong}\n{page.locator('.jp-NotebookPanel').inner_text()[-2000:]}\n{(folder/'lab.log').read_text()[-2000:]}")
        assert "1 of 200" in words.inner_text()
        picture = page.locator(".jp-OutputArea img.widget-image, .jp-OutputArea .widget-image img").first; picture.wait_for()
        page.wait_for_function("[...document.querySelectorAll('.jp-OutputArea img')].some(i => i.naturalWidth > 100)")
        page.locator(".jp-OutputArea select").first.select_option("success")
        page.wait_for_function("!document.querySelector('.jp-OutputArea .widget-html-content').innerText.includes('of 200')", timeout=20_000)
        before = words.inner_text()
        page.locator(".jp-OutputArea .noUi-handle").nth(0).focus(); page.keyboard.press("ArrowRight")
        page.wait_for_function("b => document.querySelector('.jp-OutputArea .widget-html-content').innerText !== b", arg=before, timeout=20_000)
        assert "2 of " in words.inner_text()
        assert page.locator(".jp-RenderedText[data-mime-type*='stderr'], .jp-OutputArea-output[data-mime-type*='error']").count() == 0
        if os.environ.get("VLM_AGENT_PICTURES"): page.screenshot(path=f"{os.environ['VLM_AGENT_PICTURES']}/lab.png")
        assert not wrong, "\n".join(wrong)
