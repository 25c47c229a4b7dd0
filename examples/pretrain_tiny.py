"""Pre-trains the tiny base: a 1.4M-parameter Qwen3-VL that follows simple instructions on 160x210 screens, in 16 minutes on one CPU core (22 where the processor has no bfloat16).

    python examples/pretrain_tiny.py --seed 0 --output-dir runs/base-0        # the same command again goes on where it stopped

Two stages. First the vision tower alone looks at crowded screens and names what each of its tokens shows. Then the whole model follows goals,
several for each screenshot, while a second loss keeps its attention on the thing that it is about to click.
"""
import argparse
import json
import os
import random
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).with_suffix("")))  # pretrain_tiny/: folder.py, scenes.py, packed.py

import numpy as np
import torch

from folder import GRID, REPLY, build_image_processor, build_model, build_tokenizer, save
from packed import PRECISION, Teacher, products
from scenes import EASY, MIX, as_seen, crowd, scene

TASKS = ("colour", "text", "shape", "single")


def learning_rate(step, steps, decay, warm=50):
    "The share of the full rate: a short rise, a plateau, and over the last `decay` of the steps a straight way down to 1 %."
    return min(1, (step + 1)/warm) * min(1, (1 - step/steps)/decay + 0.01)


class Muon(torch.optim.Optimizer):
    "torch.optim.Muon with the matrices of one shape turned together: the same numbers, in two thirds of its time on one core."
    def __init__(self, params, lr, momentum=0.95, weight_decay=0.01): super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for g in self.param_groups:
            alike = {}
            for p in g["params"]:
                if p.grad is not None: alike.setdefault(p.shape, []).append(p)
            for (rows, cols), ps in alike.items():
                held = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in ps]
                for p, m in zip(ps, held): m.lerp_(p.grad, 1 - g["momentum"])
                turned = torch.stack([p.grad.lerp(m, g["momentum"]) for p, m in zip(ps, held)]).to(PRECISION)
                if rows > cols: turned = turned.mT
                turned = turned/turned.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
                for _ in range(5):  # Newton-Schulz: towards the nearest orthogonal matrix (coefficients of Keller Jordan's Muon)
                    gram = turned @ turned.mT
                    turned = torch.baddbmm(turned, torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315), turned, beta=3.4445)
                if rows > cols: turned = turned.mT
                for p, t in zip(ps, turned): p.mul_(1 - g["lr"] * g["weight_decay"]).add_(t, alpha=-g["lr"] * max(1, rows/cols)**0.5)


class Optimizer:
    "Muon for the matrices inside the layers, AdamW for everything else; the shares of their rates move together."
    def __init__(self, teacher, muon=0.02, adamw=2e-3):
        inside = [p for n, p in teacher.named_parameters() if p.ndim == 2 and "embed" not in n and n.startswith("model.")]
        chosen = {id(p) for p in inside}
        rest = [p for p in teacher.parameters() if id(p) not in chosen]
        self.both = [torch.optim.AdamW(rest, lr=adamw, betas=(0.9, 0.95), weight_decay=0.0)]
        if muon: self.both.append(Muon(inside, lr=muon))
        else: self.both[0].add_param_group(dict(params=inside, lr=adamw))
        for o in self.both:
            for g in o.param_groups: g["full"] = g["lr"]

    def step(self, loss, share):
        for o in self.both: o.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for o in self.both for g in o.param_groups for p in g["params"] if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for o in self.both:
            for g in o.param_groups: g["lr"] = g["full"] * share
            o.step()


@torch.no_grad()
def answers(teacher, images, goals, max_new_tokens=12):
    "What the model says, greedily, by stock `generate`."
    model, tok, text = teacher.model, teacher.tok, teacher.model.model.language_model
    text.config._attn_implementation = "sdpa"
    prefix = "".join(tok.convert_ids_to_tokens(teacher.prefix_ids.tolist()))
    said = []
    for i in range(0, len(images), 64):
        ids = tok([prefix + g + REPLY for g in goals[i:i + 64]], padding=True, return_tensors="pt", add_special_tokens=False)
        pixels = teacher.processor(images=images[i:i + 64], return_tensors="pt")
        out = model.generate(**ids, **pixels, mm_token_type_ids=(ids.input_ids == model.config.image_token_id).long(), do_sample=False, max_new_tokens=max_new_tokens)
        said += tok.batch_decode(out[:, ids.input_ids.shape[1]:], skip_special_tokens=True)
    text.config._attn_implementation = "watched"
    return said


def reachable(goal):
    "Some answer hits it: coordinates are said on the centres of bins, and the inner part of a small triangle can lie between two of them."
    x, y, w, h = goal.box
    return (x - GRID/2)//GRID < (x + w - GRID/2)//GRID and (y - GRID/2)//GRID < (y + h - GRID/2)//GRID


def held_out(seed, n):
    "{task: [(image, goal)]}, scenes that training never draws."
    rng, out = random.Random(seed), {}
    for task in TASKS:
        out[task] = []
        while len(out[task]) < n:
            s = scene(rng, task, strange=0.0, alike=0.0); fit = [g for g in s.goals if g.task == task and reachable(g)]
            if fit: out[task].append((s.image, rng.choice(fit)))
    return out


def hits(goal, answer):
    "The answer clicks inside the goal's box."
    from vlm_agent.decoder import ActionDecoder
    try: a = ActionDecoder("text").decode(answer)
    except ValueError: return False
    if goal.typed is not None: return a == {"type": "type", "text": goal.typed}
    x, y, w, h = goal.box
    return a["type"] == "click" and x <= a["x"] <= x + w and y <= a["y"] <= y + h


