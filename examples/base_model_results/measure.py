"""What the tiny base can do on MiniWoB++ in a real Chromium, before and after rejection sampling there.

    python examples/base_model_results/measure.py zero-shot                                  # every task of TASKS: zero_shot.json
    python examples/base_model_results/measure.py rejection --task miniwob/focus-text        # one run: rejection/TASK-full-SEED.json
    python examples/base_model_results/measure.py rejection --task miniwob/focus-text --lora # adapters on a frozen tower
    python examples/base_model_results/measure.py rejection --task miniwob/click-test-2 --answers-together 4 --balance --drop-all-solved --rounds 7 --steps 50 --batch-size 8 --learning-rate 5e-4 --temperature 1.3
    python examples/base_model_results/measure.py rejection --task miniwob/click-button-sequence --answers-together 4 --max-steps 2 --history 1 --demonstrations 120 --warm-start 200 --balance --drop-all-solved --rounds 6 --steps 50 --batch-size 8 --learning-rate 8e-4 --temperature 1.3
    python examples/base_model_results/measure.py forgetting --after FOLDER                  # the base's own tasks, before and after
    python examples/base_model_results/measure.py steps --task toy/login --max-steps 6 --after FOLDER  # where on the oracle's way a trained model leaves it
    python examples/base_model_results/measure.py covered                                    # how many of click-test-2's pages hide the middle of the button that is asked for
"""
import argparse
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
HERE = Path(__file__).parent
BASE = HERE.parent.parent/"vlm_agent"/"assets"/"tiny"

import torch

from vlm_agent.core import Prediction, TrajectoryFile
from vlm_agent.evaluation import evaluate
from vlm_agent.rejection_sampling import RejectionSampling
from vlm_agent.runner import ModelPolicy, TaskRunner, random_policy, record_demonstrations, stream_of
from vlm_agent.server import make_env
from vlm_agent.training import DEMONSTRATED, HELD_OUT, train_with_orchestration
from vlm_agent.wrapper import load_model, slow_precision

ONE_CLICK = "click-test click-button click-dialog click-color click-test-2 focus-text click-link click-widget click-dialog-2 click-tab focus-text-2 click-test-transfer unicode-test identify-shape".split()
SEVERAL = "click-option click-checkboxes click-button-sequence click-collapsible enter-text enter-password login-user".split()
TASKS = {**{f"miniwob/{t}": 1 for t in ONE_CLICK}, **{f"miniwob/{t}": 8 for t in SEVERAL}}  # task -> actions an episode may take
OWN = ("toy/click-button", "toy/click-colour", "toy/click-named-button", "toy/click-shape")  # what the base was made for


def held_out(n): return range(HELD_OUT, HELD_OUT + n)

def success(policy, spec, episodes, max_steps, envs=16):
    "Success on held-out seeds, with its interval."
    rooms = [make_env(spec) for _ in range(envs)]
    try: return evaluate(TaskRunner(policy, rooms, max_steps=max_steps), held_out(episodes))
    finally:
        for env in rooms: env.close()

def blind_replay(texts):
    "Says what succeeded in training, without looking."
    def policy(observations): return [Prediction(random.Random(stream_of("blind", o.stream)).choice(texts), images=(o.image,)) for o in observations]
    return policy

class Meter:
    "A callback: CPU-minutes of this process (the model's; the browser is another process) by what a run is doing."
    def __init__(self): self.spent, self.now, self.since = {}, "starting", time.process_time()
    def __call__(self, e):
        if e["event"] in ("evaluation", "round"): print(e, flush=True)
        if e["event"] not in ("phase", "end"): return
        t = time.process_time(); self.spent[self.now] = self.spent.get(self.now, 0) + (t - self.since)/60
        self.now, self.since = e.get("phase", "end").split()[0].rstrip(",:"), t
    def to_dict(self): return {f"cpu_minutes_{k}": round(v, 3) for k, v in self.spent.items()}

def machine():
    "The processor's name where the system tells it, how many cores, and whether torch multiplies in bfloat16 there."
    try: said = Path("/proc/cpuinfo").read_text()
    except OSError: said = ""
    name = next((line.split(":", 1)[1].strip() for line in said.splitlines() if line.startswith("model name")), platform.processor() or platform.machine())
    return f"{name}, {os.cpu_count()} cores, {'no ' if slow_precision(torch.bfloat16) else ''}bfloat16, Python {platform.python_version()}, torch {torch.__version__}"

