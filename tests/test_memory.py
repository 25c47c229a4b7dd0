"""What the memory notebook cannot show in its own process: that the step which is predicted is the step which the trainer takes, and what is promised of real sizes."""
import json
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conftest import ROOT

from vlm_agent import VLMWrapper, memory, wrapper
from vlm_agent.core import Observation, Prediction, Step, Task, Trajectory
from vlm_agent.memory import MemoryReport, PeakTracker, _batch, _facts, _measured, _parts, check_memory, known_models, largest_batch, predict_memory, settings_of, skeleton
from vlm_agent.rejection_sampling import Sample
from vlm_agent.training import Trainer

FULL = dict(use_lora=False, freeze_vision=False)


# The same step

def line(f, out):
    made = [o for o in tree_leaves(out) if isinstance(o, torch.Tensor)]
    return f.name().partition("::")[2], tuple(tuple(o.shape) for o in made), str(made[0].dtype) if made else ""  # the statistics of a norm have another type on a GPU, and on fake tensors

class Watch(TorchDispatchMode):
    "Every operation on real tensors, and the shapes and types that came of it."
    def __init__(self): super().__init__(); self.lines = []
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        out = f(*args, **(kwargs or {})); self.lines.append(line(f, out)); return out


def fitting(vlm, batch, **trainer):
    "A step of the trainer on these samples, to be taken."
    samples = []
    for i, (picture, prompt, label) in enumerate(zip(batch["images"], batch["prompts"], batch["labels"])):
        o = Observation(picture, "goal"); samples.append(Sample(Trajectory(Task("toy/click-button", i), [Step(o, Prediction("", tuple(label), prompt, (o.image,)))], "success", 1.0, o), 0))
    t = Trainer(vlm, learning_rate=1e-4, **trainer)
    return t, lambda: t.fit(samples, 1, len(samples))


def set_up(family, how):
    "(model, a batch for the whole step, keywords of the trainer) of keywords of `predict_memory`."
    vlm = VLMWrapper(f"tiny:{family}", device="cpu", use_lora=how.get("use_lora", True), torch_dtype=how.get("torch_dtype", "float32"), load_in_4bit=how.get("quantization") == "4bit")
    if how.get("freeze_vision", True): vlm.freeze_vision_encoder()
    if how.get("gradient_checkpointing", True): vlm.gradient_checkpointing_enable()
    n = how.get("batch_size", 1); batch = _batch(vlm, True, how["image_size"], n, None, None, how.get("samples_per_screenshot", 1))
    if how.get("accumulate"): first, second = _parts(batch, True); batch = {k: first[k] + second[k] for k in first}
    return vlm, batch, {**{k: how[k] for k in ("step_in_backward", "mixed_precision", "optimizer") if k in how}, **({"micro_batch_size": n} if how.get("accumulate") else {})}


def predicted(monkeypatch, family, **how):
    "The operations of the step that `predict_memory` takes."
    lines, dispatch, restart = [], PeakTracker.__torch_dispatch__, PeakTracker.restart
    def watched(self, f, types, args=(), kwargs=None): out = dispatch(self, f, types, args, kwargs); lines.append(line(f, out)); return out
    monkeypatch.setattr(PeakTracker, "__torch_dispatch__", watched); monkeypatch.setattr(PeakTracker, "restart", lambda self: (lines.clear(), restart(self)))
    predict_memory(f"tiny:{family}", device="cpu", **{"torch_dtype": "float32", **how})
    return lines


def arithmetic(lines):
    "Without views, numbers given to Python, and the clipping: torch takes the norms of real tensors in one call and those of fake ones in many."
    return [l for l in lines if l[1] and l[0].split(".")[0] not in {"detach", "alias", "view", "t", "transpose", "_local_scalar_dense", "lift_fresh", "_unsafe_view", "_foreach_norm", "linalg_vector_norm", "_foreach_mul_", "mul_"}]


SAME = [("qwen2_vl", {}), ("qwen2_vl", dict(batch_size=4, samples_per_screenshot=2)), ("qwen2_vl", dict(torch_dtype="bfloat16", accumulate=True)), ("llava", dict(gradient_checkpointing=False, **FULL)),
        ("florence2", dict(batch_size=2)), ("paligemma", dict(step_in_backward=True, **FULL)), ("qwen3_vl", dict(mixed_precision="bf16")), ("llava", dict(optimizer="adamw8bit", torch_dtype="bfloat16", **FULL))]

