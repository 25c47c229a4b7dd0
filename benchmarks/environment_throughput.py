"""Episodes a second of MiniWoB++'s click-test: reset, screenshot, the right click, reward.

Ours in process and through a server, beside MiniWoB++'s own Selenium interface and BrowserGym, in turns, in one run:

    python benchmarks/environment_throughput.py --seconds 8 --turns 3 [--browsergym PYTHON]

Selenium needs a chromedriver beside a Chromium (Debian: chromium-driver). BrowserGym pins another Playwright, so it is run by
another interpreter, one in whose environment `browsergym-miniwob` is installed; it uses the same pages and the same Chromium.
"""
import argparse
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time

import psutil

PAGES = 8


def cpu_seconds():
    "CPU time of this process and everything below it, those that have ended included."
    total = sum(os.times()[:4])
    for p in psutil.Process().children(recursive=True):
        try: t = p.cpu_times(); total += t.user + t.system
        except psutil.Error: pass
    return total


def in_threads(envs, play, seconds):
    "Everybody plays until the time is over; -> episodes a second, and the share that earned the reward."
    played, end = [], time.perf_counter() + seconds
    def work(env, i):
        while time.perf_counter() < end: played.append(play(env, i)); i += len(envs)
    start = time.perf_counter()
    threads = [threading.Thread(target=work, args=(e, i)) for i, e in enumerate(envs)]
    for t in threads: t.start()
    for t in threads: t.join()
    return len(played) / (time.perf_counter() - start), sum(played) / max(len(played), 1)


class Ours:
    def __init__(self, through_server):
        from vlm_agent.server import connect, make_env, start_server
        self.near, self.where = make_env("miniwob/click-test"), {}
        for seed in range(200):
            self.near.reset(seed=seed); self.where[seed] = self.near.oracle()
        self.near.close()
        self.server = start_server("miniwob/click-test") if through_server else None
        self.envs = [connect(self.server.url) if through_server else make_env("miniwob/click-test") for _ in range(PAGES)]
        for e in self.envs: e.reset(seed=0)
        self.name = f"vlm_agent, {'server with 8 clients' if through_server else 'in process, 8 pages'}"
    def play(self, env, i): env.reset(seed=i % 200); return env.step(self.where[i % 200])[1] == 1.0
    def run(self, seconds): return in_threads(self.envs, self.play, seconds)
    def close(self):
        for e in self.envs: e.close()
        if self.server: self.server.close()


class Selenium:
    def __init__(self, n):
        import gymnasium, miniwob
        from miniwob.action import ActionTypes
        gymnasium.register_envs(miniwob)
        self.click = ActionTypes.CLICK_COORDS
        self.envs, self.name = [gymnasium.make("miniwob/click-test-v1") for _ in range(n)], f"MiniWoB++'s Selenium interface, {n} browser{'s' * (n > 1)}"
        for e in self.envs: e.reset(seed=0)
    def play(self, env, i):
        o, _ = env.reset(seed=i)
        b = next(d for d in o["dom_elements"] if d["tag"] == "button")
        coords = [float(b["left"][0] + b["width"][0] / 2), float(b["top"][0] + b["height"][0] / 2)]
        return env.step(env.unwrapped.create_action(self.click, coords=coords))[1] > 0
    def run(self, seconds): return in_threads(self.envs, self.play, seconds)
    def close(self):
        for e in self.envs: e.close()


BROWSERGYM = '''
import sys, time
import playwright.sync_api as p
launch = p.BrowserType.launch
p.BrowserType.launch = lambda self, **k: launch(self, **{**k, "executable_path": sys.argv[2]})  # its chat window launches a browser too
import gymnasium as gym, browsergym.miniwob
seconds = float(sys.argv[1])
env = gym.make("browsergym/miniwob.click-test", action_mapping=None)
n, won, start = 0, 0, time.perf_counter()
while time.perf_counter() - start < seconds:
    o, _ = env.reset(seed=n)
    page = env.unwrapped.page; b = page.locator("#subbtn").bounding_box()
    won += env.step(f"page.mouse.click({b['x'] + b['width'] / 2}, {b['y'] + b['height'] / 2})")[1] > 0; n += 1
print(n / (time.perf_counter() - start), won / n)
'''


class BrowserGym:
    name = "BrowserGym, 1 page"
    def __init__(self, python):
        from vlm_agent.browser import find_chromium, miniwob_folder
        self.python, self.chromium, self.pages = python, find_chromium(), (miniwob_folder()/"miniwob").as_uri() + "/"
    def run(self, seconds):
        r = subprocess.run([self.python, "-c", BROWSERGYM, str(seconds), self.chromium], env={**os.environ, "MINIWOB_URL": self.pages}, capture_output=True, text=True)
        if r.returncode: raise RuntimeError(r.stderr[-1500:])
        return tuple(map(float, r.stdout.split()[-2:]))
    def close(self): pass


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--seconds", type=float, default=8); p.add_argument("--turns", type=int, default=3); p.add_argument("--browsergym", help="an interpreter that has browsergym-miniwob")
    a = p.parse_args()
    contenders = [Ours(False), Ours(True)]
    if shutil.which("chromedriver"): contenders += [Selenium(1), Selenium(4)]
    else: print("no chromedriver: Selenium is left out", file=sys.stderr)
    if a.browsergym: contenders.append(BrowserGym(a.browsergym))
    rates, cpu = ({c.name: [] for c in contenders} for _ in range(2))
    for _ in range(a.turns):
        for c in contenders:
            before = cpu_seconds()
            rate, won = c.run(a.seconds)
            assert won > 0.9, (c.name, won)
            rates[c.name].append(rate); cpu[c.name].append((cpu_seconds() - before) / (rate * a.seconds) * 1e3)
    base = rates.get("MiniWoB++'s Selenium interface, 1 browser")
    print(f"| | episodes/s (median of {a.turns}) | range | CPU-ms an episode | times Selenium |\n|---|---|---|---|---|")
    for name, r in rates.items():
        ratio = f"{statistics.median(x / b for x, b in zip(r, base)):.2g}" if base else ""
        print(f"| {name} | {statistics.median(r):.1f} | {min(r):.1f}–{max(r):.1f} | {statistics.median(cpu[name]):.0f} | {ratio} |")
    for c in contenders: c.close()


if __name__ == "__main__": main()
