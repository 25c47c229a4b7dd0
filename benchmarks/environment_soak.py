"""Twenty thousand episodes through a server, with faults injected at random; every episode must be accounted for.

    python benchmarks/environment_soak.py --episodes 20000 --clients 8

Clients play MiniWoB++'s click-test and, now and then, a page whose button loops for ever, opens dialogs and pop-ups, or runs away.
Meanwhile renderers and the browser are killed, the server is killed and restarted, clients vanish in mid-episode and send nonsense.
What must hold: episodes started = finished + void, and the memory of server, driver and browser at the end is what it was.
"""
import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import psutil

from vlm_agent.environment import EnvironmentFault
from vlm_agent.server import connect

PAGE = """<body style="margin:0"><button style="width:160px;height:100px">press</button><script>
const ways = [() => { while (true) {} }, () => alert('hello'), () => open('about:blank'), () => { location.href = 'http://foreign.invalid/' }, () => fetch('http://foreign.invalid/'), () => { location.href = 'page2.html' }];
onclick = () => ways[window.way]();</script>"""
TASK = """html: page.html
goal: Press the button.
viewport: [160, 210]
max_steps: 2
setup: window.way = [1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5][Math.floor(random() * 16)]
success: "false"
"""
SERVER = """
import sys
from vlm_agent import browser, server
browser.DEADLINE = 6
server._run(server.make_app(sys.argv[2:]), server._listen("127.0.0.1", int(sys.argv[1])))
"""


class Server:
    def __init__(self, tasks):
        with socket.create_server(("127.0.0.1", 0)) as s: self.port = s.getsockname()[1]
        self.tasks, self.url = tasks, f"http://127.0.0.1:{self.port}"
        self.start()
    def start(self):
        self.process = psutil.Process(subprocess.Popen([sys.executable, "-c", SERVER, str(self.port), *self.tasks]).pid)
        while True:
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", self.port)) == 0: return
            time.sleep(0.2)
    def family(self):
        try: return [self.process, *self.process.children(recursive=True)]
        except psutil.Error: return []
    def memory(self):
        "Proportional set size, so that shared pages count once."
        total = 0
        for p in self.family():
            try: total += p.memory_full_info().pss
            except psutil.Error: pass
        return total / 2**20
    def kill(self, kind):
        for p in random.sample(f := self.family(), len(f)):
            try: line = " ".join(p.cmdline())
            except psutil.Error: continue
            if kind == "server" and p.pid == self.process.pid or kind == "renderer" and "--type=renderer" in line or kind == "browser" and "--type=" not in line and "headless" in line and p.pid != self.process.pid:
                p.kill()
                if kind == "server": psutil.wait_procs([p], timeout=20); self.start()
                return True


def play(server, n, seconds, counts, lock, seed):
    "A client: plays until `n` episodes were started by all."
    rng = random.Random(seed)
    env = None
    while True:
        with lock:
            if counts["started"] >= n: break
            counts["started"] += 1
        try:
            if env is None: env = connect(server.url, timeout=60)  # from then on a reset waits for a server that is being restarted
            hostile = rng.random() < 0.01
            env.task = server.tasks[1] if hostile else server.tasks[0]
            env.reset(seed=rng.randrange(10**6))
            if rng.random() < 0.005: env._drop(); raise EnvironmentFault("this client vanished")
            if rng.random() < 0.005: env.socket.send("{nonsense"); assert json.loads(env.socket.recv(60))["data"]["code"] == "INVALID_JSON"
            for _ in range(3):
                _, reward, terminated, truncated, _ = env.step({"type": "click", "x": rng.randrange(160), "y": rng.randrange(50, 210)})
                if terminated or truncated: break
            else: env.step({"type": "done"})
            with lock: counts["finished"] += 1; counts["won"] += reward > 0
        except (EnvironmentFault, OSError) as e:
            with lock: counts["void"] += 1; counts["void: " + str(e).split(": ")[-1][:60]] += 1
            if env is None or env.socket is None: time.sleep(0.2)
    if env: env.close()


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--episodes", type=int, default=20_000); p.add_argument("--clients", type=int, default=8); p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    folder = Path(tempfile.mkdtemp()); (folder/"page.html").write_text(PAGE); (folder/"page2.html").write_text("<h1>two</h1>"); (folder/"task.yaml").write_text(TASK)
    server, counts, lock, rng, memory = Server(["miniwob/click-test", f"web:{folder/'task.yaml'}"]), Counter(), threading.Lock(), random.Random(a.seed), []
    killed, start = Counter(), time.time()
    threads = [threading.Thread(target=play, args=(server, a.episodes, 60, counts, lock, i)) for i in range(a.clients)]
    for t in threads: t.start()
    marks = sorted(rng.sample(range(200, a.episodes - 200), max(a.episodes // 400, 3)))  # when something is killed: once in 400 episodes
    while any(t.is_alive() for t in threads):
        time.sleep(0.5)
        if marks and counts["started"] >= marks[0]:
            marks.pop(0)
            kind = rng.choices(["renderer", "browser", "server"], [8, 2, 0.4])[0]
            if server.kill(kind): killed[kind] += 1
        if counts["started"] >= len(memory) * a.episodes / 100 and (m := server.memory()) > 100: memory.append((counts["started"], m))
        if len(memory) % 10 == 0 and memory and memory[-1][0] != killed.get("said"): killed["said"] = memory[-1][0]; print(f"{time.time() - start:.0f} s: {dict((k, counts[k]) for k in ('started', 'finished', 'void'))}, {memory[-1][1]:.0f} MiB", flush=True)
    killed.pop("said", None)
    family = server.family(); server.process.terminate(); _, alive = psutil.wait_procs(family, timeout=30)
    middle = lambda part: sorted(m for _, m in part)[len(part) // 2] if part else float("nan")
    n = len(memory)
    print(json.dumps({"seconds": round(time.time() - start), "started": counts["started"], "finished": counts["finished"], "void": counts["void"], "killed": dict(killed),
                      "memory_mib_2nd_fifth": round(middle(memory[n // 5:2 * n // 5])), "memory_mib_last_fifth": round(middle(memory[4 * n // 5:])), "left_running": len(alive),
                      "void_because": {k[6:]: v for k, v in counts.items() if k.startswith("void: ")}}, indent=1))
    assert counts["started"] == counts["finished"] + counts["void"] == a.episodes and not alive
    assert middle(memory[4 * n // 5:]) < 1.25 * middle(memory[n // 5:2 * n // 5])


if __name__ == "__main__": main()
