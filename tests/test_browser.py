"""What goes wrong with real browsers, made to happen in a real one: whose fault it is, and that the next episode is fine."""
import http.server
import os
import signal
import socket
import threading
import time

import psutil
import pytest

from vlm_agent import browser
from vlm_agent.browser import BrowserEnv, Chromium, PageTask, miniwob_task, miniwob_tasks, web_task
from vlm_agent.environment import EnvironmentFault

PAGES = {
    "/start": "<button style='position:fixed;left:0;top:0;width:100px;height:100px' onclick='go()'>go</button><div id=out></div><script>function go(){ ACTION }</script>",
    "/elsewhere": "<h1>elsewhere</h1>",
}


class Site(http.server.BaseHTTPRequestHandler):
    "Serves a page whose button does what the query string says."
    def do_GET(self):
        self.server.seen.append(self.path)
        if self.path == "/file": body, headers = b"x" * 1000, {"Content-Type": "application/octet-stream", "Content-Disposition": "attachment; filename=x.bin"}
        elif self.path == "/worker.js": body, headers = f"new WebSocket('ws://127.0.0.1:{self.server.foreign}/from-worker')".encode(), {"Content-Type": "text/javascript"}
        else:
            action = self.server.actions.get(self.path.split("?")[-1], "")
            body, headers = PAGES.get(self.path.split("?")[0], "").replace("ACTION", action).encode(), {"Content-Type": "text/html"}
        self.send_response(200)
        for k, v in headers.items(): self.send_header(k, v)
        self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    do_POST = do_GET
    def log_message(self, *a): pass


def serve(**more):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.seen, server.actions = [], {}
    for k, v in more.items(): setattr(server, k, v)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def foreign():
    "A host that no task may reach; whoever speaks to it is recorded."
    listener = socket.create_server(("127.0.0.1", 0)); listener.settimeout(0.1)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.bind(("127.0.0.1", listener.getsockname()[1])); udp.settimeout(0.1)
    class Foreign: port, heard, going = listener.getsockname()[1], [], True
    def listen(receive):
        while Foreign.going:
            try: Foreign.heard.append(receive())
            except TimeoutError: pass
            except OSError: return
    for f in (lambda: listener.accept()[0].recv(200), lambda: udp.recv(200)): threading.Thread(target=listen, args=(f,), daemon=True).start()
    yield Foreign
    Foreign.going = False; listener.close(); udp.close()


@pytest.fixture(scope="module")
def site(foreign):
    s = serve(foreign=foreign.port)
    yield s
    s.shutdown()


@pytest.fixture(scope="module")
def chromium():
    c = Chromium()
    yield c
    c.close()


@pytest.fixture
def press(site, chromium):
    "An environment whose button runs some JavaScript."
    made = []
    def make(javascript, state="() => [0, false]", **keywords):
        key = f"a{len(site.actions)}"; site.actions[key] = javascript
        env = BrowserEnv(PageTask(f"press/{key}", f"http://127.0.0.1:{site.server_port}/start?{key}", (200, 200), "Press.", state=state, **keywords), chromium)
        env.reset(seed=0); made.append(env)
        return env
    yield make
    for env in made: env.close()


GO, WAIT = {"type": "click", "x": 50, "y": 50}, {"type": "wait", "ms": 1}


def goes_on(env):
    "The episode is alive."
    assert env.running and env.step(WAIT)[2:4] == (False, False)
    return True


# What the agent's own action caused: handled, and the episode goes on

@pytest.mark.parametrize("javascript, says", [("alert('hello')", "alert dismissed: hello"), ("out.textContent = confirm('sure?')", "confirm dismissed: sure?"), ("out.textContent = prompt('name?')", "prompt dismissed: name?")])
def test_dialogs_are_dismissed(press, javascript, says):
    env = press(javascript)
    assert says in env.step(GO)[4]["error"] and goes_on(env)


def test_a_page_that_does_not_want_to_be_left_is_left(press, site):
    env = press("addEventListener('beforeunload', e => { e.preventDefault(); e.returnValue = 'stay' })")
    env.step(GO)
    _, _, over, _, info = env.step({"type": "goto", "url": f"http://127.0.0.1:{site.server_port}/elsewhere"})
    assert info["url"].endswith("/elsewhere") and not over
    env.reset(seed=0)