def success(teacher, scenes):
    return {task: sum(hits(g, a) for (_, g), a in zip(rows, answers(teacher, [im for im, _ in rows], [g.text for _, g in rows])))/len(rows) for task, rows in scenes.items()}


def questions(teacher, rng, s, plain, goals=5, tokens=90):
    "What is asked about one screenshot in one step: goals, and captions up to a length that most goals come to, for the rows of a batch are as long as its longest."
    asked = [teacher.ask(rng, g, rng.random() > plain) for g in rng.sample(s.goals, min(goals, len(s.goals)))]
    for q in (teacher.caption(rng, s) for _ in range(4)):
        if q and sum(len(a.asked) + len(a.answer) for a in [*asked, q]) <= tokens: asked.append(q)
    return asked


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--output-dir", type=Path, help="default: runs/base-SEED")
    p.add_argument("--vision-steps", type=int, default=2300, help="of stage 1, 12 crowded screens each")
    p.add_argument("--steps", type=int, default=2200, help="of stage 2, 8 screens each")
    p.add_argument("--crowds", type=int, default=3, help="crowded screens beside them, for the tower alone")
    p.add_argument("--decay", type=float, default=0.9, help="share of stage 2 in which the learning rates fall")
    p.add_argument("--easy", type=int, default=320, help="first steps of stage 2, with mostly colours and shapes")
    p.add_argument("--alike", type=float, default=0.5, help="share of screens on which things are easily confused: shapes in two colours, words of one length")
    p.add_argument("--plain", type=float, default=0.6, help="share of answers that do not name the thing first")
    p.add_argument("--ground", type=float, default=1.0, help="weight of the grounding loss; 0: none")
    p.add_argument("--theta", type=float, default=10.0, help="rope_theta of the text model")
    p.add_argument("--muon", type=float, default=0.02, help="its learning rate; 0: AdamW everywhere")
    p.add_argument("--evaluate-every", type=int, default=600)
    p.add_argument("--save-every", type=int, default=100)
    p.add_argument("--scenes", type=int, default=512, help="held-out scenes of each task at the end")
    a = p.parse_args()
    torch.set_num_threads(1)
    a.output_dir = a.output_dir or Path(f"runs/base-{a.seed}")
    recipe = {k: v for k, v in vars(a).items() if k not in ("output_dir", "evaluate_every", "save_every", "scenes")}
    a.output_dir.mkdir(parents=True, exist_ok=True)
    tok = build_tokenizer()
    teacher = Teacher(build_model(tok, a.seed, theta=a.theta), tok, ground=a.ground)
    teacher.processor, teacher.model.model.language_model.config._attn_implementation = build_image_processor(), "watched"
    optimizer, rng, done, spent = Optimizer(teacher, a.muon), random.Random(a.seed + 1), 0, 0.0
    log, kept = a.output_dir/"log.jsonl", a.output_dir/"state.pt"
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        if state.get("recipe") != recipe: raise SystemExit(f"{kept} was begun with {state.get('recipe')}, now it is {recipe}: take another --output-dir, or the same arguments")
        teacher.load_state_dict(state["teacher"]); done, spent = state["done"], state["spent"]
        for o, s in zip(optimizer.both, state["optimizers"]): o.load_state_dict(s)
        rng.setstate((state["rng"][0], tuple(state["rng"][1]), state["rng"][2]))
        lines = [l for l in log.read_text().splitlines() if json.loads(l)["step"] <= done]; log.write_text("".join(l + "\n" for l in lines))
    else: log.write_text("")
    began, recent, early = time.process_time() - spent, [], held_out(10_000_019, 128)

    def note(**what):
        line = json.dumps(dict(step=done, cpu_minutes=round(spent/60, 3), **what)); print(line, flush=True)
        with log.open("a") as f: f.write(line + "\n")

    total = a.vision_steps + a.steps
    while done < total:
        if done < a.vision_steps:
            stage, share = "vision", min(1, (done + 1)/50)
            scenes = [crowd(rng) for _ in range(12)]
            with products(): loss = teacher.named_cells(teacher.look(np.stack([as_seen(s.image) for s in scenes]))[0], scenes)
            parts = dict(dense=loss.item())
        else:
            at = done - a.vision_steps
            stage, share = "goals", learning_rate(at, a.steps, a.decay)
            scenes = [scene(rng, mix=EASY if at < a.easy else MIX, alike=a.alike) for _ in range(8)]
            loss, parts = teacher(scenes, [questions(teacher, rng, s, a.plain) for s in scenes], [crowd(rng) for _ in range(a.crowds)])
        optimizer.step(loss, share)
        recent.append(parts); done += 1; spent = time.process_time() - began
        if done % 100 == 0: note(stage=stage, **{k: round(float(np.mean([r[k] for r in recent if k in r])), 4) for k in parts}); recent = []
        if done % a.save_every == 0 or done == total:
            paused = time.process_time()
            if stage == "goals" and done % a.evaluate_every == 0 and done < total: note(success=success(teacher, early))
            aside = kept.with_suffix(".tmp")
            torch.save(dict(teacher=teacher.state_dict(), optimizers=[o.state_dict() for o in optimizer.both], rng=rng.getstate(), done=done, spent=spent, recipe=recipe), aside); aside.replace(kept)
            began += time.process_time() - paused  # watching is not training
    save(teacher.model, a.output_dir/"base")
    note(final=success(teacher, held_out(20_000_003, a.scenes)), scenes=a.scenes, precision=str(PRECISION).removeprefix("torch."), arguments={k: v for k, v in vars(a).items() if k != "output_dir"})


if __name__ == "__main__": main()
