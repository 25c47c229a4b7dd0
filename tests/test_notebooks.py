"""The notebooks are the package: each is clean, exported as it stands, and runs from top to bottom in a process of its own."""
import filecmp
import json
from pathlib import Path

import pytest
from conftest import NOTEBOOKS, ROOT, flagged_cells

NAMES = [str(p.relative_to(ROOT)) for p in NOTEBOOKS]


def differing(a, b, pattern):
    "Files of `b` that are missing in, or differ from, `a`; and the other way."
    names = {str(p.relative_to(d)) for d in (a, b) for p in d.rglob(pattern) if ".ipynb_checkpoints" not in p.parts and "__pycache__" not in p.parts}
    return sorted(n for n in names if not ((a/n).exists() and (b/n).exists() and filecmp.cmp(a/n, b/n, shallow=False)))


def test_notebooks_are_clean(copy_of_house, nbdev):
    r = nbdev("nbdev_clean", cwd=copy_of_house)
    assert r.returncode == 0, r.stderr
    dirty = differing(ROOT/"nbs", copy_of_house/"nbs", "*.ipynb")
    assert not dirty, f"run nbdev_clean; it would change {dirty}"


def test_package_is_what_the_notebooks_export(copy_of_house, nbdev):
    for p in (copy_of_house/"vlm_agent").glob("*.py"):
        if p.name != "__init__.py": p.unlink()  # a module whose notebook is gone must not stay
    r = nbdev("nbdev_export", cwd=copy_of_house)
    assert r.returncode == 0, r.stderr
    stale = differing(ROOT/"vlm_agent", copy_of_house/"vlm_agent", "*.py")
    assert not stale, f"run nbdev_export; it would change {stale}"


@pytest.mark.parametrize("name", NAMES)
def test_notebook(name, nbdev):
    r = nbdev("nbdev_test", "--path", name, "--n_workers", "0", cwd=ROOT)
    assert r.returncode == 0, (r.stdout + r.stderr)[-6000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, p in zip(NAMES, NOTEBOOKS) if flagged_cells(p, "slow")])
def test_notebook_with_slow_cells(name, nbdev):
    r = nbdev("nbdev_test", "--path", name, "--n_workers", "0", "--flags", "slow", cwd=ROOT, timeout=3600)
    assert r.returncode == 0, (r.stdout + r.stderr)[-6000:]


def test_readme_is_the_index_notebook(monkeypatch):
    monkeypatch.syspath_prepend(ROOT/"nbs"/"site")
    from readme import render
    assert (ROOT/"README.md").read_text() == render(), "run python nbs/site/readme.py"


def test_a_figure_that_was_shown_is_kept_as_a_picture():
    for path in NOTEBOOKS:
        for c in json.loads(path.read_text())["cells"]:
            for o in c.get("outputs", []):
                data = o.get("data", {}); said = "".join(data.get("text/plain", ""))
                assert not said.startswith("<Figure") or "image/png" in data, (path.name, "".join(c["source"])[:80])