def test_pop_ups_are_closed(press, chromium):
    env = press("open('/elsewhere'); open('/elsewhere', '_blank', 'width=50')")
    assert "pop-up" in env.step(GO)[4]["error"] and goes_on(env)
    assert len(env.tab.context.pages) == 1


def test_downloads_are_refused(press, tmp_path):
    env = press("location.href = '/file'")
    env.step(GO)
    assert goes_on(env) and env.tab.page.url.split("?")[0].endswith("/start")


def test_navigation_within_the_application_is_allowed(press):
    env = press("location.href = '/elsewhere'", state="() => [+location.pathname.endsWith('elsewhere'), location.pathname.endsWith('elsewhere')]")
    _, reward, over, _, info = env.step(GO)
    assert (reward, over, info["success"]) == (1.0, True, True)


def test_a_link_to_the_page_itself_does_not_leave_it(chromium):
    env = BrowserEnv(miniwob_task("miniwob/click-test"), chromium)
    env.reset(seed=3); chromium.run(env.tab.ask("() => { location.hash = '' }"))
    assert env.step(env.oracle())[1:3] == (1.0, True)
    env.close()


@pytest.mark.parametrize("javascript", ["resizeTo(50, 50); moveBy(10, 10)", "document.body.requestFullscreen()"])
def test_a_page_cannot_change_its_size(press, javascript):
    env = press(javascript)
    assert env.step(GO)[0]["screenshot"].shape == (200, 200, 3) and goes_on(env)


def test_names_that_a_page_gives_its_elements_are_its_own(press):
    PAGES["/named"] = "<div id=frame></div><div id=copied></div><h1>named</h1>"
    env = press("location.href = '/named'")
    assert env.step(GO)[4]["url"].endswith("/named") and goes_on(env)


def test_an_address_with_a_word_of_ours_is_an_address(press):
    dead = socket.create_server(("127.0.0.1", 0)); env = press("", hosts=(f"127.0.0.1:{dead.getsockname()[1]}",))
    def hang_up(): dead.accept()[0].close()
    for _ in range(4): threading.Thread(target=hang_up, daemon=True).start()
    assert "goto" in env.step({"type": "goto", "url": f"http://127.0.0.1:{dead.getsockname()[1]}/closed"})[4]["error"] and env.running
    dead.close()


def test_leaving_a_miniwob_page_ends_the_episode_without_reward(chromium):
    env = BrowserEnv(miniwob_task("miniwob/click-test"), chromium)
    first = env.reset(seed=3)[0]["screenshot"]
    chromium.run(env.tab.ask("() => { location.href = 'click-button.html' }"))
    time.sleep(0.5)
    _, reward, over, _, info = env.step(WAIT)
    assert (reward, over) == (0.0, True) and "left" in info["error"]
    assert (env.reset(seed=3)[0]["screenshot"] == first).all()
    env.close()


# Foreign hosts

FOREIGN = {"fetch": "fetch('http://127.0.0.1:{p}/x')", "image": "new Image().src = 'http://127.0.0.1:{p}/x'", "navigation": "location.href = 'http://127.0.0.1:{p}/x'",
           "form": "document.body.innerHTML = \"<form id=f method=post action='http://127.0.0.1:{p}/x'>\"; f.submit()", "frame": "document.body.innerHTML += \"<iframe src='http://127.0.0.1:{p}/x'>\"",
           "beacon": "navigator.sendBeacon('http://127.0.0.1:{p}/x', 'secret')", "WebSocket": "new WebSocket('ws://127.0.0.1:{p}/x')", "WebSocket of a worker": "new Worker('/worker.js')",
           "look-alike name": "fetch('http://localhost.evil:{p}/x'); new WebSocket('ws://127.0.0.1.evil:{p}/x'); fetch('http://127.0.0.1@localhost:{p}/x')", "other name of this machine": "fetch('http://localhost:{p}/x')",
           "preconnect": "document.head.innerHTML += \"<link rel=preconnect href='http://127.0.0.1:{p}'><link rel=prefetch href='http://127.0.0.1:{p}/x'>\"",
           "WebRTC": "const c = new (window.RTCPeerConnection || document.querySelector('iframe').contentWindow.RTCPeerConnection)({{iceServers: [{{urls: 'stun:127.0.0.1:{p}'}}]}}); c.createDataChannel('x'); c.createOffer().then(o => c.setLocalDescription(o))",
           "WebRTC of a frame": "document.body.innerHTML += '<iframe>'; const c = new (document.querySelector('iframe').contentWindow.RTCPeerConnection)({{iceServers: [{{urls: 'stun:127.0.0.1:{p}'}}]}}); c.createDataChannel('x'); c.createOffer().then(o => c.setLocalDescription(o))",
           "service worker": "navigator.serviceWorker.register('/worker.js')", "event source": "new EventSource('http://127.0.0.1:{p}/x')", "module": "import('http://127.0.0.1:{p}/x')"}
