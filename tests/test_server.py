"""Servers and clients that die, lie, stall and crowd, as real processes on real sockets."""
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect as websocket

from vlm_agent.browser import BrowserEnv, Chromium, miniwob_task
from vlm_agent.core import ActionError
from vlm_agent.environment import EnvironmentFault, make_toy
from vlm_agent.server import GymAdapter, Session, browsergym_action, connect, encode_png, make_env, serve, start_server

ROOT = Path(__file__).parent.parent
CLICK = {"type": "click", "x": 80, "y": 100}


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition(): return True
        time.sleep(0.05)
    return False


def serving(*args, **env):
    "A server started as the command line does; -> (process, url)."
    code = f"from vlm_agent.server import serve; serve({', '.join(args)})"
    p = subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **env})
    line = p.stdout.readline()
    assert "serving" in line, line + p.stdout.read()
    return p, line.split(" at ")[1].split()[0]


def stop(p):
    p.terminate()
    try: return p.wait(15)
    finally: p.kill(); p.stdout.close()


@pytest.fixture(scope="module")
def toy():
    with start_server("toy/click-button") as s: yield s


def commandline(p):
    try: return " ".join(p.cmdline())
    except psutil.Error: return ""  # it has ended since


class Raw:
    "A client that says what it is told to say."
    def __init__(self, url, **keywords): self.socket = websocket(url.replace("http", "ws") + "/ws", max_size=None, **keywords).__enter__()
    def __call__(self, frame): self.socket.send(frame if isinstance(frame, (str, bytes)) else json.dumps(frame)); return json.loads(self.socket.recv(20))
    def close(self): self.socket.close()


# Frames

@pytest.mark.parametrize("frame, code", [("{", "INVALID_JSON"), ("[1]", "INVALID_JSON"), (b"\xff\xfe", "INVALID_JSON"), ("[" * 100_000, "INVALID_JSON"), ({"type": "rest"}, "UNKNOWN_TYPE"), ({}, "UNKNOWN_TYPE"),
                                         ({"type": "step", "data": 3}, "VALIDATION_ERROR"), ({"type": "step", "data": {"type": "clik"}}, "VALIDATION_ERROR"), ({"type": "step", "data": {"type": "click", "x": 1e9, "y": 0}}, "VALIDATION_ERROR"),
                                         ({"type": "step", "data": {"type": "click", "x": "NaN", "y": 0}}, "VALIDATION_ERROR"), ('{"type": "step", "data": {"type": "click", "x": NaN, "y": 0}}', "VALIDATION_ERROR"),
                                         ({"type": "reset", "data": {"seed": -1}}, "VALIDATION_ERROR"), ({"type": "reset", "data": {"seed": "x"}}, "VALIDATION_ERROR"), ({"type": "reset", "data": {"task": "toy/login"}}, "VALIDATION_ERROR"),
                                         ("9" * (2 * 2**20), "VALIDATION_ERROR")])
def test_a_wrong_frame_is_an_error_and_the_episode_goes_on(toy, frame, code):
    raw, near = Raw(toy.url), make_toy("toy/click-button")
    raw({"type": "reset", "data": {"seed": 5}}); near.reset(seed=5)
    answer = raw(frame)
    assert (answer["type"], answer["data"]["code"]) == ("error", code) and answer["data"]["message"]
    assert raw({"type": "state"})["data"]["step_count"] == 0
    done = raw({"type": "step", "data": near.oracle()})["data"]
    assert (done["reward"], done["done"]) == (1.0, True)
    raw.close()


def test_an_enormous_frame_ends_only_its_own_session(toy):
    raw, other = Raw(toy.url), connect(toy.url)
    other.reset(seed=0)
    with pytest.raises(ConnectionClosed): raw("9" * (20 * 2**20))
    assert other.step(CLICK)[3] is False
    other.close()


def test_a_step_before_a_reset_is_said(toy):
    raw = Raw(toy.url)
    assert raw({"type": "step", "data": CLICK})["data"]["code"] == "SESSION_ERROR"
    assert raw({"type": "reset"})["type"] == "observation"
    raw.close()


