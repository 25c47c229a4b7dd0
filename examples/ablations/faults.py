"""The embedded job from random weights (`make train MODEL=tiny:qwen2_vl`), twice: as it is, and with 30 % of all environment calls failing: python examples/ablations/faults.py

The faults are thrown at the client, in acting and in evaluating alike; a failed episode is void, begun again at most three times, and never learned from."""
import argparse
import contextlib
import datetime
import json
import platform
import random
import tempfile
from pathlib import Path

import gymnasium as gym
import torch
import yaml

import vlm_agent.training as training
from vlm_agent.rejection_sampling import RejectionSampling


class Flaky(gym.Wrapper):
    "Calls fail at random."
    def __init__(self, env, share, seed): super().__init__(env); self.share, self.rng, self.calls, self.failed = share, random.Random(seed), 0, 0
    def _maybe(self):
        self.calls += 1
        if self.rng.random() < self.share: self.failed += 1; raise ConnectionError("a fault, made on purpose")
    def reset(self, **k): self._maybe(); return self.env.reset(**k)
    def step(self, action): self._maybe(); return self.env.step(action)


def job(share, seed):
    "-> what the run reports, with the calls made and failed."
    sound, made = training.environments, []
    @contextlib.contextmanager
    def environments(*a):
        with sound(*a) as envs: made.extend(Flaky(e, share, 1000 * seed + i) for i, e in enumerate(envs)); yield list(made)
    training.environments = environments
    try:
        config = yaml.safe_load((Path(__file__).parents[1]/"configs"/"from_scratch.yaml").read_text())
        result = training.train_with_orchestration(config.pop("model")["name"], algorithm=RejectionSampling(**config.pop("algorithm")), seed=seed, progress=False, output_dir=tempfile.mkdtemp() + "/run", **config)
    finally: training.environments = sound
    keep = ("success", "low", "high", "episodes")
    return dict(share=share, seed=seed, calls=sum(e.calls for e in made), failed=sum(e.failed for e in made), void=[r["void"] for r in result.rounds], episodes=[r["episodes"] for r in result.rounds],
                evaluations=[dict(name=e["name"], round=e["round"], **{k: e[k] for k in keep}) for e in result.evaluations])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("faults.json")); parser.add_argument("--seeds", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(1)
    runs = [job(share, seed) for seed in range(a.seeds) for share in (0.0, 0.3)]
    a.output.write_text(json.dumps(dict(date=datetime.date.today().isoformat(), machine=f"{platform.machine()}, one thread", torch=torch.__version__, command=f"python examples/ablations/faults.py --seeds {a.seeds}", runs=runs), indent=1) + "\n")
    for r in runs: print(r["share"], r["evaluations"][-1], f"{r['failed']} of {r['calls']} calls failed, void {sum(r['void'])} of {sum(r['episodes'])} episodes")
