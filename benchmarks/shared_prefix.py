"""A round of learning by sampling, act and learn, against what people use: in turns, in one process, in CPU time.

    python benchmarks/shared_prefix.py --size tiny mid --pixels 160x224 448x448 --repeats 5 [--json benchmarks/results/shared_prefix.json]

Everybody has the same weights (random, Qwen2-VL), LoRA (rank 16 on the text's attention), screenshots (new ones each round) and prompts; they say
at most 12 tokens and learn answers of about nine; `--screens` screenshots, k answers to each, half of them learnt, one optimizer step. The tower is frozen.
Contenders:

    ours         VLMWrapper.sample + training_step
    ours, tower  the same with freeze_vision_encoder(dtype="bfloat16")
    ours, bf16   the same with torch_dtype="bfloat16" (adapters stay float32)
    plain        the same as ours with fast=False
    trl          generate + TRL's SFTTrainer, checkpointing off, logits at labels only
    trl, auto    the same, learning under autocast to bfloat16
    trl, bf16    the same with the whole model in bfloat16, acting and learning
    trl default  as it comes: checkpointing on, and on a CPU all logits (in float32 like the others)
    hf           generate + Hugging Face's Trainer

Rivals act by one call of Hugging Face's generate: with num_return_sequences=k, which shows each screenshot to the tower once (the best there is,
"act"), and on k copies of each prompt, as TRL's own online trainers do it ("act on copies").

A trainer's step is its collator, its `training_step`, clipping and the optimizer's step; its data loader is left out, in its favour.
Learning alone takes all k answers and leaves preprocessing out: `naive` is Hugging Face's forward with labels on a batch of them.

`--device cuda --size 2b 7b` builds Qwen2-VL from its published configurations with random weights in bfloat16 and prints trajectories and tokens
a second, the share of the chip's peak that the needed products use (MFU, `--peak` TFLOP/s) and peak memory; preprocessing is left out, "ours" has torch_compile=True. It needs no rivals' packages.
`--rates` does the same on a CPU, at a size that it can bear: in CPU time, in float32, without peak memory, `--peak` being what a large product reaches there.
"""
import argparse
import datetime
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

for name, value in dict(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRL_EXPERIMENTAL_SILENCE="1").items(): os.environ.setdefault(name, value)
warnings.filterwarnings("ignore")

import numpy as np
import torch

if torch.version.cuda is None:  # the PyPI build of torchvision looks for these beside a CPU torch
    OPERATORS = torch.library.Library("torchvision", "DEF")
    for operator in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor", "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"):
        try: OPERATORS.define(operator)
        except RuntimeError: pass

import transformers
from PIL import Image
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

transformers.logging.set_verbosity_error(); transformers.utils.logging.disable_progress_bar()

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
            "{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
PROMPT = ("You are a UI agent. Look at the screenshot and reply with one action. Actions: click(x, y), type(\"text\"), scroll(dx, dy), press(key), done(). "
          "Task: open the settings page and turn on the dark mode option. Step {step} of 10.")
IN_BFLOAT16 = ("ours, tower", "ours, bf16", "trl, auto", "trl, bf16")
TOKENS = 12  # of an answer that is said
MOST_PIXELS = 28 * 28 * 1280  # that the checkpoint's processor leaves of a screenshot
SIZES = {  # text, multimodal positions, vision
    "tiny": (dict(hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, vocab_size=512), [4, 6, 6], dict(depth=4, embed_dim=128, num_heads=4, hidden_size=128)),
    "mid": (dict(hidden_size=384, intermediate_size=2240, num_hidden_layers=8, num_attention_heads=6, num_key_value_heads=1, vocab_size=151936), [8, 12, 12], dict(depth=8, embed_dim=320, num_heads=4, hidden_size=384)),
    "2b": (dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2, vocab_size=151936), [16, 24, 24], dict(depth=32, embed_dim=1280, num_heads=16, hidden_size=1536)),
    "7b": (dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4, vocab_size=152064), [16, 24, 24], dict(depth=32, embed_dim=1280, num_heads=16, hidden_size=3584))}
LORA = dict(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])