def write(name, what, **more):
    path = HERE/name; path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(command="python " + " ".join(["examples/base_model_results/measure.py", *sys.argv[1:]]), date=str(date.today()), machine=machine(), **more, **what), indent=1) + "\n")
    print(path)


def zero_shot(a):
    policy, rows = ModelPolicy(load_model(str(a.base)), greedy=True), {}
    for spec, steps in TASKS.items():
        if a.task and spec not in a.task.split(","): continue
        e, r = success(policy, spec, a.episodes, steps), success(random_policy(), spec, a.episodes, steps)
        rows[spec] = dict(max_steps=steps, base=e.to_dict(), random_clicker=r.to_dict(), example=[t.goal for t in e.valid[:1]] + [s.prediction.text for t in e.valid[:1] for s in t.steps[:3]])
        print(f"{spec:<32} {e.success:6.1%} [{e.interval[0]:.1%}, {e.interval[1]:.1%}]   random clicker {r.success:6.1%}   {rows[spec]['example']}", flush=True)
    write(a.name or "zero_shot.json", dict(tasks=rows), base=a.base.name)


def replayed(folder, policy, n):
    "Demonstrations of the base's own tasks: what it shall not forget."
    for spec in OWN:
        env = make_env(spec)
        TrajectoryFile(folder).append(*record_demonstrations(env, range(DEMONSTRATED, DEMONSTRATED + n), policy)); env.close()


def rejection(a):
    model = load_model(str(a.base), use_lora=a.lora, freeze_vision_encoder=a.lora)
    run, steps = Path(a.run or tempfile.mkdtemp())/"run", a.max_steps or TASKS.get(a.task, 1)
    shown = run.parent/"shown"
    policy = ModelPolicy(model, greedy=True, history=a.history)
    if a.replay: replayed(shown, policy, a.replay)
    if a.demonstrations:
        envs = [make_env(a.task) for _ in range(8)]
        TrajectoryFile(shown).append(*record_demonstrations(envs, range(DEMONSTRATED, DEMONSTRATED + a.demonstrations), policy))
        for env in envs: env.close()
    meter, wall = Meter(), time.time()
    result = train_with_orchestration(model, task=a.task, seed=a.seed, output_dir=str(run), max_steps=steps, num_envs=32, history=a.history, temperature=a.temperature, eval_episodes=a.episodes,
                                      num_training_steps=a.rounds * a.steps, steps_per_round=a.steps, tasks_per_round=a.states, samples_per_task=a.samples, batch_size=a.batch_size,
                                      learning_rate=a.learning_rate or (4e-3 if a.lora else 4e-4), answers_together=a.answers_together, demonstrations=str(shown) if shown.exists() else None,
                                      warm_start_steps=a.warm_start if a.demonstrations else 0, algorithm=RejectionSampling(balance=a.balance, drop_all_solved=a.drop_all_solved, drop_idle=not a.keep_idle), progress=False, callbacks=(meter,))
    spent = dict(**meter.to_dict(), wall_minutes=round((time.time() - wall)/60, 2))
    said = [s.prediction.text for r in result.rounds for t in TrajectoryFile(run/"rounds"/f"{r['round']:04d}") if t.success for s in t.steps]
    blind = success(blind_replay(said), a.task, a.episodes, steps).to_dict() if said else None
    keep = ("success", "low", "high", "episodes")
    curve = [dict(round=e["round"], name=e["name"], **{k: e[k] for k in keep}) for e in result.evaluations]
    own = {spec: success(policy, spec, 200, 1).to_dict() for spec in OWN}
    write(f"rejection/{a.task.replace('/', '-')}-{'lora' if a.lora else 'full'}-{a.seed}{a.tag}.json", dict(curve=curve, blind_replay=blind, own_tasks_after=own, rounds=[{k: r[k] for k in ("round", "episodes", "sampled_success", "kept")} for r in result.rounds], **spent),
          task=a.task, seed=a.seed, lora=a.lora, max_steps=steps)
    if not a.run: shutil.rmtree(run.parent)


