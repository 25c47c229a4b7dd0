"""What notebook 04 tells badly: unusual adapters, checkpoints that were tampered with, several threads, and arguments that cannot be meant."""
import copy
import gc
import json
import threading

import numpy as np
import peft
import pytest
import torch

from vlm_agent.wrapper import VLMWrapper, make_optimizer, training_step

A = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
BIG = np.zeros((256, 256, 3), np.uint8)
GOOD = dict(images=[A], prompts=["go"], labels=["click(4, 4)"])


def loss(vlm):
    with torch.no_grad(): return vlm([A], ["go"], ["click(1, 2)"])["loss"].item()


def fast_and_plain(vlm):
    out = []
    for vlm.fast in (True, False): out.append(loss(vlm))
    vlm.fast = True
    return out


def stirred(vlm):
    "With adapters that do something."
    torch.manual_seed(0)
    with torch.no_grad():
        for p in vlm.model.parameters():
            if p.requires_grad: p.add_(0.05 * torch.randn_like(p))
    return vlm


def saved(vlm, folder, **how): vlm.save_pretrained(folder, **how); return str(folder)


# What is kept of pictures

def test_features_of_a_tower_that_a_fused_optimizer_changed_are_not_used():
    vlm = VLMWrapper("tiny"); loss(vlm)
    optimizer = torch.optim.AdamW(vlm.model.parameters(), lr=1e-2, fused=True)
    x, *_ = vlm.inputs([A], ["go"], [vlm.label_ids("click(4, 4)")])
    for _ in range(3): vlm.model(**x, labels=x["input_ids"]).loss.backward(); optimizer.step(); optimizer.zero_grad()
    vlm.freeze_vision_encoder()
    fast, plain = fast_and_plain(vlm)
    assert fast == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize("change", [lambda ip: setattr(ip, "max_pixels", 4096), lambda ip: setattr(ip, "size", {"shortest_edge": 1024, "longest_edge": 4096})])
def test_settings_that_only_the_processor_understands_are_left_to_it(change):
    vlm = VLMWrapper("tiny:qwen2_vl"); change(vlm.processor.image_processor)
    for vlm.fast in (True, False): assert vlm.sample([BIG], ["go"], greedy=True, max_new_tokens=1)[0][0].model_size == (64, 64)


def test_prompts_take_a_new_template():
    vlm = VLMWrapper("tiny:llava"); loss(vlm)
    vlm.processor.chat_template = vlm.processor.chat_template.replace("USER", "HUMAN")
    kept = loss(vlm); vlm._asked.clear()
    assert kept == loss(vlm)


# Adapters

@pytest.mark.parametrize("numbers", [0, [0, 1]])
def test_layers_to_transform(tmp_path, numbers):
    vlm = VLMWrapper("tiny", use_lora=True, lora_config={"target_modules": ["q_proj"], "layers_to_transform": numbers})
    adapted = {n.split(".layers.")[1][0] for n, p in vlm.model.named_parameters() if p.requires_grad}
    assert adapted == set(map(str, np.atleast_1d(numbers)))
    assert loss(VLMWrapper(saved(stirred(vlm), tmp_path))) == pytest.approx(loss(vlm), abs=1e-6)


@pytest.mark.parametrize("config", [peft.LoHaConfig(target_modules=["q_proj", "v_proj"]), peft.LoKrConfig(target_modules=["q_proj"]), peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]), peft.LNTuningConfig(target_modules=["norm"])], ids=lambda c: type(c).__name__)
def test_other_kinds_of_adapters(config):
    vlm = stirred(VLMWrapper("tiny", use_lora=True, lora_config=config))
    fast, plain = fast_and_plain(vlm)
    assert fast == pytest.approx(plain, abs=1e-4)
    said = [vlm.sample([A], ["go"], greedy=True)[0][0].token_ids for vlm.fast in (True, False)]
    assert said[0] == said[1]


@pytest.mark.parametrize("family, module", [("llava", "multi_modal_projector"), ("qwen2_vl", "merger")])
def test_a_bridge_that_is_trained_whole(family, module):
    vlm = stirred(VLMWrapper(f"tiny:{family}", use_lora=True, lora_config={"modules_to_save": [module]}))
    fast, plain = fast_and_plain(vlm)
    assert fast == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize("config", [{"lora_bias": True, "target_modules": ["q_proj"]}, {"target_modules": r".*patch_embed\.proj"}])
@pytest.mark.filterwarnings("ignore:this CPU has no instructions")
def test_adapters_with_a_bias_or_on_a_convolution_in_bfloat16(config):
    vlm = VLMWrapper("tiny:qwen2_vl", torch_dtype="bfloat16", use_lora=True, lora_config=config)
    vlm(**GOOD)["loss"].backward()
    assert all(p.grad is not None for n, p in vlm.model.named_parameters() if "lora_B" in n)