SILENT = {"WebSocket of a worker", "preconnect", "WebRTC", "WebRTC of a frame", "service worker"}  # refused without a note


@pytest.mark.parametrize("how", FOREIGN)
def test_foreign_hosts_are_never_reached(press, foreign, how):
    foreign.heard.clear()
    env = press(FOREIGN[how].format(p=foreign.port))
    error = env.step(GO)[4]["error"]
    assert goes_on(env)
    time.sleep(0.15)
    assert foreign.heard == []
    assert how in SILENT or "blocked" in error, error


def test_the_listener_would_have_heard(foreign):
    "The control: the foreign host does record what reaches it."
    foreign.heard.clear()
    with socket.create_connection(("127.0.0.1", foreign.port)) as s: s.send(b"hello")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s: s.sendto(b"hello", ("127.0.0.1", foreign.port))
    time.sleep(0.3)
    assert foreign.heard == [b"hello", b"hello"]


def test_allowed_hosts_are_reached(press, site, foreign):
    other = serve()
    env = press(f"fetch('http://127.0.0.1:{other.server_port}/allowed', {{mode: 'no-cors'}})", hosts=(f"127.0.0.1:{other.server_port}",))
    assert env.step(GO)[4]["error"] == "" and other.seen == ["/allowed"]
    other.shutdown()


@pytest.mark.parametrize("url", ["http://127.0.0.1:{p}/", "file:///etc/passwd", "chrome://version", "javascript:alert(1)", "localhost.evil", "data:text/html,<h1>mine</h1>", "about:blank"])
def test_goto_obeys_too(press, foreign, url):
    foreign.heard.clear()
    env = press("")
    before = env.tab.page.url
    assert "blocked" in env.step({"type": "goto", "url": url.format(p=foreign.port)})[4]["error"]
    assert goes_on(env) and env.tab.page.url == before and foreign.heard == []


# What the environment must answer for: the episode is void, and the next one is fine

def renderers(): return {p.pid: p for p in psutil.Process().children(recursive=True) if "--type=renderer" in " ".join(safe_cmdline(p))}
def browsers(): return [p for p in psutil.Process().children(recursive=True) if "--type=" not in " ".join(safe_cmdline(p)) and "headless" in " ".join(safe_cmdline(p))]
def safe_cmdline(p):
    try: return p.cmdline()
    except psutil.Error: return []