def forgetting(a):
    write(a.name or "own_tasks.json", {name: {spec: success(ModelPolicy(load_model(str(path)), greedy=True), spec, a.episodes, 1).to_dict() for spec in OWN} for name, path in (("before", a.base), ("after", a.after)) if path})


def steps(a):
    "Each step of the oracle's way on held-out seeds: how often the model's answer leads where the oracle's does. From a wrong turn nobody goes on."
    policy, env = ModelPolicy(load_model(str(a.after or a.base)), greedy=True, history=a.history), make_env(a.task)
    def after(t, i, action):
        env.reset(seed=t.task.seed)
        for s in t.steps[:i]: env.step(s.action)
        _, reward, terminated, *_ = env.step(action)
        return reward, terminated, None if terminated else env.unwrapped.oracle()
    right, wrong = {}, {}
    for t in record_demonstrations(env, held_out(a.episodes), policy, max_steps=a.max_steps or 20):
        for i, (s, p) in enumerate(zip(t.steps, policy([s.observation for s in t.steps]))):
            try: hit = after(t, i, policy.decoder.decode(p.text, size=s.observation.size, model_size=p.model_size)) == after(t, i, s.action)
            except ValueError: hit = False
            right.setdefault(i, []).append(hit)
            if not hit: wrong.setdefault(i, []).append((s.prediction.text, p.text))
    for i, hits in right.items(): print(f"step {i}: {sum(hits)} of {len(hits)}", wrong.get(i, [])[:3], flush=True)
    write(a.name or f"by_step/{a.task.replace('/', '-')}{a.tag}.json", dict(right=[sum(h) for h in right.values()], of=[len(h) for h in right.values()], wrong=[wrong.get(i, [])[:3] for i in right]), task=a.task, history=a.history)
    env.close()


COVERED = """() => { const b = [...document.querySelectorAll('#area button')].find(b => document.querySelector('#query').textContent.includes(b.textContent)), r = b.getBoundingClientRect();
    return document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2) !== b; }"""

def covered(a):
    env, found = make_env(a.task or "miniwob/click-test-2"), []
    for seed in held_out(a.episodes): env.reset(seed=seed); found.append(env.chromium.run(env.tab.ask(COVERED)))
    env.close()
    write(a.name or "covered.json", dict(pages=len(found), covered=sum(found)))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["zero-shot", "rejection", "forgetting", "steps", "covered"])
    p.add_argument("--base", type=Path, default=BASE); p.add_argument("--after", type=Path); p.add_argument("--name")
    p.add_argument("--task"); p.add_argument("--seed", type=int, default=0); p.add_argument("--episodes", type=int, default=200)
    p.add_argument("--lora", action="store_true"); p.add_argument("--rounds", type=int, default=3); p.add_argument("--steps", type=int, default=60, help="optimizer steps a round")
    p.add_argument("--states", type=int, default=96); p.add_argument("--samples", type=int, default=8); p.add_argument("--learning-rate", type=float); p.add_argument("--batch-size", type=int, default=16); p.add_argument("--answers-together", type=int, default=1, help="see `Trainer`"); p.add_argument("--temperature", type=float, default=1.0, help="of the sampling")
    p.add_argument("--replay", type=int, default=20, help="demonstrations of each of the base's own tasks, kept in every batch's pool"); p.add_argument("--demonstrations", type=int, default=0, help="of the task's own oracle")
    p.add_argument("--warm-start", type=int, default=60); p.add_argument("--max-steps", type=int); p.add_argument("--history", type=int, default=0); p.add_argument("--run", help="keep the run's folder here"); p.add_argument("--tag", default=""); p.add_argument("--balance", action="store_true", help="weigh a start state by how seldom it was solved")
    p.add_argument("--drop-all-solved", action="store_true", help="leave out start states that every sample solved"); p.add_argument("--keep-idle", action="store_true", help="learn steps that changed nothing on the screen too")
    a = p.parse_args()
    torch.set_num_threads(1)
    {"zero-shot": zero_shot, "rejection": rejection, "forgetting": forgetting, "steps": steps, "covered": covered}[a.what](a)
