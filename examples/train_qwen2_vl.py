"""Train Qwen2-VL to operate a user interface by rejection sampling, and look at what it learned.

    python examples/train_qwen2_vl.py --mode train                       # the embedded tiny base on a task of two steps, two minutes on a CPU
    python examples/train_qwen2_vl.py --mode train --task miniwob/focus-text   # in a real browser
    python examples/train_qwen2_vl.py --mode train --model tiny:qwen2_vl # from random weights: demonstrations first, one button
    python examples/train_qwen2_vl.py --mode train --model Qwen/Qwen2-VL-2B-Instruct --task web:examples/sample_app/tasks/login.yaml   # a GPU
    python examples/train_qwen2_vl.py --mode test                        # shows what the last run learned

Every other flag is a keyword of `train_with_orchestration`; `vlm-agent train --help` lists them.
"""
import argparse
import json
import os
from pathlib import Path

import yaml

CONFIGS = Path(__file__).parent/"configs"


def train(args, flags):
    if args.model.startswith("tiny"): os.environ.setdefault("OMP_NUM_THREADS", "1")  # so small a model is fastest on one thread
    from vlm_agent import cli
    config = CONFIGS/("tiny.yaml" if args.model == "tiny" else "from_scratch.yaml" if args.model.startswith("tiny:") else "qwen2_vl_2b.yaml")
    cli.train(["--config", str(config), "--model", args.model, *(["--task", args.task] if args.task else []), *(["--output-dir", args.output_dir] if args.output_dir else []), *flags])


def last_run(task):
    "The newest finished run, on `task` if one is given."
    runs = [p.parent for p in Path("runs").glob("*/summary.json") if task in (None, json.loads(p.read_text())["task"])]
    if not runs: raise SystemExit(f"no finished run{f' on {task}' if task else ''} under runs/: train one first, or name its folder by --output-dir")
    return max(runs, key=lambda p: (p/"summary.json").stat().st_mtime)


def test(args, flags):
    from vlm_agent import ActionDecoder, ModelPolicy, TaskRunner, VLMWrapper, make_env
    from vlm_agent.core import describe_action
    from vlm_agent.training import HELD_OUT
    from vlm_agent.viewer import draw_action
    run = Path(args.output_dir) if args.output_dir else last_run(args.task)
    if not (run/"checkpoints"/"final").is_dir(): raise ValueError(f"{run} is not the folder of a finished run: expected checkpoints/final in it")
    model = VLMWrapper(str(run/"checkpoints"/"final"))
    config = yaml.safe_load((run/"config.yaml").read_text())
    if not (task := args.task or config["task"]): raise ValueError(f"{run} learned against a server: say by --task what it is to do here")
    env = make_env(task)
    runner = TaskRunner(ModelPolicy(model, ActionDecoder(model.action_format, grid=model.grid), config.get("history") or 0, greedy=True), env, max_steps=config.get("max_steps") or 10)
    folder = run/"predictions"; folder.mkdir(exist_ok=True)
    prompts = config.get("task_prompt"); prompts = prompts if isinstance(prompts, list) else [prompts]
    for i in range(args.episodes):
        t = runner.run(prompts[i % len(prompts)], seed=HELD_OUT + i)
        for j, step in enumerate(t.steps):
            picture = folder/f"{i:02d}-{j}.png"
            draw_action(step.observation.screenshot, step.action).save(picture)
            print(f"{t.goal!r}: the model wrote {step.prediction.text!r}, read as {step.action or step.error}: {describe_action(step.action)}; {t.outcome}; drawn in {picture}")
    env.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=["train", "test"], default="train")
    parser.add_argument("--model", default="tiny", help="'tiny', 'tiny:FAMILY', a Hub name or a folder")
    parser.add_argument("--task", help="another task than the configuration's own")
    parser.add_argument("--output-dir", help="the run's folder")
    parser.add_argument("--episodes", type=int, default=6, help="how many predictions --mode test shows")
    args, flags = parser.parse_known_args()
    if args.mode == "test" and flags: parser.error(f"--mode test takes no {' '.join(flags)}")
    if args.episodes < 1: parser.error(f"--episodes must be at least 1, got {args.episodes}")
    try: {"train": train, "test": test}[args.mode](args, flags)
    except KeyboardInterrupt: raise SystemExit(130)
    except (ValueError, OSError, RuntimeError) as e: raise SystemExit(f"{Path(__file__).name}: {e}")