def test_a_killed_renderer_voids_its_episode_only(chromium, press):
    other = press("")
    before = set(renderers())
    env = BrowserEnv(miniwob_task("miniwob/focus-text"), chromium); env.reset(seed=0)
    new = set(renderers()) - before
    assert len(new) == 1
    os.kill(new.pop(), signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(EnvironmentFault): env.step(GO)
    assert time.monotonic() - start < 10  # it was told, it did not wait for the deadline
    assert goes_on(other)
    env.reset(seed=0)
    assert env.step(env.oracle())[1:3] == (1.0, True)
    env.close()


def test_a_killed_browser_voids_every_episode_and_is_replaced():
    before, c = browsers(), Chromium()
    env, other = (BrowserEnv(miniwob_task("miniwob/click-test"), c) for _ in range(2))
    env.reset(seed=0); other.reset(seed=1)
    mine = [p for p in browsers() if p not in before]
    assert mine
    for p in mine: p.kill()
    for e in (env, other):
        with pytest.raises(EnvironmentFault): e.step(GO)
    for e in (env, other):
        e.reset(seed=5)
        assert e.step(e.oracle())[1:3] == (1.0, True)
        e.close()
    c.close()
    assert c.free._value == c.pages  # every page was given back


@pytest.mark.parametrize("sign", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
@pytest.mark.parametrize("who", ["driver", "browser"])
def test_a_driver_or_browser_that_dies_or_freezes_is_replaced(who, sign, monkeypatch):
    monkeypatch.setattr(browser, "DEADLINE", 4)
    before, c = set(psutil.Process().children(recursive=True)), Chromium()
    env = BrowserEnv(miniwob_task("miniwob/click-test"), c); env.reset(seed=0)
    mine = [p for p in psutil.Process().children(recursive=True) if p not in before and ("node" in safe_cmdline(p)[0] if who == "driver" else "--type=" not in " ".join(safe_cmdline(p)) and "headless" in " ".join(safe_cmdline(p)))]
    assert mine
    for p in mine: p.send_signal(sign)
    with pytest.raises(EnvironmentFault): env.step(GO)
    for attempt in range(3):
        try: env.reset(seed=5); break
        except EnvironmentFault: assert attempt < 2
    assert env.step(env.oracle())[1:3] == (1.0, True)
    env.close(); c.close()
    for p in mine:
        if p.is_running(): p.kill()
    left = [p for p in psutil.Process().children(recursive=True) if p not in before and p.status() != psutil.STATUS_ZOMBIE]
    for p in left: p.kill()  # of a frozen driver
    assert sign == signal.SIGSTOP or not psutil.wait_procs(left, timeout=10)[1]


def test_a_forgotten_environment_gives_its_page_back():
    c = Chromium(pages=1, patience=5)
    env = BrowserEnv(miniwob_task("miniwob/click-test"), c); env.reset(seed=0)
    del env
    env = BrowserEnv(miniwob_task("miniwob/click-test"), c); env.reset(seed=0)
    env.close(); c.close()


def test_an_endless_loop_misses_the_deadline(press, monkeypatch):
    monkeypatch.setattr(browser, "DEADLINE", 2)
    env, other = press("while (true) {}"), press("")
    start = time.monotonic()
    with pytest.raises(EnvironmentFault, match="no answer within 2 s"): env.step(GO)
    assert time.monotonic() - start < 8
    assert goes_on(other)
    env.reset(seed=0)
    assert goes_on(env)


def test_waiting_for_a_page_has_a_deadline_too():
    c = Chromium(pages=1, patience=0.5)
    one, two = (BrowserEnv(miniwob_task("miniwob/click-test"), c) for _ in range(2))
    one.reset(seed=0)
    with pytest.raises(EnvironmentFault, match="no page became free"): two.reset(seed=0)
    assert one.step(one.oracle())[1] == 1.0  # its end gives the page back
    two.reset(seed=0)
    assert two.step(two.oracle())[1] == 1.0
    c.close()


def test_a_missing_chromium_says_what_to_run(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere"); monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", "/nowhere"); monkeypatch.delenv("VLM_AGENT_CHROMIUM", raising=False)
    with pytest.raises(RuntimeError, match="make chromium"): browser.find_chromium()
    monkeypatch.setenv("VLM_AGENT_CHROMIUM", "/nowhere/chrome")
    with pytest.raises(RuntimeError, match="/nowhere/chrome"): browser.find_chromium()


# The vocabulary does the real thing

RECORD = """<body style='margin:0;height:2000px'><input id=i style='position:absolute;left:0;top:0;width:100px;height:20px'><div id=d style='position:absolute;left:0;top:40px;width:100px;height:100px;background:red'></div>
<script>log = []; for (const t of ['mousedown', 'click', 'dblclick', 'auxclick', 'contextmenu', 'wheel', 'keydown', 'submit', 'mousemove'])
addEventListener(t, e => log.push([t, e.button ?? null, e.detail ?? null, Math.round(e.clientX) || 0, Math.round(e.clientY) || 0, e.key || null, !!e.ctrlKey]))</script>"""
PAGES["/record"] = RECORD


@pytest.fixture(scope="module")
def recorder(site, chromium):
    env = BrowserEnv(PageTask("record", f"http://127.0.0.1:{site.server_port}/record", (200, 200), "Do it."), chromium)
    def do(*actions):
        env.reset(seed=0)
        for a in actions: env.step(a)
        return chromium.run(env.tab.ask("() => ({log, value: i.value, top: scrollY, dragged: log.filter(e => e[0] === 'mousemove').length})"))
    yield do
    env.close()


def events(r, kind): return [e[1:] for e in r["log"] if e[0] == kind]


def test_mouse(recorder):
    r = recorder({"type": "click", "x": 50.6, "y": 90})
    assert [e[:4] for e in events(r, "click")] == [[0, 1, 51, 90]] or [e[:4] for e in events(r, "click")] == [[0, 1, 50, 90]]
    assert len(events(recorder({"type": "double_click", "x": 50, "y": 90}), "dblclick")) == 1
    assert [e[1] for e in events(recorder({"type": "click", "x": 50, "y": 90, "count": 3}), "click")] == [1, 2, 3]
    assert len(events(recorder({"type": "right_click", "x": 50, "y": 90}), "contextmenu")) == 1
    assert events(recorder({"type": "click", "x": 50, "y": 90, "button": "middle"}), "auxclick")[0][0] == 1
    assert events(recorder({"type": "move", "x": 20, "y": 30}), "mousemove")[-1][2:4] == [20, 30]
    r = recorder({"type": "drag", "x": 10, "y": 50, "x2": 90, "y2": 130})
    assert r["dragged"] >= 8 and events(r, "mousedown")[0][2:4] == [10, 50] and events(r, "mousemove")[-1][2:4] == [90, 130]
    assert recorder({"type": "scroll", "x": 50, "y": 90, "dy": 120})["top"] == 120
    assert events(recorder({"type": "click", "x": 200, "y": 200}), "click")[0][2:4] == [199, 199]  # the far edge


def test_keyboard(recorder):
    focus = {"type": "click", "x": 50, "y": 10}
    assert recorder(focus, {"type": "type", "text": "Zoë's 日本"})["value"] == "Zoë's 日本"
    r = recorder(focus, {"type": "type", "text": "abc"}, {"type": "key", "keys": ["ctrl", "a"]}, {"type": "key", "keys": ["Backspace"]}, {"type": "type", "text": "x", "submit": True})
    assert r["value"] == "x" and ["a", True] in [e[4:] for e in events(r, "keydown")] and events(r, "keydown")[-1][4] == "Enter"


def test_shift_is_a_key_like_any_other(recorder):
    focus = {"type": "click", "x": 50, "y": 10}
    assert recorder(focus, *({"type": "key", "keys": ["shift", k]} for k in "a1;"), {"type": "key", "keys": ["b"]})["value"] == "A!:b"


def test_each_page_pastes_what_it_copied(press):
    CTRL = [{"type": "key", "keys": ["ctrl", k]} for k in "acv"]
    envs = [press(f"document.body.innerHTML = '<input id=i value={word}><textarea id=t></textarea>'; i.focus()", state="() => [0, false]") for word in ("one", "two")]
    for env in envs: env.step(GO); env.step(CTRL[0])
    for env in envs: env.step(CTRL[1])  # the second after the first
    for env in envs: env.step({"type": "key", "keys": ["tab"]}); env.step(CTRL[2])
    assert [env.chromium.run(env.tab.ask("() => t.value")) for env in envs] == ["one", "two"]


def test_copying_tasks_do_not_disturb_each_other(chromium):
    from vlm_agent.runner import OraclePolicy, TaskRunner
    envs = [BrowserEnv(miniwob_task("miniwob/copy-paste"), chromium) for _ in range(4)]
    assert [t.outcome for t in TaskRunner(OraclePolicy(), envs).collect(range(8))] == ["success"] * 8
    for env in envs: env.close()


def test_going_and_coming_back(press, site):
    env = press("")
    home = env.tab.page.url
    assert env.step({"type": "goto", "url": f"127.0.0.1:{site.server_port}/elsewhere"})[4]["url"].endswith("/elsewhere")
    assert env.step({"type": "back"})[4]["url"] == home
    dead = socket.create_server(("127.0.0.1", 0)); port = dead.getsockname()[1]; dead.close()
    env = press("", hosts=(f"127.0.0.1:{port}",))
    assert "CONNECTION_REFUSED" in env.step({"type": "goto", "url": f"http://127.0.0.1:{port}/"})[4]["error"]  # a wrong address is the agent's own
    assert env.running


def test_answers_reach_the_grader(press):
    env = press("", state="({answer}) => [+(answer === '42'), answer === '42']")
    assert env.step({"type": "answer", "text": "41"})[1:3] == (0.0, False)
    assert env.step({"type": "answer", "text": "42"})[1:3] == (1.0, True)


def test_part_of_the_reward_is_paid_at_the_end(press):
    env = press("", state="() => [0.5, false]", max_steps=2)
    assert env.step(WAIT)[1:4] == (0.0, False, False)
    assert env.step(WAIT)[1:4] == (0.5, False, True)
    env = press("", state="() => [0.5, false]")
    _, reward, over, _, info = env.step({"type": "done"})
    assert (reward, over, info["success"]) == (0.5, True, False)  # a part of the reward is no success


def test_unknown_keys_leave_the_episode_as_it_was(press):
    env = press("")
    with pytest.raises(ValueError, match="did you mean 'enter'"): env.step({"type": "key", "keys": ["entr"]})
    assert goes_on(env)


# MiniWoB++

def test_episodes_do_not_leak_into_each_other(chromium):
    "The pointer, the focus and what was typed are gone at reset."
    env = BrowserEnv(miniwob_task("miniwob/login-user"), chromium)
    first = env.reset(seed=4)[0]["screenshot"]
    for a in ({"type": "click", "x": 50, "y": 80}, {"type": "type", "text": "abc"}, {"type": "move", "x": 30, "y": 150}): env.step(a)
    assert (env.reset(seed=4)[0]["screenshot"] == first).all()
    env.close()


@pytest.mark.parametrize("name", ["click-test-2", "enter-text", "drag-box", "scroll-text-2", "choose-list", "use-slider", "copy-paste"])
def test_oracles_earn_their_reward(chromium, name):
    env = BrowserEnv(miniwob_task(f"miniwob/{name}"), chromium)
    for seed in (100, 101):
        env.reset(seed=seed)
        for _ in range(40):
            _, reward, over, *_ = env.step(env.oracle())
            if over: break
        assert (reward, over) == (1.0, True), seed
    env.close()


def test_every_miniwob_task_has_a_name(): assert len(miniwob_tasks()) == 130


# Task files

GOOD = "html: page.html\ngoal: Go.\nsuccess: 'false'\n"


@pytest.mark.parametrize("text, says", [(GOOD + "sucess: 'true'\n", "did you mean 'success'"), (GOOD + "viewport: [1, 2]\n", "viewport"), (GOOD + "url: http://x\n", "either url or html"), (GOOD + "max_steps: 0\n", "max_steps"),
                                        ("goal: x\nsuccess: y\nurl: ftp://x\n", "http"), ("goal: x\nurl: http://x\n", "success is missing"), ("[", "not YAML"), ("3", "keys and values"), (GOOD + "allowed_hosts: x.example\n", "allowed_hosts"), (GOOD + "allowed_hosts: ['*']\n", "allowed_hosts"),
                                        (GOOD.replace("page.html", "none.html"), "no file"), (GOOD.replace("page.html", "5"), "html must be a text"), ("goal: x\nsuccess: y\nurl: [1]\n", "url must be a text"), (GOOD + "setup: 5\n", "setup must be a text"), (GOOD + "oracle: 5\n", "oracle must be a list")])
def test_wrong_task_files_say_what_is_wrong(tmp_path, text, says):
    (tmp_path/"page.html").write_text("<h1>page</h1>"); (tmp_path/"task.yaml").write_text(text)
    with pytest.raises(ValueError, match=says): web_task(f"web:{tmp_path}/task.yaml")


@pytest.mark.parametrize("success, says", [("true", "reached before anything"), ("((", "SyntaxError")])
def test_a_senseless_success_is_an_environment_fault(tmp_path, chromium, success, says):
    (tmp_path/"page.html").write_text("<h1>page</h1>"); (tmp_path/"task.yaml").write_text(f"html: page.html\ngoal: Go.\nsuccess: '{success}'\n")
    env = BrowserEnv(web_task(f"web:{tmp_path}/task.yaml"), chromium)
    with pytest.raises(EnvironmentFault, match=says): env.reset(seed=0)
    env.close()


def test_files_outside_the_tasks_folder_stay_closed(tmp_path, chromium):
    (tmp_path/"secret.txt").write_text("secret"); (tmp_path/"app").mkdir()
    (tmp_path/"app"/"page.html").write_text("<iframe src='../secret.txt'></iframe><img src='file:///etc/passwd'>")
    (tmp_path/"app"/"task.yaml").write_text("html: page.html\ngoal: Go.\nsuccess: 'false'\n")
    env = BrowserEnv(web_task(f"web:{tmp_path}/app/task.yaml"), chromium)
    env.reset(seed=0)
    texts = [chromium.run(f.evaluate("() => document.body ? document.body.innerText : ''")) for f in env.tab.page.frames[1:]]
    assert "secret" not in texts
    env.close()
