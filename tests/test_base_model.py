"""The pre-trained base: the Hub's own layout, stock classes, the dialect, what it can do, and how it was made."""
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from vlm_agent.decoder import ActionDecoder
from vlm_agent.environment import make_toy
from vlm_agent.evaluation import evaluate
from vlm_agent.runner import ModelPolicy, TaskRunner
from vlm_agent.wrapper import VLMWrapper

ROOT = Path(__file__).parent.parent
BASE = ROOT/"vlm_agent"/"assets"/"tiny"
sys.path[:0] = [str(ROOT/"examples"), str(ROOT/"examples"/"pretrain_tiny")]


@pytest.fixture(scope="module")
def stock(): return AutoModelForImageTextToText.from_pretrained(BASE).eval(), AutoProcessor.from_pretrained(BASE)

@pytest.fixture(scope="module")
def wrapped(): return VLMWrapper(str(BASE))

@pytest.fixture(scope="module")
def toys():
    "(screenshot, goal, environment) of a few episodes of the tasks that the base was made for."
    out = []
    for spec in ("toy/click-button", "toy/click-colour", "toy/click-named-button", "toy/click-shape"):
        for seed in range(6):
            env = make_toy(spec); seen, _ = env.reset(seed=10_000 + seed); out.append((seen["screenshot"], seen["goal"], env))
    return out


def test_the_folder_is_small_and_holds_no_pickle():
    files = {p.name: p.stat().st_size for p in BASE.iterdir()}
    assert sum(files.values()) <= 4_000_000, files
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json", "chat_template.jinja", "README.md"} == set(files)
    assert {t.dtype for t in load_file(BASE/"model.safetensors").values()} == {torch.bfloat16}


def test_config_names_the_dialect(stock):
    assert stock[0].config.vlm_agent["action_format"] == "text" and stock[0].config.vlm_agent["grid"] == 8
    assert stock[0].config.model_type == "qwen3_vl" and 1e6 < stock[0].num_parameters() < 2e6


def test_nothing_is_unknown_and_nothing_is_lost():
    tok, rng = AutoTokenizer.from_pretrained(BASE), random.Random(0)
    assert tok.is_fast
    alphabet = "abcXYZ 0123456789\n\t.,:;!?\"'()[]{}<>|/\\é日🙂#&"
    for _ in range(300):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randint(0, 40)))
        assert tok.decode(tok(text).input_ids) == text
    for text, n in (("Submit", 1), ("Smoothie", 8), ("click(100, 92)", 5), ("<|im_start|>user\n", 1)): assert len(tok(text).input_ids) == n
    for centre in range(4, 1280, 8): assert len(tok(str(centre)).input_ids) == 1


def test_the_processor_keeps_letters_sharp(stock):
    "160x210 becomes 160x208 by leaving out two rows: every row that the model sees is a row of the screenshot."
    shot = np.random.default_rng(0).integers(0, 256, (210, 160, 3), dtype=np.uint8)
    out = stock[1].image_processor(images=[shot], return_tensors="pt")
    assert out["image_grid_thw"].tolist() == [[1, 13, 10]]
    seen = ((out["pixel_values"].numpy().reshape(13, 10, 3, 16, 16).transpose(0, 3, 1, 4, 2).reshape(208, 160, 3) + 1) * 127.5).round().astype(np.uint8)
    rows = {r.tobytes(): i for i, r in enumerate(shot)}
    kept = [rows[r.tobytes()] for r in seen]
    assert kept == sorted(kept) and len(set(kept)) == 208


