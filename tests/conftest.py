"""`--slow` runs what takes minutes instead of what takes seconds; what was left out is listed at the end of the log."""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts and not p.name.startswith("_"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models; two threads on a busy machine wait for each other
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers(config):
    "`-n auto`: one worker for each core that this process may use; four at most, for some tests take a gigabyte."
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())


def pytest_addoption(parser): parser.addoption("--slow", action="store_true", help="run the slow tests and the slow cells, and nothing else")


def pytest_collection_modifyitems(config, items):
    "Without --slow the slow tests are deselected; with it, everything else is, but for the notebooks that have slow cells."
    slow = config.getoption("--slow")
    chosen = [i for i in items if (i.get_closest_marker("slow") is not None) == slow]
    config.hook.pytest_deselected(items=[i for i in items if i not in chosen])
    items[:] = chosen


def flagged_cells(notebook, flag):
    "How many code cells of a notebook carry `#| flag`."
    return sum(c.cell_type == "code" and re.search(rf"^#\|\s*{flag}\s*$", c.source, re.M) is not None for c in nbformat.read(notebook, 4).cells)


def pytest_terminal_summary(terminalreporter, config):
    terminalreporter.section("left out of this run")
    for flag, how in (("slow", "make test-slow"), ("gpu", "a machine with a GPU: nbdev_test --flags gpu")):
        if flag == "slow" and config.getoption("--slow"): continue
        cells = {p.relative_to(ROOT): flagged_cells(p, flag) for p in NOTEBOOKS}
        for path, n in cells.items():
            if n: terminalreporter.write_line(f"{path}: {n} cell{'s' * (n > 1)} flagged `{flag}` ({how})")
    if not config.getoption("--slow"):
        slow = {p.name: len(re.findall(r"^\s*@pytest\.mark\.slow|pytestmark = pytest\.mark\.slow", p.read_text(), re.M)) for p in sorted((ROOT/"tests").glob("test_*.py"))}
        for name, n in slow.items():
            if n: terminalreporter.write_line(f"tests/{name}: {n} marked `slow` (make test-slow)")


@pytest.fixture
def copy_of_house(tmp_path):
    "A copy of what nbdev reads and writes, to run its commands on without touching the checkout."
    for name in ("settings.ini", "pyproject.toml", "setup.py", "README.md"): shutil.copy(ROOT/name, tmp_path/name)
    for name in ("nbs", "vlm_agent"): shutil.copytree(ROOT/name, tmp_path/name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    return tmp_path


@pytest.fixture
def nbdev(request):
    "Run one of nbdev's commands, of this interpreter's environment."
    def run(command, *args, cwd, timeout=600):
        return subprocess.run([str(Path(sys.executable).parent/command), *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=timeout)
    return run