def test_openenvs_action_metadata_is_no_part_of_the_action(toy):
    raw = Raw(toy.url)
    raw({"type": "reset"})
    assert raw({"type": "step", "data": {**CLICK, "metadata": {}}})["type"] == "observation"
    raw.close()


def test_a_wrong_action_leaves_the_remote_episode_alive(toy):
    env, near = connect(toy.url), make_toy("toy/click-button")
    env.reset(seed=1); near.reset(seed=1)
    with pytest.raises(ActionError): env.step({"type": "click", "x": 161, "y": 0})
    env.action_space.size = (10_000, 10_000)  # even if our own check had let it through
    with pytest.raises(ActionError, match="x must be in"): env.step({"type": "click", "x": 9_000, "y": 0})
    assert env.step(near.oracle())[1] == 1.0
    env.close()


# Clients

def test_a_client_that_vanishes_leaves_nothing_behind():
    p, url = serving("'toy/click-button', port=0, max_sessions=2")
    for _ in range(6):
        raw = None
        def came():
            nonlocal raw
            raw = Raw(url)
            return raw({"type": "reset"})["type"] == "observation" or raw.close()
        assert wait_until(came)
        raw.socket.socket.shutdown(socket.SHUT_RDWR)  # no goodbye
    assert stop(p) is not None


def test_one_connection_too_many_is_told_so():
    p, url = serving("'toy/click-button', port=0, max_sessions=2")
    a, b = connect(url), connect(url)
    a.reset(); b.reset()
    with pytest.raises(EnvironmentFault, match="CAPACITY_REACHED"): connect(url, timeout=5).reset()
    a.close()
    c = connect(url)
    def came():
        try: c.reset(); return True
        except EnvironmentFault: return False
    assert wait_until(came)
    stop(p)


# Servers

def test_a_killed_server_voids_the_episode_and_a_restarted_one_serves_again():
    p, url = serving("'toy/click-button', port=0")
    port = int(url.rsplit(":", 1)[1])
    env = connect(url, timeout=20); env.reset(seed=3)
    p.kill(); p.wait()
    with pytest.raises(EnvironmentFault, match="lost"): env.step(CLICK)
    again = {}
    t = threading.Thread(target=lambda: (time.sleep(0.5), again.update(p=serving(f"'toy/click-button', port={port}")[0]))); t.start()
    o, _ = env.reset(seed=3)  # waits for it
    assert (o["screenshot"] == make_toy("toy/click-button").reset(seed=3)[0]["screenshot"]).all()
    t.join(); stop(again["p"])


def test_a_server_that_does_not_answer_is_a_fault():
    silent = socket.create_server(("127.0.0.1", 0))
    start = time.monotonic()
    with pytest.raises(EnvironmentFault): connect(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=1)
    assert time.monotonic() - start < 10
    silent.close()


def test_stopping_is_graceful_and_quick():
    p, url = serving("'toy/click-button', port=0")
    env = connect(url); env.reset()
    start = time.monotonic()
    stop(p)
    assert time.monotonic() - start < 12
    with pytest.raises(EnvironmentFault): env.step(CLICK)


@pytest.mark.parametrize("task", ["toy/click-button", "miniwob/click-test"])
def test_a_private_server_dies_with_its_parent(task):
    code = f"""
    import os, sys, time
    from vlm_agent.server import start_server, connect
    s = start_server({task!r}); e = connect(s.url); e.reset()
    print(s.process.pid, flush=True); time.sleep(60)"""
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    family = [child, *child.children(recursive=True)]
    assert len(family) > 3 or task.startswith("toy")
    parent.kill(); parent.wait(); parent.stdout.close()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


def test_a_private_server_outlives_the_thread_that_started_it():
    made = []
    t = threading.Thread(target=lambda: made.append(start_server("toy/click-button"))); t.start(); t.join()
    time.sleep(0.5)
    assert requests.get(made[0].url + "/health").json() == {"status": "healthy"}
    made[0].close()
    assert made[0].process.returncode is not None


