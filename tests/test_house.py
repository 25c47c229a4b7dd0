"""The house's rules that a machine can hold: who may import whom, what is light, what the package promises to a stranger."""
import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TABLE = "core viewer families shared_prefix wrapper decoder environment browser server runner rejection_sampling evaluation memory training cli".split()
MODULES = [m for m in TABLE if (ROOT/"vlm_agent"/f"{m}.py").exists()]
HEAVY = {"torch", "transformers", "peft", "accelerate", "bitsandbytes", "matplotlib", "ipywidgets", "gymnasium", "playwright", "miniwob",
         "starlette", "uvicorn", "websockets", "requests", "jsonargparse", "tensorboard"}
AT_TOP = {  # heavy packages that a module may load when it is imported
    "families": {"torch", "transformers"}, "shared_prefix": {"torch", "transformers"}, "wrapper": {"torch", "transformers", "peft"},
    "environment": {"gymnasium"}, "browser": {"gymnasium"}, "server": {"gymnasium", "starlette", "uvicorn", "websockets", "requests"},
    "memory": {"torch"}, "training": {"torch", "accelerate"}}


def imports(path):
    "(package, is it at the top of the module?) for every import; relative ones as '.name'."
    tree = ast.parse(path.read_text())
    inside = {n for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for n in ast.walk(f)}
    for node in ast.walk(tree):
        top = node not in inside
        if isinstance(node, ast.Import): yield from ((a.name, top) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level: yield from ((f".{node.module}", top) if node.module else (f".{a.name}", top) for a in node.names)
            else: yield node.module, top


def test_every_module_stands_in_the_table_and_in_the_readme():
    here = {p.stem for p in (ROOT/"vlm_agent").glob("*.py")} - {"__init__", "_modidx"}
    assert here <= set(TABLE) and len(here) > 10
    told = set(re.findall(r"^\| \[\d\d_\w+\]\(.*?\) \| `(\w+)` \|", (ROOT/"README.md").read_text(), re.M))
    assert told == here, "the map in nbs/index.ipynb and the modules differ"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_modules_above_it(module):
    for name, top in imports(ROOT/"vlm_agent"/f"{module}.py"):
        if name.startswith((".", "vlm_agent")):
            other = name.removeprefix("vlm_agent").lstrip(".").split(".")[0]
            if other and not other.startswith('__'): assert TABLE.index(other) < TABLE.index(module), f"{module} imports {other}, which stands below it"
        elif top and name.split(".")[0] in HEAVY:
            assert name.split(".")[0] in AT_TOP.get(module, set()), f"{module} loads {name} when it is imported; import it where it is used"


def python(code, **env):
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", env={**os.environ, **env}, timeout=120)
    assert r.returncode == 0, r.stderr
    return r.stdout.strip()


def test_import_is_light():
    assert python("import sys, vlm_agent; print([m for m in ('torch', 'numpy', 'transformers', 'gymnasium') if m in sys.modules])") == "[]"


def test_the_environment_needs_no_torch():
    assert python("import sys, vlm_agent.server, vlm_agent.runner, vlm_agent.evaluation; print('torch' in sys.modules)") == "False"


def test_public_names_are_lazy_and_real():
    names = "VLMWrapper, ActionDecoder, TaskRunner, RejectionSampling, Trainer, train_with_orchestration"
    assert python(f"from vlm_agent import {names}; print(all(map(callable, ({names}))))") == "True"
    assert "did not" not in python("import vlm_agent\nassert set(vlm_agent._WHERE) <= set(dir(vlm_agent))\ntry: vlm_agent.Nothing\nexcept AttributeError as e: print(e)")


def test_nothing_is_unpickled_from_strangers():
    "torch.load only with weights_only=True; no pickle, eval or exec anywhere in the package."
    for path in (ROOT/"vlm_agent").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call): continue
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "pickle.load", "pickle.loads", "np.load", "numpy.load"), f"{path.name}:{node.lineno}: {called}"
            if called == "torch.load": assert any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in node.keywords), f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("how", ["wheel"])
def test_wheel_runs_in_an_empty_environment(how, tmp_path):
    "pip wheel . builds; installed beside this environment's packages it imports, and its command answers."
    src = tmp_path/"src"
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        if (ROOT/name).is_file(): (src/name).parent.mkdir(parents=True, exist_ok=True); (src/name).write_bytes((ROOT/name).read_bytes())
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(src)], check=True, timeout=300, capture_output=True)
    wheel, = tmp_path.glob("vlm_agent-*.whl")
    venv = tmp_path/"venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=120)
    site = next((venv/"lib").glob("python*/site-packages"))
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, timeout=300, capture_output=True)
    theirs = Path(__import__("numpy").__file__).parents[1]
    (site/"requirements.pth").write_text(str(theirs))  # the requirements, from this environment; vlm_agent itself from the wheel
    run = lambda *a: subprocess.run([str(venv/"bin"/"python"), *a], capture_output=True, text=True, cwd=tmp_path, timeout=120, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"})
    r = run("-c", "import vlm_agent; print(vlm_agent.__file__)")
    assert r.returncode == 0 and str(site) in r.stdout, r.stderr
    r = run("-m", "vlm_agent.cli", "--help")
    assert r.returncode == 0 and "train" in r.stdout, r.stderr
