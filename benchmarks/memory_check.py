"""Predicted against measured: the peak of a training step on models of 30 to 48 million parameters, by the CPU allocator's own account.

    python benchmarks/memory_check.py [--families qwen2_vl,llava] [--out benchmarks/results/memory_check.json]

Six families, the settings that people use; everything in one process, each measurement after its prediction. A model has the
family's architecture at a middle size, random weights, and the family's tiny tokenizer. No GPU is needed or used.
"""
import argparse
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from datetime import date
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler reports its start and stop otherwise

import torch
from transformers import AutoModelForImageTextToText
from transformers.utils import logging

from vlm_agent.families import tiny_parts
from vlm_agent.memory import measure_memory, predict_memory

logging.disable_progress_bar(); logging.set_verbosity_error(); warnings.simplefilter("ignore")

FULL = dict(use_lora=False, freeze_vision=False)
SETTINGS = {
    "LoRA, frozen tower, fp32": dict(torch_dtype="float32"),
    "LoRA, frozen tower, bf16": dict(),
    "LoRA, frozen tower, bf16, batch 4": dict(batch_size=4),
    "LoRA, frozen tower, bf16, no checkpointing": dict(gradient_checkpointing=False),
    "LoRA, 4-bit": dict(quantization="4bit"),
    "LoRA, 4-bit, batch 4 on one screenshot": dict(quantization="4bit", batch_size=4, samples_per_screenshot=4),
    "LoRA, 8-bit": dict(quantization="8bit"),
    "LoRA, also on the tower, fp32, batch 4": dict(torch_dtype="float32", freeze_vision=False, lora_config={"vision": True}, batch_size=4),
    "full, fp32": dict(torch_dtype="float32", **FULL),
    "full, bf16, batch 4": dict(batch_size=4, **FULL),
    "full, fp32 weights, bf16 mixed": dict(torch_dtype="float32", mixed_precision="bf16", **FULL),
    "full, bf16, batch 2 in parts, 8-bit Adam": dict(batch_size=2, accumulate=True, optimizer="adamw8bit", **FULL),
    "full, bf16, stepping in the backward pass": dict(step_in_backward=True, **FULL),
}
TEXT = dict(hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4)
VISION = dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=8)


def machine():
    "Cores and processor; with AMX oneDNN takes scratch space of its own."
    said = dict(l.split(":", 1) for l in Path("/proc/cpuinfo").read_text().splitlines() if ":" in l) if Path("/proc/cpuinfo").exists() else {}
    said = {k.strip(): v.strip() for k, v in said.items()}
    return f"{os.cpu_count()} cores, {said.get('model name', platform.machine())}" + (", AMX" if "amx_bf16" in said.get("flags", "") else ", AVX512-BF16" if "avx512_bf16" in said.get("flags", "") else "")


def larger(family):
    "(configuration, processor) of a family at a middle size."
    config, processor = tiny_parts(family)
    text, vision = config.text_config, config.vision_config
    def grow(c, sizes):
        for k, v in sizes.items():
            if hasattr(c, k): setattr(c, k, v)
        if getattr(c, "layer_types", None): c.layer_types = ["full_attention"] * c.num_hidden_layers
    if family == "florence2":
        grow(text, dict(d_model=512, encoder_layers=5, decoder_layers=5, encoder_attention_heads=8, decoder_attention_heads=8, encoder_ffn_dim=2048, decoder_ffn_dim=2048))
        grow(vision, dict(embed_dim=[64, 128, 256, 512], num_heads=[2, 4, 8, 16], num_groups=[2, 4, 8, 16], projection_dim=512))
    else: grow(text, TEXT)
    if hasattr(text, "head_dim"): text.head_dim = 64
    if hasattr(text, "rope_parameters") and "mrope_section" in (text.rope_parameters or {}): text.rope_parameters["mrope_section"] = [8, 12, 12]
    if family == "qwen2_vl": grow(vision, dict(depth=6, embed_dim=256, num_heads=8, hidden_size=512))
    elif family in ("qwen2_5_vl", "qwen3_vl"): grow(vision, dict(depth=6, hidden_size=256, intermediate_size=1024, out_hidden_size=512, num_heads=8))
    elif family != "florence2": grow(vision, VISION)
    if family == "idefics2": grow(config.perceiver_config, dict(hidden_size=512, resampler_n_heads=8, resampler_head_dim=64, num_key_value_heads=4))
    if family == "paligemma": config.projection_dim = vision.projection_dim = 512
    return config, processor


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--families", default="qwen2_vl,qwen3_vl,llava,idefics2,florence2,paligemma")
    p.add_argument("--settings", default="", help="only those that contain this"); p.add_argument("--out", type=Path)
    a = p.parse_args(); rows = []
    for family in a.families.split(","):
        with tempfile.TemporaryDirectory() as folder:
            config, processor = larger(family)
            torch.manual_seed(0); model = AutoModelForImageTextToText.from_config(config)
            model.save_pretrained(folder); processor.save_pretrained(folder); parameters = model.num_parameters(); del model
            for label, keywords in SETTINGS.items():
                if a.settings not in label: continue
                how = dict(image_size=(448, 336), device="cpu", **keywords)
                start = time.process_time(); predicted = predict_memory(folder, **how); seconds = time.process_time() - start
                measured = measure_memory(folder, **how).peak_bytes
                rows.append(dict(family=family, parameters=parameters, setting=label, predicted=predicted.peak_bytes, measured=measured, error=predicted.peak_bytes / measured - 1, at=predicted.peak_at, cpu_seconds=round(seconds, 2)))
                print(f"{family:10} {label:44} {predicted.peak_bytes / 2**20:8.2f} MiB predicted {measured / 2**20:8.2f} measured {rows[-1]['error']:+.3%}  {predicted.peak_at}", flush=True)
    errors = [abs(r["error"]) for r in rows]
    said = dict(configurations=len(rows), families=len({r["family"] for r in rows}), mean_error=sum(errors) / len(errors), worst_error=max(errors))
    print(said)
    if a.out: a.out.write_text(json.dumps(dict(command=f"python benchmarks/memory_check.py {' '.join(sys.argv[1:])}", date=str(date.today()), machine=machine(), torch=torch.__version__, **said, rows=rows), indent=1) + "\n")


if __name__ == "__main__": main()