def test_a_task_may_print_while_it_is_imported(tmp_path, monkeypatch):
    (tmp_path/"noisy_task.py").write_text("import gymnasium as gym\nfrom vlm_agent.environment import make_toy\nprint('hello from a package')\ngym.register('Noisy-v0', lambda **_: make_toy('toy/click-button'))\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))
    with start_server("gym:noisy_task:Noisy-v0") as s: assert requests.get(s.url + "/health").json() == {"status": "healthy"}


def test_no_proxy_hears_what_stays_on_this_machine(monkeypatch):
    heard = socket.create_server(("127.0.0.1", 0)); heard.settimeout(0.2)
    for name in ("HTTP_PROXY", "http_proxy"): monkeypatch.setenv(name, f"http://127.0.0.1:{heard.getsockname()[1]}")
    for name in ("NO_PROXY", "no_proxy"): monkeypatch.delenv(name, raising=False)
    with start_server("toy/click-button") as s, connect(s.url) as env: assert env.reset(seed=0)[0]["goal"]
    with pytest.raises(TimeoutError): heard.accept()
    heard.close()


def test_a_taken_port_is_said():
    with socket.create_server(("127.0.0.1", 0)) as s:
        with pytest.raises(OSError, match="choose another port"): serve("toy/click-button", port=s.getsockname()[1])


@pytest.mark.parametrize("keywords, says", [(dict(), "give either"), (dict(task="toy/login", suite="toy"), "give either"), (dict(suite="nothing/"), "no task begins"), (dict(task="toy/logn"), "did you mean"), (dict(task="toy/login", host="0.0.0.0"), "token"), (dict(task="toy/login", port=65536), "65535")])
def test_what_cannot_be_served_is_said(keywords, says):
    with pytest.raises(ValueError, match=says): serve(**{"port": 0, **keywords})


# Who may connect

def test_strangers_are_turned_away():
    p, url = serving("'toy/click-button', port=0, host='127.0.0.1', token='secret'")
    with pytest.raises(EnvironmentFault, match="403.*token"): connect(url)
    with pytest.raises(EnvironmentFault, match="403"): connect(url, token="guess")
    connect(url, token="secret").reset()
    assert requests.get(url + "/health").status_code == 403
    assert requests.get(url + "/health", headers={"Authorization": "Bearer secret"}).json() == {"status": "healthy"}
    stop(p)


def test_a_foreign_web_page_may_not_use_a_local_server(toy):
    with pytest.raises(InvalidStatus): Raw(toy.url, origin="https://evil.example")
    port = toy.url.rsplit(":", 1)[1]
    assert requests.get(toy.url + "/health", headers={"Host": f"evil.example:{port}"}).status_code == 403
    assert requests.get(toy.url + "/health", headers={"Host": f"localhost:{port}"}).status_code == 200


# Suites

def test_a_suite_serves_each_of_its_tasks():
    p, url = serving("suite='toy', port=0")
    names = requests.get(url + "/tasks").json()["tasks"]
    assert "toy/login" in names and len(names) == 8
    env = connect(url, task="toy/login")
    assert env.reset(seed=3)[1]["metadata"]["task"] == "toy/login"
    assert {connect(url).reset(seed=i)[1]["metadata"]["task"] for i in range(8)} == set(names)
    stop(p)


def test_an_episode_that_is_left_for_another_task_keeps_no_page():
    c = Chromium(pages=1, patience=1)
    names = "miniwob/click-test", "miniwob/focus-text"
    session = Session(names, lambda spec: BrowserEnv(miniwob_task(spec), c))
    for name in (*names, names[0]): assert session.answer({"type": "reset", "data": {"task": name, "seed": 0}})["type"] == "observation"
    session.close(); c.close()


# Chromium behind a server

def test_64_clients_on_8_pages():
    p, url = serving("'miniwob/click-test', port=0", VLM_AGENT_PAGES="8")
    played = []
    def play(i):
        env = connect(url, timeout=120)
        for seed in (i, i + 100):
            env.reset(seed=seed); env.step(CLICK)
            for _ in range(2):
                if env.running: env.step({"type": "click", "x": 40, "y": 90})
            if env.running: env.step({"type": "done"})
            played.append(seed)
        env.close()
    threads = [threading.Thread(target=play, args=(i,)) for i in range(64)]
    for t in threads: t.start()
    for t in threads: t.join(150)
    pages = sum("--type=renderer" in commandline(c) for c in psutil.Process(p.pid).children(recursive=True))
    stop(p)
    assert len(played) == 128 and pages < 32  # one renderer a page and up to one spare each, not 64


def test_a_browser_killed_under_a_server_is_replaced():
    p, url = serving("'miniwob/click-test', port=0")
    env, near = connect(url), make_env("miniwob/click-test")
    env.reset(seed=0)
    for c in psutil.Process(p.pid).children(recursive=True):
        if "headless" in commandline(c): c.kill()
    with pytest.raises(EnvironmentFault, match="EXECUTION_ERROR"): env.step(CLICK)
    assert requests.get(url + "/health").json() == {"status": "degraded"}
    o, _ = env.reset(seed=0)
    assert requests.get(url + "/health").json() == {"status": "healthy"}
    assert (o["screenshot"] == near.reset(seed=0)[0]["screenshot"]).all()
    assert env.step(near.oracle())[1] == 1.0
    near.close(); stop(p)


# Other people's servers and environments

FOREIGN = '''
import base64, json, sys
import uvicorn, numpy as np
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from vlm_agent.server import encode_png
picture = (np.arange(20 * 30 * 3) % 251).astype(np.uint8).reshape(20, 30, 3)
png = base64.b64encode(encode_png(picture)).decode()
shot = {"png": png, "url": "data:image/png;base64," + png, "lists": picture.tolist(), "none": None}[sys.argv[2]]
async def ws(s):
    await s.accept()
    while True:
        m = json.loads(await s.receive_text())
        if m["type"] == "close": return
        right = m["type"] == "step" and m["data"] == {"action_str": 'mouse_click(3, 4, button="left")'}
        await s.send_text(json.dumps({"type": "observation", "data": {"observation": {"screenshot": shot, "goal": "g", "url": "u", "last_action_error": "e"}, "reward": float(right), "done": right}}))
async def schema(r): return JSONResponse({"action": {"properties": {"action_str": {"type": "string"}}}})
uvicorn.run(Starlette(routes=[WebSocketRoute("/ws", ws), Route("/schema", schema)]), port=int(sys.argv[1]), log_level="error")
'''


@pytest.mark.parametrize("kind", ["png", "url", "lists", "none"])
def test_any_openenv_server_with_a_screenshot_will_do(tmp_path, kind):
    (tmp_path/"server.py").write_text(FOREIGN)
    with socket.create_server(("127.0.0.1", 0)) as s: port = s.getsockname()[1]
    p = subprocess.Popen([sys.executable, str(tmp_path/"server.py"), str(port), kind])
    try:
        env = None
        def there():
            nonlocal env
            try: env = connect(f"http://127.0.0.1:{port}", timeout=5); return True
            except EnvironmentFault: return False
        assert wait_until(there)
        if kind == "none":
            with pytest.raises(EnvironmentFault, match="no observation with a screenshot"): env.reset()
            return
        o, info = env.reset(seed=1)
        assert (o["screenshot"] == (np.arange(1800) % 251).astype(np.uint8).reshape(20, 30, 3)).all() and o["goal"] == "g" and (info["url"], info["error"]) == ("u", "e")
        assert env.step({"type": "click", "x": 3, "y": 4})[1:3] == (1.0, True)
        env.close()
    finally: p.kill(); p.wait()


@pytest.mark.parametrize("action, said", [({"type": "click", "x": 1, "y": 2}, 'mouse_click(1, 2, button="left")'), ({"type": "type", "text": 'say "hi"\n', "submit": True}, 'keyboard_type("say \\"hi\\"\\n")\nkeyboard_press("Enter")'),
                                          ({"type": "key", "keys": ["ctrl", "a"]}, 'keyboard_press("Control+a")'), ({"type": "scroll", "x": 1, "y": 2, "dy": 3}, "mouse_move(1, 2)\nscroll(0, 3)"),
                                          ({"type": "drag", "x": 1, "y": 2, "x2": 3, "y2": 4}, "mouse_drag_and_drop(1, 2, 3, 4)"), ({"type": "double_click", "x": 1, "y": 2}, 'mouse_dblclick(1, 2, button="left")'),
                                          ({"type": "done"}, 'send_msg_to_user("success")'), ({"type": "done", "status": "failure"}, 'report_infeasible("failure")')])
def test_browsergyms_words(action, said): assert browsergym_action(action) == {"action_str": said}


def test_what_browsergym_has_no_words_for_is_refused():
    with pytest.raises(ActionError, match="once or twice"): browsergym_action({"type": "click", "x": 1, "y": 2, "count": 3})


def pip_venv(path, *packages, deps=True):
    "An environment of its own for somebody else's package."
    subprocess.run([sys.executable, "-m", "venv", str(path)], check=True, timeout=300)
    python = path/"bin"/"python"
    r = subprocess.run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *([] if deps else ["--no-deps"]), *packages], capture_output=True, text=True, timeout=900)
    assert r.returncode == 0, r.stderr[-2000:]
    return python