@pytest.mark.parametrize("family, how", SAME)
def test_the_predicted_step_is_the_trainers(monkeypatch, family, how):
    "Operation by operation, with shapes and types. Whatever one of them does and the other does not, turns this red."
    how = dict(image_size=(160, 210), **how); vlm, batch, trainer = set_up(family, how)
    _, fit = fitting(vlm, batch, **trainer); fit(); vlm._features.forget()
    with Watch() as w: fit()
    real, fake = arithmetic(w.lines), arithmetic(predicted(monkeypatch, family, **how))
    assert len(real) > 300 and fake == real


@pytest.mark.parametrize("family, how", [*SAME, ("qwen2_vl", dict(quantization="4bit", torch_dtype="bfloat16")), ("llava", dict(mixed_precision="fp16")), ("qwen2_vl", dict(batch_size=2, accumulate=True, **FULL))])
def test_the_trainers_step_takes_what_is_predicted(family, how):
    "By the allocator: also what stays alive without an operation of its own turns this red."
    how = dict(image_size=(320, 240), device="cpu", **{"torch_dtype": "float32", **how}); vlm, batch, trainer = set_up(family, how)
    t, fit = fitting(vlm, batch, **trainer)
    real, foreseen = _measured(fit, vlm, t.optimizer, {}), predict_memory(f"tiny:{family}", **how)
    assert abs(foreseen.peak_bytes / real.peak_bytes - 1) < 0.006 and foreseen.phase == real.phase, f"{foreseen}; measured {real}"


def test_a_step_that_does_more_is_seen(monkeypatch):
    "The trainer and the prediction call one function; if the trainer had its own, this would not rise."
    before = predict_memory("tiny:qwen2_vl", (160, 210), device="cpu").peak_bytes
    forward = wrapper.VLMWrapper.forward
    def greedy(self, *args, **kwargs): out = forward(self, *args, **kwargs); self.kept = [p.detach().clone() for p in self.parameters()]; return out
    monkeypatch.setattr(wrapper.VLMWrapper, "forward", greedy)
    assert predict_memory("tiny:qwen2_vl", (160, 210), device="cpu").peak_bytes > 1.2 * before


# Real sizes

@pytest.mark.parametrize("name", known_models())
def test_a_known_model_has_the_parameters_that_its_page_says(name):
    import copy
    from vlm_agent.memory import _stand_in
    with torch.device("meta"): assert skeleton(_stand_in(_facts()[name])[0], torch.bfloat16).num_parameters() == _facts()[name]["parameters"]


@pytest.mark.parametrize("how, most", [({}, 4.8), (dict(quantization="4bit"), 2.0), (dict(optimizer="adamw8bit", step_in_backward=True, **FULL), 10.0)])
def test_2b_takes_no_more_than_promised(how, most): assert predict_memory("Qwen/Qwen2-VL-2B-Instruct", **how).gib <= most


@pytest.mark.slow
@pytest.mark.parametrize("name, how, most", [("Qwen/Qwen2-VL-7B-Instruct", {}, 16.5), ("Qwen/Qwen2-VL-7B-Instruct", dict(quantization="4bit"), 7.0), ("llava-hf/llava-1.5-13b-hf", {}, 26.0), ("llava-hf/llava-1.5-13b-hf", dict(quantization="4bit"), 8.5)])
def test_larger_ones_take_no_more_than_promised(name, how, most): assert predict_memory(name, **how).gib <= most


@pytest.mark.slow
@pytest.mark.parametrize("name", known_models())
def test_every_known_model_is_predicted(name):
    lora, quarter, acting = predict_memory(name), predict_memory(name, quantization="4bit"), predict_memory(name, phase="acting")
    assert quarter.peak_bytes < lora.peak_bytes and lora.by_category["weights"] > _facts()[name]["parameters"] * 2 and acting.peak_bytes < 1.2 * lora.peak_bytes


@pytest.mark.slow
def test_many_configurations_against_the_allocator(tmp_path):
    r = subprocess.run([sys.executable, str(ROOT/"benchmarks"/"memory_check.py"), "--out", str(tmp_path/"out.json")], capture_output=True, text=True, cwd=ROOT); assert r.returncode == 0, r.stderr[-2000:]
    said = json.loads((tmp_path/"out.json").read_text())
    assert said["configurations"] >= 24 and said["families"] >= 4 and said["mean_error"] <= 0.005 and said["worst_error"] <= 0.02


# What the trainer makes of it

