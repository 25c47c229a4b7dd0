"One forward pass for all the questions about a screenshot: the picture's tokens are shared, the questions do not see each other."
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3_vl.modeling_qwen3_vl import get_vision_interpolation_indices_and_weights, get_vision_position_ids, rotate_half

from folder import ASK, GRID, PATCH, REPLY, SEEN
from scenes import H, NAMED, as_seen, caption, cells
from vlm_agent.shared_prefix import last_layer_at
from vlm_agent.wrapper import slow_precision

ROWS, COLS = SEEN[1]//PATCH, SEEN[0]//PATCH
N_IMAGE, N_PREFIX = ROWS * COLS, ROWS * COLS + 3  # <|im_start|>user\n<|vision_start|> ... <|vision_end|>
PRECISION = torch.float32 if slow_precision(torch.bfloat16) else torch.bfloat16  # of products
GROUND_LAYER, GROUND_HEADS = 1, 2  # where the grounding loss looks: text layer 1, heads 0 and 1


def products():
    "A context in which matrices are multiplied in `PRECISION`."
    return torch.autocast("cpu", torch.bfloat16, enabled=PRECISION == torch.bfloat16)

def attention(q, k, v, scaling, bias=0.0):
    "In the precision of its inputs: autocast would hold the scores in float32."
    with torch.autocast("cpu", enabled=False): return torch.matmul((torch.matmul(q * scaling, k.transpose(-1, -2)) + bias).softmax(-1), v)

def watched_attention(module, q, k, v, bias, scaling=None, dropout=0.0, **_):
    "The layer of the grounding loss leaves its queries and keys behind."
    if module.layer_idx == GROUND_LAYER: module.watched = (q[:, :GROUND_HEADS], k[:, :GROUND_HEADS])
    return attention(q.to(v.dtype), k.to(v.dtype), v, scaling, bias).transpose(1, 2), None

ALL_ATTENTION_FUNCTIONS.register("watched", watched_attention)


class Question:
    "Token ids of an instruction and its answer, the weight of each answer token, and what its coordinates may be."
    def __init__(self, asked, answer, weights, bins=None, box=None):
        self.asked, self.answer, self.weights, self.bins, self.box = asked, answer, weights, bins or {}, box


