"""What a notebook tells badly about training: being killed, a full disk, an interrupted terminal, two processes."""
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMALL = ["--task", "toy/click-button", "--demonstrations", "24", "--warm-start-steps", "6", "--num-training-steps", "12", "--steps-per-round", "4", "--tasks-per-round", "8",
         "--samples-per-task", "3", "--num-envs", "4", "--max-steps", "1", "--eval-episodes", "12", "--batch-size", "4", "--progress", "false"]


def start(folder, *flags, **kw):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen([sys.executable, "-m", "vlm_agent.cli", "train", *SMALL, "--output-dir", str(folder), *flags], cwd=ROOT, env=env,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **kw)  # a shell's background jobs ignore Ctrl-C


def finish(folder, *flags):
    p = start(folder, *flags)
    out, err = p.communicate(timeout=600)
    assert p.returncode == 0, err[-3000:]
    return out


def weights(folder): return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((folder/"checkpoints"/"final").glob("*.safetensors"))}
def episodes(folder): return [(p.parent.name, json.loads(line)["id"]) for p in sorted(folder.glob("rounds/*/trajectories.jsonl")) for line in p.read_text().splitlines()]
def measured(folder): return [{k: v for k, v in json.loads(line).items() if not k.startswith("seconds")} for line in (folder/"metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "The uninterrupted run, and how long it took."
    folder = tmp_path_factory.mktemp("whole")/"run"
    begun = time.time(); finish(folder)
    return folder, time.time() - begun


def same(a, b):
    assert weights(a) == weights(b) and weights(a)
    assert episodes(a) == episodes(b) and len(set(episodes(a))) == len(episodes(a)) == 3 * 8 * 3
    assert measured(a) == measured(b)


def kill_and_resume(folder, moments):
    "Start, SIGKILL after so many seconds, again and again; then let it finish."
    for seconds in moments:
        p = start(folder, "--resume")
        try: p.communicate(timeout=seconds)
        except subprocess.TimeoutExpired: p.send_signal(signal.SIGKILL); p.communicate()
    return finish(folder, "--resume")


def test_a_killed_run_ends_where_the_whole_one_ends(whole, tmp_path):
    folder, seconds = whole
    kill_and_resume(tmp_path/"run", [seconds * f for f in (0.55, 0.7)])
    same(folder, tmp_path/"run")


@pytest.mark.slow
def test_thirty_kills_at_random_moments(whole, tmp_path):
    folder, seconds = whole; rng, kills = random.Random(0), 0
    while kills < 30:
        run = tmp_path/f"run{kills}"; moments = [rng.uniform(0.3, 1.0) * seconds for _ in range(3)]
        kill_and_resume(run, moments); kills += len(moments)
        same(folder, run)


def test_an_existing_run_is_never_written_over(whole):
    folder, _ = whole
    before = weights(folder)
    p = start(folder); out, err = p.communicate(timeout=120)
    assert p.returncode == 1 and "--resume" in err and "--output-dir" in err and "Traceback" not in err
    assert weights(folder) == before
    assert "success" in finish(folder, "--resume")  # a finished run: nothing to do


def test_ctrl_c_leaves_a_whole_checkpoint_and_says_where(whole, tmp_path):
    folder, seconds = whole
    p = start(tmp_path/"run"); deadline = time.time() + 20 * seconds
    while not (tmp_path/"run"/"checkpoints"/"0001").exists() and time.time() < deadline: time.sleep(0.05)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=120)
    assert p.returncode == 130 and "checkpoints/000" in err and "--resume" in err, err[-2000:]
    finish(tmp_path/"run", "--resume")
    same(folder, tmp_path/"run")
