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
SMALL = ["--model", "tiny:qwen2_vl", "--task", "toy/click-button", "--demonstrations", "24", "--warm-start-steps", "6", "--num-training-steps", "12", "--steps-per-round", "4", "--tasks-per-round", "8",
         "--samples-per-task", "3", "--num-envs", "4", "--max-steps", "1", "--eval-episodes", "12", "--batch-size", "4", "--progress", "false"]


def start(folder, *flags, launch=("-m",), **kw):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen([sys.executable, *launch, "vlm_agent.cli", "train", *SMALL, "--output-dir", str(folder), *flags], cwd=ROOT, env=env,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **kw)  # a shell's background jobs ignore Ctrl-C


def finish(folder, *flags, **kw):
    p = start(folder, *flags, **kw)
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


def kill_and_resume(folder, moments, *flags):
    "Start, SIGKILL after so many seconds, again and again; then let it finish."
    for seconds in moments:
        p = start(folder, "--resume", *flags)
        try: p.communicate(timeout=seconds)
        except subprocess.TimeoutExpired: p.send_signal(signal.SIGKILL); p.communicate()
    return finish(folder, "--resume", *flags)


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


def test_a_run_that_acts_while_it_learns_is_as_exact(tmp_path):
    begun = time.time(); finish(tmp_path/"whole", "--max-lag", "1"); seconds = time.time() - begun
    kill_and_resume(tmp_path/"run", [seconds * 0.8], "--max-lag", "1")
    same(tmp_path/"whole", tmp_path/"run")


os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # `accelerate launch --cpu` starts more than one process only with MPI; this starts gloo
TWO = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m")


def test_two_processes_learn_what_one_learns(whole, tmp_path):
    "Same global batch, same loss curve to fp32 tolerance; each process acted on its own half, each trajectory counted once, one process wrote."
    folder, _ = whole
    finish(tmp_path/"two", launch=TWO)
    one, two = measured(folder), measured(tmp_path/"two")
    assert [json.loads((f/"summary.json").read_text())["processes"] for f in (folder, tmp_path/"two")] == [1, 2]
    assert [(e["event"], e.get("step")) for e in one] == [(e["event"], e.get("step")) for e in two]
    for a, b in zip(one, two):
        if a["event"] == "step": assert a["loss"] == pytest.approx(b["loss"], rel=2e-4) and a["n_tokens"] == b["n_tokens"] and a["grad_norm"] == pytest.approx(b["grad_norm"], rel=2e-3), (a, b)
        else: assert a == b
    assert sorted(episodes(folder)) == sorted(episodes(tmp_path/"two")) and len(set(episodes(tmp_path/"two"))) == 3 * 8 * 3
    assert sorted(p.name for p in (tmp_path/"two"/"rounds").iterdir()) == ["0001", "0002", "0003"]


def test_a_full_disk_is_told_and_the_last_checkpoint_stays_good(whole, tmp_path):
    "A limit on the size of a file that the trajectories keep and a checkpoint's weights do not, set once the first checkpoint is there."
    import resource
    folder, seconds = whole
    p = start(tmp_path/"run"); deadline = time.time() + 20 * seconds
    while not (tmp_path/"run"/"checkpoints"/"0000").exists() and time.time() < deadline: time.sleep(0.02)
    resource.prlimit(p.pid, resource.RLIMIT_FSIZE, (200_000, 200_000))
    out, err = p.communicate(timeout=120)
    assert p.returncode == 1 and "make room" in err and "--resume" in err and "Traceback" not in err, err[-2000:]
    assert not list((tmp_path/"run").rglob("*.tmp"))
    finish(tmp_path/"run", "--resume")
    same(folder, tmp_path/"run")


def test_one_process_at_a_time_writes_into_a_run(whole, tmp_path):
    _, seconds = whole
    p = start(tmp_path/"run"); deadline = time.time() + 20 * seconds
    while not (tmp_path/"run"/"config.yaml").exists() and time.time() < deadline: time.sleep(0.02)
    p.send_signal(signal.SIGSTOP)  # it holds the run for as long as this takes
    q = start(tmp_path/"run", "--resume"); out, err = q.communicate(timeout=120)
    p.kill(); p.communicate()
    assert q.returncode == 1 and "another process is training" in err, err[-2000:]
