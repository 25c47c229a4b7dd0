"The empty base: vocabulary, tokenizer, image processor and configuration, in the Hub's own layout, with random weights."
import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessorPil, Qwen3VLConfig, Qwen3VLForConditionalGeneration

ASK, REPLY = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"  # ChatML's turns, one token each: short prompts are cheap prompts
SPECIAL = [ASK, REPLY, "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
GRID = 8      # pixels of a coordinate bin; the model writes its centre, one token: 4, 12, 20, ...
PATCH = 16    # pixels of an image token
SEEN = (160, 208)  # (width, height) at which a 160x210 screenshot is looked at: whole patches

COLOURS = "red green blue yellow purple orange black grey pink cyan lime magenta".split()
SHAPES = "circle square triangle star diamond".split()
KINDS = "button field checkbox link tab".split()
LABELS = """OK Ok ok Okay okay Back Save Login Help Close Submit submit Yes yes No no Cancel cancel Next next Previous previous
Open Send Delete Search Menu Edit""".split()
SPEECH = """Click click on the button Press press Tap box colored shape Choose What is at nothing of a an and with text Type type Enter enter into in field item
Tick tick then answer Log log as password user name dialog window close open small large left right top bottom first second""".split()
MINIWOB = """Focus textbox input link tab named word words widget by clicking x Me ONE TWO olive white maroon navy teal aqua fuchsia silver gray gold brown
Select select radio checkbox checkboxes them all that not other which from area collapsible section Expand find Tab option menu
triangle letter digit number 1st 2nd 3rd Done So far done""".split()  # words of its goals; but for six they occur only where a single thing can be clicked whatever is asked (`strange_goal`)

TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
            "{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}"
            "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")  # ChatML, pictures before words


def vocabulary():
    "Special tokens, 256 bytes, bin centres, small numbers, punctuation of actions, words: each once."
    numbers = [str(i) for i in range(32)] + [str(i) for i in range(GRID//2, 1280, GRID)]
    return list(dict.fromkeys(SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet()) + numbers + ["click(", "type(", ",Ġ"] + COLOURS + SHAPES + KINDS + LABELS + SPEECH + MINIWOB))


def build_tokenizer():
    "A word that is in the vocabulary is one token, spaces stand alone, anything else falls apart into bytes: nothing is unknown, nothing is lost."
    t = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(vocabulary())}, merges=[], ignore_merges=True))
    pieces = Regex(r"click\(|type\(|, |\p{N}+(?:st|nd|rd)?|\p{L}+|\s|[^\s\p{L}\p{N}]")
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(pieces, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=t, eos_token="<|im_end|>", pad_token="<|endoftext|>", image_token="<|image_pad|>",
                                   padding_side="left", model_max_length=4096, chat_template=TEMPLATE, extra_special_tokens={"image_token": "<|image_pad|>"})


def build_image_processor():
    "Stretches a screenshot to whole patches by leaving out or doubling single rows and columns (no blur: letters stay letters)."
    return Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=1, temporal_patch_size=1, size={"shortest_edge": PATCH**2, "longest_edge": 1280 * 1280}, resample=0,
                                    image_mean=[0.5] * 3, image_std=[0.5] * 3)


def build_model(tokenizer, seed:int, width=128, layers=3, depth=4, heads=4, theta=10.0):
    "Qwen3-VL with 1.4 million random weights."
    id_of = tokenizer.convert_tokens_to_ids
    turned = width//heads//2  # pairs of a head that rotary positions turn: a quarter by order, the rest by row and column
    rows = turned * 3//8
    config = Qwen3VLConfig(
        text_config=dict(vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads, head_dim=width//heads,
                         bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, initializer_range=0.05, max_position_embeddings=4096,
                         rope_parameters=dict(rope_type="default", rope_theta=theta, mrope_section=[turned - 2 * rows, rows, rows], mrope_interleaved=True)),
        vision_config=dict(depth=depth, hidden_size=width, intermediate_size=2 * width, out_hidden_size=width, num_heads=heads, patch_size=PATCH, spatial_merge_size=1, temporal_patch_size=1,
                           num_position_embeddings=13**2, deepstack_visual_indexes=[1], initializer_range=0.05),
        image_token_id=id_of("<|image_pad|>"), video_token_id=id_of("<|video_pad|>"), vision_start_token_id=id_of("<|vision_start|>"), vision_end_token_id=id_of("<|vision_end|>"), tie_word_embeddings=True)
    config.vlm_agent = {"action_format": "text", "grid": GRID, "max_new_tokens": 32}
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config)
    torch.nn.init.zeros_(model.model.visual.deepstack_merger_list[0].linear_fc2.weight)  # the shortcut into the text model begins as nothing
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    return model


def save(model, path):
    "The whole folder: bf16 safetensors, configuration, tokenizer, processor."
    path, tokenizer = Path(path), build_tokenizer()
    kept = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items()}
    model.config.dtype = torch.bfloat16
    model.save_pretrained(path, state_dict=kept)
    tokenizer.save_pretrained(path); build_image_processor().save_pretrained(path)
    # AutoProcessor's class by name: Qwen3VLProcessor insists on a video processor, which needs torchvision; this one is the same for pictures
    (path/"processor_config.json").write_text(json.dumps({"processor_class": "PaddleOCRVLProcessor", "image_processor": json.loads((path/"preprocessor_config.json").read_text())}, indent=2) + "\n")
    return path