def test_stock_generate_says_what_the_wrapper_says(stock, wrapped, toys):
    model, processor = stock
    for shot, goal, _ in toys[::3]:
        inputs = processor.apply_chat_template([{"role": "user", "content": [{"type": "image", "image": Image.fromarray(shot)}, {"type": "text", "text": goal}]}], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True)
        out = model.generate(**inputs, max_new_tokens=32, do_sample=False)
        said = processor.decode(out[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
        assert said == wrapped.sample([shot], [goal], greedy=True)[0][0].text


def test_answers_are_clicks_on_bin_centres_in_pixels_of_the_screenshot(wrapped, toys):
    decoder = ActionDecoder("text", grid=8)
    for (shot, _, _), (p,) in zip(toys, wrapped.sample([t[0] for t in toys], [t[1] for t in toys], greedy=True)):
        a = decoder.decode(p.text, size=(160, 210), model_size=p.model_size)
        assert a["type"] == "click" and a["x"] % 8 == 4 and a["y"] % 8 == 4
        assert len(p.token_ids) <= 12


def test_several_samples_of_one_prompt(wrapped, toys):
    shot, goal, _ = toys[0]
    (said,) = wrapped.sample([shot], [goal], k=8, seeds=[list(range(8))], temperature=1.0)
    assert len(said) == 8 and sum(p.text.endswith(")") for p in said) >= 6


@pytest.mark.parametrize("spec, least", [("toy/click-button", 0.95), ("toy/click-colour", 0.95), ("toy/click-shape", 0.9), ("toy/click-named-button", 0.85)])
def test_it_follows_instructions(wrapped, spec, least):
    found = evaluate(TaskRunner(ModelPolicy(wrapped, greedy=True), [make_toy(spec) for _ in range(32)], max_steps=1), range(10_000, 10_064))
    assert found.success >= least, str(found)


def test_the_card_tells_the_measured_figures():
    card, log = (BASE/"README.md").read_text(), [json.loads(l) for l in (ROOT/"examples"/"pretrain_tiny"/"seed_0.jsonl").read_text().splitlines()]
    final = next(l["final"] for l in log if "final" in l)
    for task, share in final.items(): assert f"{share:.1%}".replace("%", " %") in card, f"{task}: {share:.1%} is not in the card"


def test_every_held_out_goal_can_be_hit():
    "Coordinates are said on the centres of bins: a target between two of them would be lost whatever is said."
    from pretrain_tiny import held_out, hits
    from folder import GRID
    goals = [g for rows in held_out(10_000_019, 96).values() for _, g in rows]
    centres = [(x, y) for x in range(GRID//2, 160, GRID) for y in range(GRID//2, 210, GRID)]
    assert [g for g in goals if not any(hits(g, f"click({x}, {y})") for x, y in centres)] == []


def test_things_that_look_alike_are_for_training_only(monkeypatch):
    "Half of the screens are easily confused, the held-out ones are what they were."
    import pretrain_tiny as recipe
    from folder import LABELS
    from scenes import scene
    rng, asked = random.Random(0), []
    def looks(kind, alike): return [scene(rng, kind, strange=0.0, alike=alike).things for _ in range(60)]
    def colours(things): return {t.colour for t in things}
    assert all(len(colours(things)) <= 2 for things in looks("shape", 1.0)) and any(len(colours(things)) > 2 for things in looks("shape", 0.0))
    def spread(things): n = [len(t.word) for t in things if t.word in LABELS]; return max(n) - min(n)
    assert max(map(spread, looks("text", 1.0))) <= 3 < max(map(spread, looks("text", 0.0)))
    def recorded(*args, **how): asked.append(how); return scene(*args, **how)
    monkeypatch.setattr(recipe, "scene", recorded); recipe.held_out(0, 2)
    assert asked and all(how["alike"] == 0 for how in asked)


def test_muon_by_shapes_takes_the_steps_of_torchs():
    from pretrain_tiny import Muon
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((128, 128), (384, 128), (128, 128), (128, 384))]; theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    a, b = Muon(ours, lr=0.02), torch.optim.Muon(theirs, lr=0.02, momentum=0.95, weight_decay=0.01)
    for _ in range(3):
        for p, q in zip(ours, theirs): p.grad = torch.randn_like(p); q.grad = p.grad.clone()
        a.step(); b.step()
    for p, q in zip(ours, theirs): torch.testing.assert_close(p, q, rtol=0, atol=1e-3)  # its products are in bfloat16, a step is about 0.02


def test_packed_questions_get_the_logits_of_stock(stock):
    "Pre-training's one pass for all questions of a screenshot equals a pass for each of them."
    import pretrain_tiny as recipe
    from folder import REPLY, build_tokenizer
    from packed import N_PREFIX, Teacher
    from scenes import as_seen, scene
    model, processor = stock
    teacher, rng = Teacher(model, build_tokenizer()), random.Random(0)
    scenes = [scene(rng, kind) for kind in ("text", "typing")]
    asked = [recipe.questions(teacher, rng, s, 0.5, goals=4) for s in scenes]
    with torch.no_grad():
        ids, mask, positions, _, _ = teacher.pack(asked)
        seen, shortcut = teacher.look(np.stack([as_seen(s.image) for s in scenes]))
        E = teacher.embed; prefix = E(teacher.prefix_ids).expand(2, -1, -1)
        x = torch.cat([prefix[:, :2], seen, prefix[:, -1:], E(ids)], 1)
        pictures = torch.zeros(x.shape[:2], dtype=torch.bool); pictures[:, 2:N_PREFIX - 1] = True
        h = model.model.language_model(inputs_embeds=x, attention_mask=mask, position_ids=positions, use_cache=False, visual_pos_masks=pictures, deepstack_visual_embeds=[shortcut]).last_hidden_state[:, N_PREFIX:]
        for b, s in enumerate(scenes):
            at = 0
            for q in asked[b]:
                one = torch.tensor([teacher.prefix_ids.tolist() + q.asked + q.answer])
                logits = model(input_ids=one, attention_mask=torch.ones_like(one), mm_token_type_ids=(one == model.config.image_token_id).long(), **processor.image_processor(images=[s.image], return_tensors="pt")).logits[0, N_PREFIX:]
                n = len(q.asked + q.answer)
                assert (h[b, at:at + n] @ E.weight.T - logits).abs().max() < 1e-3
                at += n


def test_captions_fill_a_row_and_crowds_teach_the_tower_alone():
    import pretrain_tiny as recipe
    from folder import build_model, build_tokenizer
    from packed import Teacher
    from scenes import crowd, scene
    tok, rng = build_tokenizer(), random.Random(0)
    teacher = Teacher(build_model(tok, 0), tok); teacher.model.model.language_model.config._attn_implementation = "watched"
    scenes = [scene(rng, kind) for kind in ("colour", "text", "single", "window")]
    asked = [recipe.questions(teacher, rng, s, 0.5) for s in scenes]
    for s, qs in zip(scenes, asked):
        lengths = [len(q.asked) + len(q.answer) for q in qs]
        assert len(qs) > min(5, len(s.goals)) and (sum(lengths) <= 90 or len(qs) <= 5)  # all goals and what there is room for
    alone, beside = (teacher(scenes, asked, crowds)[1] for crowds in ([], [crowd(rng) for _ in range(3)]))
    for part in ("said", "placed", "ground"): assert beside[part] == pytest.approx(alone[part], rel=0.02)  # in bfloat16
    assert abs(beside["dense"] - alone["dense"]) > 0.01


def test_no_scene_goes_out_of_its_screen_and_every_goal_is_on_it():
    from scenes import MIX, scene
    rng = random.Random(1)
    for kind in MIX:
        for _ in range(20):
            s = scene(rng, kind)
            assert s.image.shape == (210, 160, 3) and s.image.dtype == np.uint8 and s.goals
            for g in s.goals:
                if g.box is None: assert g.typed and g.typed in g.text; continue
                x, y, w, h = g.box
                assert 0 <= x and x + w < 160 and 0 <= y and y + h < 210 and w > 4 and h > 4


@pytest.mark.slow
def test_pre_training_killed_and_started_again_ends_where_it_would_have(tmp_path):
    def command(name): return [sys.executable, str(ROOT/"examples"/"pretrain_tiny.py"), "--output-dir", str(tmp_path/name), "--vision-steps", "6", "--steps", "6", "--save-every", "4", "--scenes", "4"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command("straight"), check=True, capture_output=True, env=env)
    p = subprocess.Popen(command("broken"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    while not (tmp_path/"broken"/"state.pt").exists(): assert p.poll() is None; time.sleep(0.02)
    p.send_signal(signal.SIGKILL); p.wait()
    subprocess.run(command("broken"), check=True, capture_output=True, env=env)
    a, b = (load_file(tmp_path/n/"base"/"model.safetensors") for n in ("straight", "broken"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    steps = [[json.loads(l)["step"] for l in (tmp_path/n/"log.jsonl").read_text().splitlines()] for n in ("straight", "broken")]
    assert steps[0] == steps[1]
    other = subprocess.run([*command("broken"), "--seed", "1"], capture_output=True, text=True, env=env)
    assert other.returncode == 1 and "take another --output-dir" in other.stderr