def test_the_trainer_says_what_to_change_before_it_trains():
    vlm = VLMWrapper("tiny:qwen2_vl", device="cpu", use_lora=True).freeze_vision_encoder(); before = {n: p.detach().clone() for n, p in vlm.named_parameters()}
    o = Observation(_batch(vlm, True, (160, 210), 1, None, None, 1)["images"][0], "goal")
    samples = [Sample(Trajectory(Task("toy/click-button", i), [Step(o, Prediction("click(12, 4)", prompt="Click", images=(o.image,)))], "success", 1.0, o), 0) for i in range(4)]
    with pytest.raises(torch.OutOfMemoryError, match="nothing was trained. What would help: .*gradient_checkpointing: true.*micro_batch_size: 1"): Trainer(vlm, memory_gb=0.003).fit(samples, 1, 4)
    assert all(torch.equal(p, before[n]) for n, p in vlm.named_parameters())
    roomy = Trainer(vlm, memory_gb=1); roomy.fit(samples, 1, 4)
    assert roomy.predicted.settings["batch_size"] == 4 and not roomy.predicted.settings["accumulate"] and roomy.step == 1
    parts = Trainer(vlm, memory_gb=1, micro_batch_size=2); parts.fit(samples, 1, 4)
    assert parts.predicted.settings["batch_size"] == 2 and parts.predicted.settings["accumulate"]


def test_the_trainer_asks_about_the_largest_batch_that_may_come():
    vlm = VLMWrapper("tiny:qwen2_vl", device="cpu", use_lora=True).freeze_vision_encoder(); pictures = _batch(vlm, True, (160, 210), 4, None, None, 1)["images"]; large = _batch(vlm, True, (320, 420), 1, None, None, 1)["images"][0]
    def sample(*shown, answers="click(12, 4)"):
        seen = [Observation(p, "goal") for p in shown]
        return Sample(Trajectory(Task("toy/click-button", 0), [*(Step(o, Prediction("")) for o in seen[:-1]), Step(seen[-1], Prediction(answers, prompt="Click", images=tuple(o.image for o in seen)))], "success", 1.0, seen[-1]), len(shown) - 1)
    few = [sample(p) for p in pictures]; t = Trainer(vlm, memory_gb=1)
    t.fit(few, 1, 1); first = t.predicted
    t.fit(few, 1, 1); assert t.predicted is first  # asked and answered
    t.fit([*few, sample(large)], 1, 1); assert t.predicted.settings["image_size"] == (320, 420) and t.predicted.peak_bytes > first.peak_bytes
    t.fit([*few, sample(*pictures, large)], 1, 1); assert t.predicted.peak_bytes > 1.2 * first.peak_bytes  # a history
    same, different = Trainer(vlm, memory_gb=1), Trainer(vlm, memory_gb=1); same.fit([few[0]] * 2, 1, 2); different.fit([few[0], few[0], few[1]], 1, 2)
    assert different.predicted.peak_bytes > same.predicted.peak_bytes  # two answers to one question share it; two questions may come as well


def test_a_loaded_model_is_described_as_it_is():
    vlm = VLMWrapper("tiny:qwen2_vl", device="cpu", load_in_4bit=True, torch_dtype="bfloat16", use_lora=True, lora_config={"r": 4}).gradient_checkpointing_enable()
    said = settings_of(vlm)
    assert (said["quantization"], said["torch_dtype"], said["gradient_checkpointing"], said["freeze_vision"], said["lora_config"].r) == ("4bit", "bfloat16", True, False, 4)
    batch = _batch(vlm, True, (160, 210), 2, None, None, 1)
    assert check_memory(vlm, batch, 1).by_category["weights"] < check_memory(VLMWrapper("tiny:qwen2_vl", device="cpu", use_lora=True, lora_config={"r": 4}), batch, 1).by_category["weights"] / 2


@pytest.mark.parametrize("flat, most", [(1, 37), (30, 37), (3000, 5000)])
def test_the_largest_batch_is_found_where_few_samples_hide(monkeypatch, flat, most):
    "Up to `flat` samples something else is the peak; from there on each takes a MiB."
    asked = []
    def once(model, batch_size, **_): asked.append(batch_size); return MemoryReport((100 + max(flat, batch_size)) * 2**20)
    monkeypatch.setattr(memory, "_once", once)
    assert largest_batch("a model", (100 + most + 0.5) / 1024 / 0.94) == most
    assert max(asked) <= 8 * most and len(asked) < 12