def tokenizer(vocab=512):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    t = Tokenizer(models.BPE()); t.decoder = decoders.ByteLevel(); t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False); rng = random.Random(0)
    words = [PROMPT.format(step=i) for i in range(10)] + [f"click({rng.randrange(448)}, {rng.randrange(448)})" for _ in range(300)]
    t.train_from_iterator(words, trainers.BpeTrainer(vocab_size=vocab - len(SPECIAL) - 8, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tok = PreTrainedTokenizerFast(tokenizer_object=t, eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=SPECIAL); tok.chat_template = TEMPLATE
    return tok


def checkpoint(size, folder, dtype=torch.float32, device="cpu"):
    "A folder with a model of this size, random weights."
    from transformers import Qwen2VLImageProcessorPil
    from vlm_agent.families import image_only
    tok = tokenizer(); ids = {t: tok.convert_tokens_to_ids(t) for t in SPECIAL}; text, mrope, vision = SIZES[size]
    config = Qwen2VLConfig(text_config=dict(text, rope_parameters=dict(rope_type="default", mrope_section=mrope, rope_theta=1e6), bos_token_id=0, eos_token_id=ids["<|im_end|>"], pad_token_id=0, tie_word_embeddings=size != "7b"),
                           vision_config=dict(vision, mlp_ratio=4), image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"], vision_start_token_id=ids["<|vision_start|>"],
                           vision_end_token_id=ids["<|vision_end|>"], tie_word_embeddings=size != "7b", dtype=dtype)
    torch.manual_seed(0)
    with torch.device(device): model = Qwen2VLForConditionalGeneration._from_config(config, dtype=dtype)
    model.generation_config.eos_token_id = tok.eos_token_id; model.generation_config.pad_token_id = tok.pad_token_id
    model.save_pretrained(folder)
    image_only(Qwen2VLProcessor)(Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": MOST_PIXELS}), tok, chat_template=TEMPLATE).save_pretrained(folder)


def round_of(seed, screens, k, pixels):
    "[(screenshot, prompt, k answers)]: new screenshots each time."
    rng, out = np.random.default_rng(seed), []
    for i in range(screens):
        a = np.full((*reversed(pixels), 3), 240, np.uint8)
        for _ in range(12):
            y, x, h, w = rng.integers(0, pixels[1] - 20), rng.integers(0, pixels[0] - 20), rng.integers(10, 60), rng.integers(10, 90)
            a[y:y + h, x:x + w] = rng.integers(0, 255, 3)
        out.append((Image.fromarray(a), PROMPT.format(step=i % 10), [f"click({rng.integers(pixels[0])}, {rng.integers(pixels[1])})" for _ in range(k)]))
    return out


class Ours:
    def __init__(self, folder, fast, device="cpu", vision=False, tower=None, dtype="auto"):
        from vlm_agent.wrapper import VLMWrapper, make_optimizer
        self.vlm = VLMWrapper(folder, device=device, torch_dtype=dtype, use_lora=True, lora_config={**LORA, "vision": vision, **({"target_modules": None} if vision else {})}, max_new_tokens=TOKENS, fast=fast, torch_compile=fast and device == "cuda")
        if not vision: self.vlm.freeze_vision_encoder(dtype=tower)
        self.optimizer = make_optimizer("adamw", [p for p in self.vlm.parameters() if p.requires_grad], 1e-4)
    def act(self, tasks, k): return self.vlm.sample([t[0] for t in tasks], [t[1] for t in tasks], k=k, temperature=1.0)
    def learn(self, samples):
        from vlm_agent.wrapper import training_step
        training_step(self.vlm, dict(images=[s[0] for s in samples], prompts=[s[1] for s in samples], labels=[s[2] for s in samples]), self.optimizer)


def conversation(picture, prompt, answer):
    return dict(images=[picture], prompt=[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}], completion=[{"role": "assistant", "content": [{"type": "text", "text": answer}]}])


class Rival:
    "Hugging Face's model and processor, generate for acting."
    def __init__(self, folder, dtype=torch.float32):
        from transformers import AutoProcessor
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=dtype)
        torch.manual_seed(0); self.adapted = lambda: get_peft_model(self.model, LoraConfig(**LORA, task_type="CAUSAL_LM"))
    @torch.no_grad()
    def act(self, tasks, k, copies=False):
        model = self.trainer.model; model.eval()
        if copies: tasks, k = [t for t in tasks for _ in range(k)], 1
        x = self.processor(images=[t[0] for t in tasks], text=[self.processor.apply_chat_template(conversation(*t[:2], "")["prompt"], add_generation_prompt=True) for t in tasks], padding=True, padding_side="left", return_tensors="pt")
        return model.generate(**x, num_return_sequences=k, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=TOKENS, use_cache=True)
    def step(self, batch):
        t = self.trainer; t.model.train(); t.current_gradient_accumulation_steps = 1
        t.training_step(t.model, batch, num_items_in_batch=(batch["labels"] != -100).sum())
        torch.nn.utils.clip_grad_norm_(t.model.parameters(), 1.0); t.optimizer.step(); t.optimizer.zero_grad()
    def arguments(self, **more): return dict(output_dir=tempfile.mkdtemp(), per_device_train_batch_size=8, max_steps=1000, report_to=[], use_cpu=True, learning_rate=1e-4, save_strategy="no", logging_steps=10**6, disable_tqdm=True, remove_unused_columns=False, **more)


class TRL(Rival):
    def __init__(self, folder, best, autocast=False, dtype=torch.float32):
        super().__init__(folder, dtype)
        import trl.trainer.utils
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer
        self.module, self.came, self.best, self.autocast = trl.trainer.utils, trl.trainer.utils._use_triton, best, autocast
        examples = [conversation(p, q, a[0]) for p, q, a in round_of(0, 2, 1, (56, 56))]
        self.trainer = SFTTrainer(model=self.model, args=SFTConfig(**self.arguments(max_length=None, bf16=False, **({"gradient_checkpointing": False} if best else {}))), train_dataset=Dataset.from_list(examples), processing_class=self.processor, peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM"))
        self.trainer.create_optimizer()
    def learn(self, samples):
        if self.best: self.module._use_triton = lambda device: True  # logits at labels only, on a CPU too
        try:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast): self.step(self.trainer.data_collator([conversation(*s) for s in samples]))  # as its `train` would
        finally: self.module._use_triton = self.came


class HF(Rival):
    def __init__(self, folder):
        super().__init__(folder)
        from transformers import Trainer, TrainingArguments
        self.trainer = Trainer(model=self.adapted(), args=TrainingArguments(**self.arguments()), data_collator=self.collate)
        self.trainer.create_optimizer()
    def collate(self, samples):
        asked = [self.processor.apply_chat_template(conversation(*s)["prompt"], add_generation_prompt=True) for s in samples]
        x = self.processor(images=[s[0] for s in samples], text=[q + s[2] + "<|im_end|>" for q, s in zip(asked, samples)], padding=True, padding_side="right", return_tensors="pt")
        answers = [len(self.processor.tokenizer(s[2] + "<|im_end|>").input_ids) for s in samples]; ends = x["attention_mask"].sum(1).tolist()
        labels = torch.full_like(x["input_ids"], -100)
        for i, (n, end) in enumerate(zip(answers, ends)): labels[i, end - n:end] = x["input_ids"][i, end - n:end]
        return {**x, "labels": labels}
    def learn(self, samples): self.step(self.collate(samples))


def naive_step(contender, batch):
    "Hugging Face's own forward with labels, on inputs that are ready."
    contender.vlm.train(); contender.vlm.model(**batch, use_cache=False).loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in contender.vlm.parameters() if p.requires_grad], 1.0); contender.optimizer.step(); contender.optimizer.zero_grad()