@pytest.mark.parametrize("config, says", [(peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"), "changes the prompt"), ({"vision": True, "target_modules": "q_proj"}, "is a pattern")])
def test_adapters_that_cannot_be_are_refused(config, says):
    with pytest.raises(ValueError, match=says): VLMWrapper("tiny", use_lora=True, lora_config=config)


# Saving and loading

@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings")
@pytest.mark.parametrize("targets", [r".*(lm_head|q_proj)", r".*(embed_tokens|q_proj)"])
def test_merging_an_adapter_of_a_matrix_that_is_head_and_embedding(tmp_path, targets):
    vlm = stirred(VLMWrapper("tiny", use_lora=True, lora_config={"target_modules": targets}))
    assert loss(VLMWrapper(saved(vlm, tmp_path, merge=True))) == pytest.approx(loss(vlm), abs=1e-4)


@pytest.mark.filterwarnings("ignore:this CPU has no instructions")
def test_a_frozen_tower_in_bfloat16_leaves_the_text_what_it_is(tmp_path):
    vlm = VLMWrapper("tiny:qwen2_vl"); vlm.freeze_vision_encoder(dtype="bfloat16")
    again = VLMWrapper(saved(vlm, tmp_path))
    assert again.dtype == torch.float32
    assert torch.equal(again.model.get_input_embeddings().weight, vlm.model.get_input_embeddings().weight)


def test_an_adapter_brings_its_processor(tmp_path):
    vlm = VLMWrapper("tiny:qwen2_vl", use_lora=True)
    size = copy.deepcopy(vlm.processor.image_processor.size); size["longest_edge"] = 4096; vlm.processor.image_processor.size = size
    assert VLMWrapper(saved(vlm, tmp_path)).sample([BIG], ["go"], greedy=True, max_new_tokens=1)[0][0].model_size == (64, 64)


def test_an_adapter_around_a_model_finds_its_base(tmp_path):
    base = VLMWrapper(saved(VLMWrapper("tiny:llava"), tmp_path/"base model"), use_lora=True)
    vlm = stirred(VLMWrapper.around(base.model, base.processor, "my model"))
    assert loss(VLMWrapper(saved(vlm, tmp_path/"adapter"))) == pytest.approx(loss(vlm), abs=1e-6)


def test_an_adapter_of_another_name_is_one_folder_below(tmp_path):
    vlm = VLMWrapper("tiny", use_lora=True)
    vlm.model.add_adapter("b", peft.LoraConfig(target_modules=["q_proj"])); vlm.model.set_adapter("b"); stirred(vlm)
    with pytest.warns(UserWarning, match="opens 'b'"): vlm.save_pretrained(tmp_path)
    assert loss(VLMWrapper(str(tmp_path/"b"))) == pytest.approx(loss(vlm), abs=1e-6)


def unsafe(folder):
    from safetensors.torch import load_file
    torch.save(load_file(folder/"adapter_model.safetensors"), folder/"adapter_model.bin"); (folder/"adapter_model.safetensors").unlink()

def rewrite(**new):
    def change(folder): said = folder/"adapter_config.json"; said.write_text(json.dumps({**json.loads(said.read_text()), **new}))
    return change

def cut(folder): w = folder/"adapter_model.safetensors"; w.write_bytes(w.read_bytes()[:-1000])

def renamed(folder):
    from safetensors.torch import load_file, save_file
    w = folder/"adapter_model.safetensors"; save_file({k.replace("q_proj", "x_proj"): v for k, v in load_file(w).items()}, w)

@pytest.mark.parametrize("tamper, says", [(unsafe, "never unpickled"), (rewrite(base_model_name_or_path=None), "does not name the model"), (cut, "cannot be read"), (renamed, "is no adapter for")])
def test_adapters_that_are_not_whole_are_refused(tmp_path, tamper, says):
    VLMWrapper("tiny", use_lora=True).save_pretrained(tmp_path); tamper(tmp_path)
    with pytest.raises((ValueError, OSError), match=says): VLMWrapper(str(tmp_path))


def test_a_copy_outlives_its_original(tmp_path):
    vlm = VLMWrapper("tiny:qwen2_vl", use_lora=True); other = copy.deepcopy(vlm)
    del vlm; gc.collect()
    assert loss(VLMWrapper(saved(other, tmp_path))) == pytest.approx(loss(other), abs=1e-6)


# Use

def test_threads_take_turns():
    vlm, out = VLMWrapper("tiny"), []
    right = vlm.sample([A], ["go"], greedy=True), loss(vlm)
    threads = [threading.Thread(target=lambda: out.append((vlm.sample([A], ["go"], greedy=True), loss(vlm)))) for _ in range(6)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert out == [right] * 6


def test_a_failed_step_leaves_no_gradients():
    norms = []
    for fails in (False, True):
        vlm = VLMWrapper("tiny"); optimizer = make_optimizer("adamw", list(vlm.model.parameters()))
        if fails:
            with pytest.raises(ValueError, match="image_pad"): training_step(vlm, [dict(GOOD, prompts=["other"]), dict(GOOD, prompts=["<|image_pad|>"])], optimizer)
        norms.append(training_step(vlm, GOOD, optimizer)["grad_norm"])
    assert norms[0] == norms[1]


def test_half_a_character_in_a_goal_is_read(): assert VLMWrapper("tiny").sample([A], ["Click \ud83d."], greedy=True)[0][0].text


@pytest.mark.parametrize("call, says", [
    (lambda v: v([A], ["go"], ["a"], weights=[1.0, 2.0]), "a weight for each of 1"),
    (lambda v: v([A], ["go"], ["a<|image_pad|>b"]), "stands for a picture"),
    (lambda v: v([[]], ["go"], ["a<|video_pad|>b"]), "stands for a picture"),
    (lambda v: v.sample([A], ["go"], temperature=float("nan")), "finite"),
    (lambda v: v.sample([A, A], ["go", "on"], k=2, seeds=[[1, 2, 3], [4]]), "2 seeds for each"),
    (lambda v: v.sample([A], ["go"], k=0), "k must be"),
    (lambda v: VLMWrapper("tiny", max_new_tokens=0), "max_new_tokens must be"),
    (lambda v: VLMWrapper("tiny", max_new_tokens="12"), "max_new_tokens must be")])
def test_arguments_that_cannot_be_meant_are_refused(call, says):
    with pytest.raises(ValueError, match=says): call(VLMWrapper("tiny"))