@pytest.mark.slow
def test_openenvs_own_client_can_play(toy, tmp_path):
    "The client of the PyPI package `openenv`, in an environment of its own, without the package's half gigabyte of requirements."
    python = pip_venv(tmp_path/"venv", "websockets", "pydantic", "requests", "fastapi", "huggingface_hub", "pyyaml", "httpx", "fastmcp", "tomli", "tomli-w", "rich", "typer", "starlette", "uvicorn")
    subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-deps", "openenv==0.10.0"], check=True, timeout=600, capture_output=True)
    near = make_toy("toy/click-button"); near.reset(seed=11)
    code = f"""
    from openenv.core.generic_client import GenericEnvClient
    with GenericEnvClient(base_url={toy.url!r}).sync() as env:
        r = env.reset(seed=11)
        print(sorted(r.observation), r.done)
        r = env.step({near.oracle()!r})
        print(r.reward, r.done, env.state()["step_count"])"""
    r = subprocess.run([str(python), "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert r.returncode == 0, r.stderr[-3000:]
    assert r.stdout.split("\n")[:2] == ["['error', 'goal', 'height', 'metadata', 'screenshot', 'url', 'width'] False", "1.0 True 1"]


@pytest.mark.slow
def test_browsergym_can_be_acted_in(tmp_path):
    "BrowserGym's MiniWoB in an environment of its own (it pins another Playwright), through our adapter, in our Chromium."
    from vlm_agent.browser import find_chromium, miniwob_folder
    python = pip_venv(tmp_path/"venv", "browsergym-core", "browsergym-miniwob", "fastcore", "starlette", "uvicorn", "websockets", "requests")
    code = f"""
    import playwright.sync_api as p
    launch = p.BrowserType.launch
    p.BrowserType.launch = lambda self, **k: launch(self, **{{**k, "executable_path": {find_chromium()!r}}})
    import gymnasium as gym, browsergym.miniwob
    from browsergym.core.action.highlevel import HighLevelActionSet
    from vlm_agent.server import GymAdapter
    env = GymAdapter(gym.make("browsergym/miniwob.click-test", action_mapping=HighLevelActionSet(subsets=["coord"]).to_python_code))
    o, info = env.reset(seed=1)
    page = env.env.unwrapped.page
    b, zoom = page.locator("#subbtn").bounding_box(), page._bgym_scale_factor  # its screenshots are zoomed
    print(o["screenshot"].ndim, o["goal"], *env.step({{"type": "click", "x": zoom * (b["x"] + b["width"] / 2), "y": zoom * (b["y"] + b["height"] / 2)}})[1:3])
    env.close()"""
    r = subprocess.run([str(python), "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT), "MINIWOB_URL": (miniwob_folder()/"miniwob").as_uri() + "/"})
    assert r.returncode == 0, r.stderr[-3000:]
    assert r.stdout.strip().endswith("3 Click the button. 1.0 True")