def bins_inside(start, length, count):
    "A soft target over coordinate bins: a bell around the middle of the box, zero outside."
    centres = (np.arange(count) + 0.5) * GRID
    p = np.exp(-0.5 * ((centres - start - length/2)/max(3.0, length/7))**2) * ((centres > start + 1) & (centres < start + length - 1))
    if p.sum() < 1e-9: p = np.zeros(count); p[min(count - 1, int((start + length/2)//GRID))] = 1
    return (p/p.sum()).astype(np.float32)


class Teacher(nn.Module):
    "A model with what only pre-training needs; none of it is saved with the base."
    def __init__(self, model, tokenizer, ground=1.0, dense=0.5):
        super().__init__()
        self.model, self.tok, self.ground, self.dense = model, tokenizer, ground, dense
        self.sharpness, self.centre = nn.Parameter(torch.tensor(1.0)), nn.Linear(model.config.text_config.hidden_size, 20 + 26)
        one = lambda word: tokenizer.convert_tokens_to_ids(word)
        self.number = torch.tensor([one(str(GRID//2 + GRID * i)) for i in range(26)])
        self.named = {k: torch.tensor([one(w) for w in words]) for k, words in NAMED.items()}
        self.end, self.reply, image = tokenizer.eos_token_id, one(REPLY), model.config.image_token_id
        self.prefix_ids = torch.tensor([one(ASK), model.config.vision_start_token_id] + [image] * N_IMAGE + [model.config.vision_end_token_id])
        rows, cols = torch.arange(N_IMAGE)//COLS, torch.arange(N_IMAGE) % COLS
        after = 2 + max(ROWS, COLS)
        self.prefix_positions = torch.cat([torch.tensor([[0, 1]] * 3), torch.stack([torch.full_like(rows, 2), 2 + rows, 2 + cols]), torch.full((3, 1), after)], 1)
        self.first_position = after + 1

    @property
    def embed(self): return self.model.model.language_model.embed_tokens

    @cached_property
    def grid(self):
        "Interpolation of the learned positions and the rotations of one screenshot's patches."
        g, v = torch.tensor([[1, ROWS, COLS]]), self.model.model.visual
        indices, weights = get_vision_interpolation_indices_and_weights(g, num_grid_per_side=v.num_grid_per_side, mode="bilinear", align_corners=True, spatial_merge_size=1, kwargs={})
        cos, sin = v.rotary_pos_emb(torch.zeros(1), get_vision_position_ids(g, 1, kwargs={}))
        return indices, weights, cos, sin  # (N, 4), (N, 4), (N, head), (N, head)

    def look(self, images): # (B, 208, 160, 3) uint8 -> (B, 130, width), what goes past the first text layer (B * 130, width)
        "The vision tower over screenshots of one size at once: the stock modules, batched."
        v, B = self.model.model.visual, len(images)
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        x = x.view(B, 3, ROWS, PATCH, COLS, PATCH).permute(0, 2, 4, 1, 3, 5).reshape(B, N_IMAGE, -1)
        indices, weights, cos, sin = self.grid
        conv = v.patch_embed.proj
        h = F.linear(x, conv.weight.flatten(1), conv.bias) + (v.pos_embed(indices) * weights[:, :, None]).sum(1)
        for i, block in enumerate(v.blocks):
            y = block.norm1(h)
            q, k, u = block.attn.qkv(y).view(B, N_IMAGE, 3, block.attn.num_heads, -1).permute(2, 0, 3, 1, 4)
            q, k = (t * cos.to(t.dtype) + rotate_half(t) * sin.to(t.dtype) for t in (q, k))
            a = attention(q, k, u, block.attn.scaling)
            h = h + block.attn.proj(a.transpose(1, 2).reshape(B, N_IMAGE, -1))
            h = h + block.mlp(block.norm2(h))
            if i in v.deepstack_visual_indexes: shortcut = v.deepstack_merger_list[0](h.reshape(-1, h.shape[-1]))
        return v.merger(h.reshape(-1, h.shape[-1])).view(B, N_IMAGE, -1), shortcut

    def ids(self, text): return self.tok.backend_tokenizer.encode(text, add_special_tokens=False).ids  # several times sooner than by way of Python

    def ask(self, rng, goal, named): # -> Question
        "A goal as a question; `named`: the answer says what it clicks on first. The point is drawn from the bell that is its target."
        if goal.typed is not None:
            answer = self.ids(f'type("{goal.typed}")') + [self.end]
            return Question(self.ids(goal.text) + [self.reply], answer, [1.0] * len(answer))
        x, y, w, h = goal.box
        across, down = bins_inside(x, w, 20), bins_inside(y, h, 26)
        at = [GRID * rng.choices(range(len(bins)), bins)[0] + GRID//2 for bins in (across, down)]
        name = self.ids(goal.name + " ") if named else []
        answer, n = name + self.ids(f"click({at[0]}, {at[1]})") + [self.end], len(name)  # ... click( x , y ) end
        return Question(self.ids(goal.text) + [self.reply], answer, [1.0] * (n + 1) + [0.1] * (len(answer) - n - 1), {n + 1: across, n + 3: down}, goal.box)

    def caption(self, rng, s):
        asked = caption(rng, s)
        if asked is None: return None
        answer = self.ids(asked[1]) + [self.end]
        return Question(self.ids(asked[0]) + [self.reply], answer, [1.0] * len(answer))

    def pack(self, batch): # per screenshot a list of questions
        "Rows of token ids, who sees whom, positions, and the rows of the output to learn at."
        B, L = len(batch), max(sum(len(q.asked) + len(q.answer) for q in qs) for qs in batch)
        ids, segment, position = torch.zeros(B, L, dtype=torch.long), torch.full((B, L), -1), torch.zeros(B, L, dtype=torch.long)
        hard, soft = [], []  # (row, target, weight), (row, bins, axis, screenshot, box)
        for b, questions in enumerate(batch):
            at = 0
            for number, q in enumerate(questions, 1):
                tokens = q.asked + q.answer; n = len(tokens)
                ids[b, at:at + n], segment[b, at:at + n], position[b, at:at + n] = torch.tensor(tokens), number, torch.arange(n)
                for i, target in enumerate(q.answer):
                    row = at + len(q.asked) + i - 1
                    if i in q.bins: soft.append((b, row, q.bins[i], q.box))
                    else: hard.append((b, row, target, q.weights[i]))
                at += n
        whose = torch.cat([torch.zeros(B, N_PREFIX, dtype=torch.long), segment], 1)
        mask = torch.ones(N_PREFIX + L, N_PREFIX + L, dtype=torch.bool).tril() & ((whose[:, None] == 0) | (whose[:, None] == whose[:, :, None]))
        positions = torch.cat([self.prefix_positions[:, None].expand(3, B, -1), (position + self.first_position).expand(3, B, L)], 2)
        return ids, mask[:, None], positions, hard, soft

    def forward(self, scenes, batch, crowds=()): # -> loss, its parts
        "The loss on all questions of a batch of scenes; of `crowds` the tower alone says what they show."
        ids, mask, positions, hard, soft = self.pack(batch)
        E, text = self.embed, self.model.model.language_model
        with products():
            shown = [*scenes, *crowds]
            looked, shortcut = self.look(np.stack([as_seen(s.image) for s in shown]))
            seen, shortcut = looked[:len(scenes)], shortcut[:len(scenes) * N_IMAGE]
            prefix = E(self.prefix_ids).expand(len(ids), -1, -1)
            x = torch.cat([prefix[:, :2], seen.to(prefix.dtype), prefix[:, -1:], E(ids)], 1)
            bias = torch.zeros(mask.shape, dtype=seen.dtype).masked_fill_(~mask, -1e4)
            pictures = torch.zeros(x.shape[:2], dtype=torch.bool); pictures[:, 2:2 + N_IMAGE] = True
            asked = torch.arange(N_PREFIX, x.shape[1]).expand(len(x), -1)  # nothing is said at the picture: the last layer leaves it out
            with last_layer_at(text, asked): h = text(inputs_embeds=x, attention_mask=bias, position_ids=positions, use_cache=False, visual_pos_masks=pictures, deepstack_visual_embeds=[shortcut]).last_hidden_state
            b, row, target, weight = (torch.tensor(c) for c in zip(*hard))
            said = (F.cross_entropy(F.linear(h[b, row], E.weight).float(), target, reduction="none") * weight).sum()/weight.sum()
            placed = ground = torch.zeros(())
            if soft:
                b, row = torch.tensor([s[0] for s in soft]), torch.tensor([s[1] for s in soft])
                logp = F.linear(h[b, row], E.weight).float().log_softmax(-1)[:, self.number]
                placed = -sum((torch.from_numpy(s[2]) * logp[i, :len(s[2])]).sum() for i, s in enumerate(soft))/len(soft)
                if self.ground: ground = self.grounding(b, row, [s[3] for s in soft])
            dense = self.named_cells(looked, shown) if self.dense else torch.zeros(())
        return said + placed + self.dense * dense + self.ground * ground, dict(said=said.item(), placed=placed.item(), dense=dense.item(), ground=ground.item())

    def grounding(self, b, row, boxes):
        "-log of the attention that falls on the image tokens under the box, where a coordinate is about to be said."
        layer = self.model.model.language_model.layers[GROUND_LAYER].self_attn
        q, k = layer.watched
        scores = torch.einsum("rhd,rhnd->rhn", q[b, :, N_PREFIX + row].float(), k[b, :, 2:2 + N_IMAGE].float()) * layer.scaling
        under = torch.zeros(len(boxes), 1, ROWS, COLS)
        for i, (x, y, w, h) in enumerate(boxes):
            y, h = y * SEEN[1]/H, h * SEEN[1]/H
            under[i, 0, int(y + 1)//PATCH:int(y + h - 1)//PATCH + 1, int(x + 1)//PATCH:int(x + w - 1)//PATCH + 1] = 1
        return (scores.logsumexp(-1) - (scores + (under.flatten(2) - 1) * 1e4).logsumexp(-1)).mean()

    def named_cells(self, seen, scenes):
        "Each image token against the words for what it shows, and its thing's centre."
        want = torch.from_numpy(np.stack([cells(s.things) for s in scenes]))  # (B, 5, N)
        f, loss = F.layer_norm(seen.float(), seen.shape[-1:]), 0
        for i, ids in enumerate(self.named.values()):
            balance = torch.ones(len(ids)); balance[0] = 0.15  # most of a screen is nothing
            loss = loss + F.cross_entropy((F.linear(f, self.embed.weight[ids]).float() * self.sharpness).flatten(0, 1), want[:, i].flatten(), weight=balance, ignore_index=-100)
        x, y = self.centre(f).float().flatten(0, 1).split([20, 26], -1)
        return loss + sum(0.5 * F.cross_entropy(p, want[:, i].flatten(), ignore_index=-100, label_smoothing=0.05) for p, i in ((x, 3), (y, 4)))