def naive_batch(contender, samples):
    answers = [contender.vlm.label_ids(s[2]) for s in samples]
    x = contender.vlm.inputs([s[0] for s in samples], [s[1] for s in samples], answers)[0]; labels = torch.full_like(x["input_ids"], -100)
    for i, a in enumerate(answers): labels[i, -len(a):] = x["input_ids"][i, -len(a):]
    return {**x, "labels": labels}


def seconds(f, *args):
    start = time.process_time(); f(*args)
    return time.process_time() - start


def loops(folder, pixels, screens, k, repeats, only):
    "Seconds of acting and of learning of each contender, in turns."
    made = {"ours": lambda: Ours(folder, True), "ours, tower": lambda: Ours(folder, True, tower="bfloat16"), "ours, bf16": lambda: Ours(folder, True, dtype="bfloat16"), "plain": lambda: Ours(folder, False), "trl": lambda: TRL(folder, True), "trl, auto": lambda: TRL(folder, True, autocast=True), "trl, bf16": lambda: TRL(folder, True, dtype=torch.bfloat16), "trl default": lambda: TRL(folder, False), "hf": lambda: HF(folder)}
    from vlm_agent.wrapper import slow_precision
    if slow_precision(torch.bfloat16): made = {name: make for name, make in made.items() if name not in IN_BFLOAT16}; print("  left out, this processor has no bfloat16:", " | ".join(IN_BFLOAT16))
    there = {name: make() for name, make in made.items() if name in only}; took = {name: {"act": [], "learn": []} for name in there}
    for r in range(repeats + 1):
        for name, c in there.items():
            tasks = round_of(r, screens, k, pixels)
            act = seconds(c.act, tasks, k); learn = seconds(c.learn, [(p, q, a) for p, q, answers in tasks for a in answers[:k // 2 or 1]])
            copies = seconds(c.act, tasks, k, True) if name in ("trl", "trl, bf16") else None
            if r: took[name]["act"].append(act); took[name]["learn"].append(learn)
            if r and copies: took[name].setdefault("act on copies", []).append(copies)
            print(f"  {r} {name:12} act {act:7.3f}  learn {learn:7.3f}" + (f"  act on copies {copies:7.3f}" if copies else ""), flush=True)
    return took


def lessons(folder, pixels, screens, k, repeats):
    "{way: [...]}: a step on all k answers to each screenshot, without preprocessing."
    plain, ours, all_plain, all_ours = Ours(folder, False), Ours(folder, True), Ours(folder, False, vision=True), Ours(folder, True, vision=True)
    took = {}
    for r in range(repeats + 1):
        samples = [(p, q, a) for p, q, answers in round_of(100 + r, screens, k, pixels) for a in answers]
        for c in (plain, all_plain, ours, all_ours): naive_batch(c, samples)  # fills the processor's cache
        def ways():
            x = naive_batch(plain, samples); yield "naive", lambda: naive_step(plain, x)
            yield "logits at labels", lambda: plain.learn(samples)
            yield "shared prefix", lambda: ours.learn(samples)
            yield "shared prefix, features kept", lambda: ours.learn(samples)
            y = naive_batch(all_plain, samples); yield "naive, nothing frozen", lambda: naive_step(all_plain, y)
            yield "shared prefix, nothing frozen", lambda: all_ours.learn(samples)
        for name, way in ways():
            t = seconds(way)
            if r: took.setdefault(name, []).append(t)
            print(f"  {r} {name:32} {t:7.3f}", flush=True)
    return took


def image_tokens(pixels):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
    h, w = smart_resize(pixels[1], pixels[0], 28, 56 * 56, MOST_PIXELS)
    return (h // 28) * (w // 28)


def needed(size, pixels, k, tokens, prompt):
    "FLOPs that one screenshot, a prompt of so many tokens beside it and k answers of so many cannot do without: {tower, text, head}; a product of (m, n) and (n, p) is 2 m n p. A picture's two equal frames are one, causal rows do not meet the keys behind them, and of the prompt the last layer is asked for keys and values only."
    text, _, vision = SIZES[size]; d, n = text["hidden_size"], text["num_hidden_layers"]; e, depth = vision["embed_dim"], vision["depth"]
    image = image_tokens(pixels); patches, length, new = 4 * image, image + prompt, k * tokens
    kv = d // text["num_attention_heads"] * text["num_key_value_heads"]; layer = 2 * d * d + 2 * d * kv + 3 * d * text["intermediate_size"]
    tower = depth * (2 * patches * 12 * e * e + 4 * patches ** 2 * e) + 2 * patches * 588 * e + 2 * image * (16 * e * e + 4 * e * d)
    read, said = 2 * length * ((n - 1) * layer + 2 * d * kv) + (n - 1) * 2 * d * length ** 2, 2 * new * n * layer + n * 4 * d * new * length
    return dict(tower=tower, text=read + said, head=2 * new * d * text["vocab_size"])


def peak_of(device):
    "TFLOP/s of a large product: what a CPU reaches here; of a GPU its data sheet's (bfloat16, dense)."
    if device == "cuda":
        for name, peak in dict(H200=989, H100=989, A100=312).items():
            if name in torch.cuda.get_device_name(): return peak
        sys.exit(f"the peak of {torch.cuda.get_device_name()} is not known here: give --peak, its TFLOP/s in bfloat16")
    a = torch.randn(1024, 1024); a @ a
    return 2 * 1024**3 / min(seconds(torch.mm, a, a) for _ in range(9)) / 1e12


def rates(device, size, pixels, screens, k, repeats, only, peak):
    "Acting, learning with the tower in each step, learning with features kept: wall time on a GPU, CPU time on a CPU."
    gpu, out = device == "cuda", {}
    def timed(f, *args):
        if gpu: torch.cuda.synchronize(); torch.cuda.reset_peak_memory_stats()
        clock = time.perf_counter if gpu else time.process_time; start = clock(); f(*args)
        if gpu: torch.cuda.synchronize()
        return clock() - start, torch.cuda.max_memory_allocated() if gpu else None
    with tempfile.TemporaryDirectory() as folder:
        checkpoint(size, folder, torch.bfloat16 if gpu else torch.float32, device)
        for name in [n for n in ("ours", "plain") if n in only]:
            if gpu: torch.cuda.empty_cache()
            c, times, lengths = Ours(folder, name == "ours", device), {}, {"act": [], "learn": []}
            for r in range(repeats + 2):
                tasks = [(np.asarray(p), q, answers) for p, q, answers in round_of(r, screens, k, pixels)]; samples = [(p, q, a) for p, q, answers in tasks for a in answers]  # arrays, as the runner has them
                naive_batch(c, samples)  # fills the processor's cache
                said = []; took = {"act": timed(lambda: said.extend(p for row in c.act(tasks, k) for p in row))}; c.vlm._features.forget()
                took |= {what: timed(c.learn, samples) for what in ("learn", "learn, features kept")[:1 + (name == "ours")]}  # the plain path keeps none
                if r > 1:
                    for what, t in took.items(): times.setdefault(what, []).append(t)
                    lengths["act"] += [len(p.token_ids) for p in said]; lengths["learn"] += [len(c.vlm.label_ids(s[2])) for s in samples]
            prompt = c.vlm.inputs([tasks[0][0]], [tasks[0][1]])[0]["input_ids"].shape[1] - image_tokens(pixels)
            mean = {what: statistics.mean(n) for what, n in lengths.items()}; acted, f = (needed(size, pixels, k, mean[what], prompt) for what in ("act", "learn"))
            flops = {"act": sum(acted.values()), "learn": f["tower"] + 2 * (f["text"] + f["head"]), "learn, features kept": 2 * (f["text"] + f["head"])}  # LoRA: no gradients of weights
            for what, have in times.items():
                t = statistics.median(s for s, _ in have)
                found = dict(trajectories_per_second=screens * k / t, tokens_per_second=screens * k * mean[what.split(",")[0]] / t, mfu=screens * flops[what] / t / peak / 1e12, **(dict(peak_gib=max(m for _, m in have) / 2**30) if gpu else {}))
                print(f"{size} {pixels[0]}x{pixels[1]} k={k} {name:6} {what:22}" + "".join(f"  {key} {v:.3g}" for key, v in found.items()), flush=True)
                out[f"{name}, {what}"] = dict(seconds=[s for s, _ in have], **found)
            del c
    return out


def machine(device):
    model = next((l.split(":")[1].strip() for l in Path("/proc/cpuinfo").read_text().splitlines() if l.startswith("model name")), platform.processor()) if Path("/proc/cpuinfo").exists() else platform.processor()
    versions = {}
    for name in ("torch", "transformers", "peft", "trl", "accelerate", "torchvision"):
        try: versions[name] = __import__("importlib.metadata", fromlist=["version"]).version(name)
        except Exception: pass
    return dict(date=datetime.date.today().isoformat(), command="python benchmarks/" + " ".join([Path(sys.argv[0]).name, *(f"'{x}'" if " " in x else x for i, x in enumerate(sys.argv[1:]) if "--json" not in (x, sys.argv[i]))]), processor=torch.cuda.get_device_name() if device == "cuda" else model, threads=torch.get_num_threads(), python=platform.python_version(), versions=versions)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--size", nargs="+", default=["tiny"], choices=SIZES); p.add_argument("--pixels", nargs="+", default=["448x448"]); p.add_argument("--k", nargs="+", type=int, default=[4])
    p.add_argument("--screens", type=int, default=4); p.add_argument("--repeats", type=int, default=5); p.add_argument("--only", nargs="+", default=["ours", "ours, tower", "ours, bf16", "plain", "trl", "trl, auto", "trl, bf16", "trl default", "hf"])
    p.add_argument("--device", default="cpu", choices=["cpu", "cuda"]); p.add_argument("--rates", action="store_true", help="what --device cuda does, on a CPU"); p.add_argument("--peak", type=float, help="TFLOP/s of the chip, for the MFU"); p.add_argument("--no-lessons", action="store_true"); p.add_argument("--json")
    a = p.parse_args(); torch.set_num_threads(1)
    for size in a.size:
        for pixels in [tuple(map(int, x.split("x"))) for x in a.pixels]:
            for k in a.k:
                print(f"{size}, {pixels[0]}x{pixels[1]}, {a.screens} screenshots, k={k}", flush=True); found = dict(size=size, pixels=list(pixels), screens=a.screens, k=k, device=a.device, **machine(a.device))
                if a.rates or a.device == "cuda": found["peak"] = a.peak or peak_of(a.device); found["rates"] = rates(a.device, size, pixels, a.screens, k, a.repeats, a.only, found["peak"])
                else:
                    with tempfile.TemporaryDirectory() as folder:
                        checkpoint(size, folder)
                        found["loop"] = loops(folder, pixels, a.screens, k, a.repeats, a.only)
                        if not a.no_lessons: found["lessons"] = lessons(folder, pixels, a.screens, k, a.repeats)
                    tell(found)
                if a.json: keep(a.json, found)


def total(times, act="act"): return statistics.median(x + y for x, y in zip(times[act], times["learn"]))

def tell(found):
    loop = found["loop"]; ours = [o for o in ("ours", "ours, tower", "ours, bf16") if o in loop]
    def beside(t): return ", ".join(f"{t / total(loop[o]):5.1f} x {o}" for o in ours)
    for name, t in loop.items():
        print(f"{name:28} act {statistics.median(t['act']):7.3f}  learn {statistics.median(t['learn']):7.3f}  both {total(t):7.3f} CPU-seconds: {beside(total(t))}")
        if (copies := t.get("act on copies", loop.get("trl", {}).get("act on copies"))) and name.startswith(("trl", "hf")): print(f"{'  on copies':28} act {statistics.median(copies):7.3f}  {'':13}  both {total({**t, 'copies': copies}, 'copies'):7.3f} CPU-seconds: {beside(total({**t, 'copies': copies}, 'copies'))}")
    for name, t in found.get("lessons", {}).items():
        base = found["lessons"]["naive, nothing frozen" if "nothing" in name else "naive"]
        print(f"{name:34} {statistics.median(t):7.3f} CPU-seconds, the naive step takes {statistics.median(base) / statistics.median(t):5.1f} times as long")

def keep(path, found):
    "One entry for each size, resolution, k, device and processor; a newer run replaces an older one."
    path = Path(path); key = lambda f: [f[n] for n in ("size", "pixels", "k", "device", "processor")] + ["rates" in f]
    have = [f for f in (json.loads(path.read_text()) if path.exists() else []) if key(f) != key(found)]
    rounded = json.loads(json.dumps(found), parse_float=lambda x: float(f"{float(x):.4g}"))
    path.parent.mkdir(parents=True, exist_ok=True); path.write_text("[\n" + ",\n".join(json.dumps(f) for f in [*have, rounded]) + "\n]\n")


if __name__ == "__main__": main()
