"""Each keyword of RejectionSampling on and off, three seeds, the same held-out scenes: python examples/ablations/run.py --output examples/ablations/results.json

A small job on purpose (about 20 CPU-seconds a run): the model is far from finished when it is judged, so that differences show.
Runs that are in the output file already are not run again."""
import argparse
import datetime
import json
import platform
import random
import sys
import time
from pathlib import Path

import gymnasium as gym
import torch

from vlm_agent import VLMWrapper, make_env
from vlm_agent.core import Task
from vlm_agent.evaluation import evaluate
from vlm_agent.rejection_sampling import AdvantageWeighted, BestOfK, RejectionSampling
from vlm_agent.runner import ModelPolicy, TaskRunner, record_demonstrations
from vlm_agent.training import Trainer

HELD_OUT, SHOWN = 1_000_000_000, 500_000_000


class Chain(gym.Wrapper):
    "Three buttons, one after the other; a miss does nothing. Reward 1/3 for each, so that a return of 2/3 is two of three."
    spec_name, buttons = "chain", 3
    def begin(self): return self.env.reset(seed=self.scene * 4 + self.hits)
    def reset(self, *, seed=None, options=None): self.scene, self.hits = seed, 0; return self.begin()
    def oracle(self): return self.env.unwrapped.oracle()
    @property
    def unwrapped(self): return self
    def step(self, action):
        hit = self.env.step(action)[1] > 0
        self.hits += hit
        over = self.hits == self.buttons
        obs, info = self.begin()
        return obs, hit / self.buttons, over, False, {**info, "success": over}


class Flaky(gym.Wrapper):
    "Calls fail at random."
    def __init__(self, env, share, seed): super().__init__(env); self.share, self.rng = share, random.Random(seed)
    def _maybe(self):
        if self.rng.random() < self.share: raise ConnectionError("a fault, made on purpose")
    def reset(self, **k): self._maybe(); return self.env.reset(**k)
    def step(self, action): self._maybe(); return self.env.step(action)


JOBS = {  # task -> (environment, steps an episode may take, start states a round, samples of each, optimizer steps of the warm start)
    "one button": (lambda: make_env("toy/click-button"), 1, 96, 8, 120),
    "three buttons": (lambda: Chain(make_env("toy/click-button")), 8, 48, 4, 240)}
VARIANTS = {
    "one button": {
        "default": RejectionSampling(), "distinct=False": RejectionSampling(distinct=False), "max_per_task=1": RejectionSampling(max_per_task=1),
        "drop_all_solved=True": RejectionSampling(drop_all_solved=True), "balance=True": RejectionSampling(balance=True),
        "replay_rounds=0": RejectionSampling(replay_rounds=0), "replay_rounds=1": RejectionSampling(replay_rounds=1),
        "keep_demonstrations=False": RejectionSampling(keep_demonstrations=False), "start_from_base=True": RejectionSampling(start_from_base=True),
        "BestOfK()": BestOfK(), "AdvantageWeighted()": AdvantageWeighted(), "AdvantageWeighted(negative=0)": AdvantageWeighted(negative=0),
        "30 % of environment calls fail": RejectionSampling()},
    "three buttons": {
        "default": RejectionSampling(), "drop_idle=False": RejectionSampling(drop_idle=False), 'credit="last"': RejectionSampling(credit="last"), 'credit="discounted", discount=0.5': RejectionSampling(credit="discounted", discount=0.5),
        "max_length=4": RejectionSampling(max_length=4), "drop_idle=False, max_length=4": RejectionSampling(drop_idle=False, max_length=4), "reward_threshold=0.3": RejectionSampling(reward_threshold=0.3), "reward_threshold=1": RejectionSampling(reward_threshold=0.999)}}


def weights_of(model): return {k: v.clone() for k, v in model.model.state_dict().items()}


def warm_start(job, seed, demonstrations=300):
    "A model that has seen a few demonstrations: its weights, and those."
    model = VLMWrapper("tiny:qwen2_vl", temperature=1.0)
    shown = record_demonstrations(JOBS["one button"][0](), range(SHOWN + seed * 10_000, SHOWN + seed * 10_000 + demonstrations), ModelPolicy(model))
    Trainer(model, answers_together=1).fit(RejectionSampling().select([], demonstrations=shown).samples, JOBS[job][4], 16, seed=f"warm {seed}")
    return model, weights_of(model), shown


def run(job, name, algorithm, seed, model, warm, shown, rounds=3, steps=40, held_out=300):
    "A few rounds from the warm start; success on held-out scenes."
    make, max_steps, n, k, _ = JOBS[job]
    model.model.load_state_dict(warm)
    envs, trainer, past, told, began = [make() for _ in range(16)], Trainer(model, warmup_steps=0, answers_together=1), [], [], time.process_time()
    acting = [Flaky(e, 0.3, 1000 * seed + i) for i, e in enumerate(envs)] if "calls fail" in name else envs
    for r in range(1, rounds + 1):
        scenes = range(seed * 1_000_000 + r * n, seed * 1_000_000 + r * n + n)
        runner = TaskRunner(ModelPolicy(model), acting, max_steps=max_steps, seed=seed)
        acted = runner.collect([Task(job, s) for s in scenes], k=k, round=r)
        selection = algorithm.select(acted, replay=past, demonstrations=shown)
        past += acted
        if selection.from_base: model.model.load_state_dict(warm); trainer = Trainer(model, warmup_steps=0, answers_together=1)
        trainer.fit(selection.samples, steps, 16, seed=f"{seed}/{r}")
        valid = [t for t in acted if t.outcome != "void"]
        told.append(dict(sampled_success=sum(t.success for t in valid) / max(1, len(valid)), void=len(acted) - len(valid), kept=sum(d.kept for d in selection.decisions), samples=len(selection.samples)))
    e = evaluate(TaskRunner(ModelPolicy(model, greedy=True), envs, max_steps=max_steps), range(HELD_OUT, HELD_OUT + held_out))
    return dict(**e.to_dict(), outcomes="".join("01"[t.success] for t in e.trajectories), rounds=told, cpu_seconds=round(time.process_time() - began, 1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.json"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="variants to run, by name")
    a = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(a.output.read_text()) if a.output.exists() else dict(
        date=datetime.date.today().isoformat(), machine=f"{platform.processor() or platform.machine()}, one thread", python=platform.python_version(), torch=torch.__version__,
        command="python examples/ablations/run.py", runs=[])
    done = {(r["task"], r["variant"], r["seed"]) for r in found["runs"]}
    for seed in range(a.seeds):
        for job, variants in VARIANTS.items():
            ready = None
            for name, algorithm in [("warm start", None), *variants.items()]:
                if (job, name, seed) in done or (a.only and name not in a.only): continue
                ready = ready or warm_start(job, seed)
                row = run(job, name, algorithm, seed, *ready, **(dict(rounds=0) if algorithm is None else {}))
                found["runs"].append(dict(task=job, variant=name, seed=seed, **row))
                a.output.write_text(json.dumps(found, indent=0) + "\n")
                print(f"seed {seed}  {job:14s} {name:34s} {row['success']:.1%}  ({row['cpu_seconds']} CPU-s)", file=sys.stderr, flush=True)
