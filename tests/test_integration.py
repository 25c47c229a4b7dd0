"""The whole thing, as a user runs it: the specification's example against a running server, the example program, the command line, the errors."""
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run(*args, timeout=600, cwd=ROOT, env=ENV):
    return subprocess.run([sys.executable, *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def server():
    from vlm_agent.server import start_server
    s = start_server("toy/click-button")
    yield s
    s.close()


def test_the_specifications_example_runs_against_a_running_server(server, tmp_path):
    code = f"""
from vlm_agent import VLMWrapper, RejectionSampling, train_with_orchestration
vlm = VLMWrapper(model_name="tiny", use_lora=True)
r = train_with_orchestration(model=vlm, ui_env_url={server.url!r}, task_prompt="Click the button",
                             algorithm=RejectionSampling(reward_threshold=0.5), num_training_steps=100, batch_size=16, eval_episodes=8, tasks_per_round=16)
print(r)
"""
    r = run("-c", code, cwd=tmp_path)
    assert r.returncode == 0, r.stderr[-3000:]
    folder, = (tmp_path/"runs").iterdir()
    lines = [json.loads(l) for l in (folder/"rounds"/"0001"/"trajectories.jsonl").read_text().splitlines()]
    assert {l["steps"][0]["prediction"]["prompt"] for l in lines} == {"Click the button"}


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    "The example program at toy size."
    folder = tmp_path_factory.mktemp("runs")/"small"
    r = run("examples/train_qwen2_vl.py", "--mode", "train", "--output-dir", folder, "--demonstrations", "40", "--warm-start-steps", "20", "--num-training-steps", "20",
            "--steps-per-round", "10", "--tasks-per-round", "32", "--samples-per-task", "4", "--eval-episodes", "40")
    assert r.returncode == 0, r.stderr[-3000:]
    return folder, r.stdout


def test_the_run_folder_is_complete(small_run):
    folder, said = small_run
    for name in ("config.yaml", "metrics.jsonl", "summary.json", "report.html", "curves.png", "rounds/0001/trajectories.jsonl", "rounds/0002/selection.jsonl", "checkpoints/0002/state.json"):
        assert (folder/name).exists(), name
    assert list((folder/"checkpoints"/"final").glob("*.safetensors")) and not list(folder.rglob("*.tmp"))
    for row in ("random clicker", "untrained", "after the warm start", "after rejection sampling"): assert row in said
    summary = json.loads((folder/"summary.json").read_text())
    for who in ("untrained", "warm_start", "trained", "random_clicker"):
        s = summary[who]
        assert 0 <= s["low"] <= s["success"] <= s["high"] <= 1 and s["episodes"] == 40


def test_the_report_needs_nothing_from_outside(small_run):
    html = (small_run[0]/"report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["']https?://""", html) and "data:image/png" in html


def test_what_was_used_can_be_run_again(small_run, tmp_path):
    r = run("-m", "vlm_agent.cli", "train", "--config", small_run[0]/"config.yaml", "--output-dir", tmp_path/"again", "--progress", "false")
    assert r.returncode == 0, r.stderr[-3000:]
    a, b = (json.loads((p/"summary.json").read_text()) for p in (small_run[0], tmp_path/"again"))
    assert a["trained"] == b["trained"] and a["steps"] == b["steps"]


def test_mode_test_shows_what_was_learned(small_run):
    r = run("examples/train_qwen2_vl.py", "--mode", "test", "--output-dir", small_run[0], "--episodes", "2")
    assert r.returncode == 0, r.stderr[-3000:]
    assert r.stdout.count("'type': 'click'") + r.stdout.count("no action") >= 1 and len(list((small_run[0]/"predictions").glob("*.png"))) >= 2


@pytest.mark.parametrize("config", sorted(p for p in (ROOT/"examples").rglob("*.yaml") if p.parent.name != "tasks"), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_configuration_has_known_keys(config):
    from vlm_agent.cli import _algorithm, parse, train_parser
    argv = ["--config", str(config)]
    assert parse(train_parser(_algorithm(argv)), argv).model.name


def test_the_model_block_of_the_specification_is_whole():
    import yaml
    keys = {"name", "torch_dtype", "device", "use_lora", "lora_config", "max_new_tokens", "temperature", "do_sample", "freeze_vision_encoder", "action_format"}
    for name in ("configs/default.yaml", "exp_001_rejection_sampling/config.yaml"): assert set(yaml.safe_load((ROOT/"examples"/name).read_text())["model"]) >= keys


def free_port():
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); return s.getsockname()[1]


@pytest.mark.parametrize("flags, expected", [
    (["--task", "toy/click-buton"], ["toy/click-button"]),
    (["--task", "toy/click-button", "--model", "tiny:qwen9"], ["qwen2_vl"]),
    (["--ui-env-url", "PORT"], ["PORT"]),
    (["--task", "toy/click-button", "--model.device", "cuda"], ["CUDA"]),
    (["--task", "toy/click-button", "--model", "Qwen/Qwen2-VL-2B-Instruct"], ["Qwen/Qwen2-VL-2B-Instruct"]),
    (["--num-training-steps", "3"], ["ui_env_url", "task"]),
    (["--taks", "toy/click-button"], ["task"]),
])
def test_bad_input_is_told_in_one_line(flags, expected, tmp_path):
    port = str(free_port())
    flags = [f"http://127.0.0.1:{port}" if f == "PORT" else f for f in flags]
    r = run("-m", "vlm_agent.cli", "train", *flags, "--output-dir", tmp_path/"run", "--eval-episodes", "0", timeout=180)
    assert r.returncode == 1 and "Traceback" not in r.stderr, r.stderr[-2000:]
    for word in expected: assert (port if word == "PORT" else word) in r.stderr, r.stderr[-2000:]


def test_a_port_in_use_is_named(server):
    port = server.url.rsplit(":", 1)[1].strip("/")
    r = run("-m", "vlm_agent.cli", "serve", "--task", "toy/click-button", "--port", port, timeout=120)
    assert r.returncode == 1 and port in r.stderr and "Traceback" not in r.stderr


def test_eval_from_the_command_line():
    r = run("-m", "vlm_agent.cli", "eval", "random", "--task", "toy/click-button", "--episodes", "20")
    assert r.returncode == 0 and "20" in r.stdout, r.stderr[-2000:]
    r = run("-m", "vlm_agent.cli", "eval", "oracle", "--task", "toy/click-button", "--episodes", "5")
    assert r.returncode == 0 and "100" in r.stdout, r.stderr[-2000:]


def test_a_person_demonstrates_in_a_browser(tmp_path, monkeypatch):
    "A mouse on the picture of the page, in a real Chromium, is an action in the environment and a demonstration on disk."
    import threading
    from vlm_agent import training
    from vlm_agent.browser import find_chromium
    playwright = pytest.importorskip("playwright.sync_api")
    envs, told, make = [], [], training.make_env
    monkeypatch.setattr(training, "make_env", lambda task: envs.append(make(task)) or envs[-1])
    recording = threading.Thread(target=training.demonstrate, args=("toy/click-button", 2, tmp_path/"shown"), kwargs=dict(told=told.append), daemon=True); recording.start()
    with playwright.sync_playwright() as p:
        page = p.chromium.launch(executable_path=str(find_chromium()), args=["--no-sandbox"]).new_page()
        while not told: page.wait_for_timeout(50)
        page.goto(told[0].split()[-1])
        for i in (1, 2):
            page.wait_for_function(f"number === {i} && document.getElementById('shot').naturalWidth > 0")
            box, (w, h), target = page.locator("#shot").bounding_box(), page.evaluate("[document.getElementById('shot').naturalWidth, document.getElementById('shot').naturalHeight]"), envs[0].unwrapped.oracle()
            page.mouse.click(box["x"] + target["x"] * box["width"] / w, box["y"] + target["y"] * box["height"] / h)
        while recording.is_alive(): page.wait_for_timeout(50)
    from vlm_agent.core import TrajectoryFile
    assert [(t.success, t.round, len(t)) for t in TrajectoryFile(tmp_path/"shown")] == [(True, -1, 1)] * 2


def test_doctor_is_one_page():
    r = run("-m", "vlm_agent.cli", "doctor")
    assert r.returncode == 0 and len(r.stdout.splitlines()) < 40, r.stderr[-2000:]
    for word in ("python", "torch", "torchvision", "bitsandbytes", "CUDA", "Chromium", "disk", "model cache"): assert word in r.stdout


@pytest.mark.parametrize("flags, says", [(["--output_dir", "x"], "takes no --output_dir x"), (["--output-dir", "nowhere"], "not the folder of a finished run"), (["--episodes", "-1"], "at least 1")])
def test_mode_test_ignores_nothing(flags, says):
    r = run("examples/train_qwen2_vl.py", "--mode", "test", *flags)
    assert r.returncode and says in r.stderr and "Traceback" not in r.stderr


# A run from Python

SMALL = dict(task="toy/click-button", demonstrations=24, warm_start_steps=6, num_training_steps=12, steps_per_round=4, tasks_per_round=8, samples_per_task=3, num_envs=4, max_steps=1, eval_episodes=0, batch_size=4, progress=False)


def small(folder, model="tiny:qwen2_vl", **more):
    from vlm_agent.training import train_with_orchestration
    return train_with_orchestration(model, output_dir=str(folder), **{**SMALL, **more})


def steps(folder): return [json.loads(l)["loss"] for l in (folder/"metrics.jsonl").read_text().splitlines() if '"step"' in l[:20]]


def test_a_round_that_keeps_nothing_leaves_the_model_as_it_was(tmp_path):
    from safetensors.torch import load_file
    from vlm_agent.rejection_sampling import RejectionSampling
    class Second(RejectionSampling):
        def judge(self, group, solved, tried): return [(0.0, "nothing")] * len(group) if group[0].round == 2 else super().judge(group, solved, tried)
    small(tmp_path/"run", num_training_steps=8, demonstrations=None, keep_checkpoints=3, algorithm=Second(reward_threshold=0.0, start_from_base=True, replay_rounds=0, drop_invalid=False))
    base, one, two = (load_file(tmp_path/"run"/"checkpoints"/f"000{i}"/"model.safetensors") for i in range(3))
    assert all((one[k] == two[k]).all() for k in one) and any((base[k] != one[k]).any() for k in one)


def test_a_selection_may_ask_for_the_first_weights_in_every_round(tmp_path):
    from vlm_agent.rejection_sampling import RejectionSampling
    class Fresh(RejectionSampling):
        def select(self, *a, **k): s = super().select(*a, **k); s.from_base = True; return s
    small(tmp_path/"run", num_training_steps=20, algorithm=Fresh())


def test_a_half_trained_model_does_not_pass_for_an_untrained_one(tmp_path):
    from vlm_agent.wrapper import VLMWrapper
    vlm = VLMWrapper("tiny:qwen2_vl")
    def interrupt(e):
        if e["event"] == "step" and e["step"] == 4: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): small(tmp_path/"run", vlm, callbacks=(interrupt,))
    with pytest.raises(ValueError, match="load it anew"): small(tmp_path/"run", vlm, resume=True)
    small(tmp_path/"run", VLMWrapper("tiny:qwen2_vl"), resume=True); small(tmp_path/"whole")
    assert steps(tmp_path/"run") == steps(tmp_path/"whole")


def test_other_adapters_are_another_run(tmp_path):
    from vlm_agent.wrapper import VLMWrapper
    def interrupt(e):
        if e["event"] == "round": raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): small(tmp_path/"run", VLMWrapper("tiny:qwen2_vl", use_lora=True), callbacks=(interrupt,))
    with pytest.raises(ValueError, match="lora_alpha"): small(tmp_path/"run", VLMWrapper("tiny:qwen2_vl", use_lora=True, lora_config=dict(lora_alpha=256)), resume=True)


@pytest.mark.parametrize("wrong, says", [(dict(temperature=0.0), "temperature"), (dict(max_grad_norm=0.0), "inf"), (dict(learning_rate=-1), "learning_rate")])
def test_numbers_that_would_teach_nothing_are_refused(wrong, says, tmp_path):
    with pytest.raises(ValueError, match=says): small(tmp_path/"run", **wrong)


def test_an_algorithm_that_selects_no_selection_is_told(tmp_path):
    class Wrong:
        def select(self, trajectories, replay=(), demonstrations=()): return []
    with pytest.raises(TypeError, match="must return a Selection, got list"): small(tmp_path/"run", algorithm=Wrong())


def test_demonstrations_of_which_nothing_is_learned_are_told(tmp_path):
    from vlm_agent.rejection_sampling import RejectionSampling
    with pytest.warns(UserWarning, match="nothing is learned from 24 demonstrations"): small(tmp_path/"run", num_training_steps=4, algorithm=RejectionSampling(keep_demonstrations=False))


def test_callbacks_may_do_what_they_like_with_an_event(tmp_path):
    small(tmp_path/"run", num_training_steps=4, callbacks=(lambda e: e.clear(),))
    assert len(steps(tmp_path/"run")) == 10


def test_what_acts_elsewhere_is_counted(tmp_path):
    import torch
    was = torch.get_num_threads(); torch.set_num_threads(4); during = []
    try:
        began = sum(os.times()[:2]); r = small(tmp_path/"run", max_lag=1, callbacks=(lambda e: during.append(torch.get_num_threads()),)); own = sum(os.times()[:2]) - began
        assert r.summary["cpu_seconds"] > own + 3  # the process that acts has loaded torch at least
        assert during[-1] == 2 and torch.get_num_threads() == 4  # each of the two processes has half of the threads
    finally: torch.set_num_threads(was)


@pytest.mark.filterwarnings("ignore:this CPU has no instructions")
def test_a_loss_that_is_no_number_stops_the_run_in_float16_too():
    import numpy as np
    from vlm_agent.core import Observation, Prediction, Step, Task, Trajectory
    from vlm_agent.rejection_sampling import Sample
    from vlm_agent.training import Trainer
    from vlm_agent.wrapper import VLMWrapper
    o = Observation(np.zeros((64, 64, 3), np.uint8), "go"); t = Trajectory(Task("t"), [Step(o, Prediction("click(1, 2)", prompt="go", images=(o.image,)), dict(type="click", x=1, y=2))])
    with pytest.raises(FloatingPointError, match="the loss is nan"): Trainer(VLMWrapper("tiny:qwen2_vl"), mixed_precision="fp16").fit([Sample(t, 0, float("nan"))], 3, 1)
