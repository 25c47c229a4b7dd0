"Screens to learn from: random widgets in random styles, with every goal that makes sense on them. No page of MiniWoB++ is among them."
import math
import random
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from folder import COLOURS, GRID, LABELS, MINIWOB, PATCH, SEEN, SHAPES, SPEECH
from vlm_agent import environment
from vlm_agent.environment import SIZE, TOYS, draw_widgets

W, H = SIZE
RGB = {"red": [(255, 0, 0), (220, 40, 40)], "green": [(0, 128, 0), (40, 160, 60)], "blue": [(0, 0, 255), (50, 80, 220)], "yellow": [(255, 255, 0), (240, 210, 40)],
       "purple": [(128, 0, 128), (150, 50, 180)], "orange": [(255, 165, 0), (245, 140, 30)], "black": [(0, 0, 0), (25, 25, 25)], "grey": [(128, 128, 128), (150, 150, 150)],
       "pink": [(255, 192, 203), (255, 150, 190)], "cyan": [(0, 255, 255), (60, 220, 230)], "lime": [(0, 255, 0), (60, 240, 40)], "magenta": [(255, 0, 255), (235, 40, 230)]}
ASKS = dict(
    colour=["Click the {} button.", "Click on the {} colored box.", "Click the {} box.", "Press the {} button."],
    button=['Click the "{}" button.', 'Click "{}".', 'Click on the "{}" button.', "Click button {}."],
    link=['Click "{}".', 'Click the "{}" link.'], checkbox=['Tick "{}".', "Tick {}.", 'Click "{}".'], tab=['Click "{}".', "Click the {} tab."],
    shape=["Click the {}.", "Click on the {}."], single=["Click the button.", "Click on the button.", "Press the button."],
    close=['Close the window with the "x".', 'Click "x".', 'Click the "x" in the corner.', 'Close the box by clicking the "x".'],
    typing=['Type "{}".', 'Enter "{}".', 'Type "{}" into the field.'])
BY_LENGTH = sorted(LABELS, key=len)
FONTS = ("/usr/share/fonts/truetype/liberation/LiberationSans-Regular.ttf", "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf", None)  # None: Pillow's own
FONT_SHARES = (0.6, 0.2, 0.2)
MIX = dict(colour=0.11, text=0.37, shape=0.17, single=0.17, both=0.06, toy=0.06, typing=0.03, window=0.03)
EASY = dict(colour=0.4, text=0.12, shape=0.34, single=0.06, both=0.08)  # for the first steps: colours and shapes bind before words do


@cache
def font(which:int, size:int):
    "A font of `FONTS`, or Pillow's own where this machine does not have it."
    try: return ImageFont.truetype(FONTS[which], size) if FONTS[which] else ImageFont.load_default(size=size)
    except OSError: print(f"{FONTS[which]} is not installed: Pillow's own font takes its place; the base will read other fonts less well", flush=True); return ImageFont.load_default(size=size)


@dataclass
class Thing:
    "Something on the screen that has a name."
    box: tuple             # (x, y, w, h) in pixels
    kind: str              # "button", "link", "field", ..., or a shape
    colour: str = None
    word: str = None

    @property
    def name(self): return " ".join(filter(None, (self.colour, self.kind if self.kind not in ("button", "link", "tab", "checkbox") or not (self.colour or self.word) else None, self.word)))


@dataclass
class Goal:
    "An instruction and its answer."
    text: str
    task: str
    box: tuple = None      # Where to click
    name: str = ""         # What is there, in words
    typed: str = None      # What to type instead


@dataclass
class Scene:
    image: np.ndarray      # (210, 160, 3) uint8
    goals: list
    things: list = field(default_factory=list)


def made_up(rng): return "".join(rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(1, 3))) + rng.choice(["", "n", "s", "r", "t"])
def jitter(rng, rgb, by): return tuple(max(0, min(255, v + rng.randint(-by, by))) for v in rgb)
def paint(rng, colour): return jitter(rng, rng.choice(RGB[colour]), 12)
def apart(box, others, gap): return all(box[0] + box[2] + gap < x or x + w + gap < box[0] or box[1] + box[3] + gap < y or y + h + gap < box[1] for x, y, w, h in others)


def scatter(rng, sizes, top):
    "Boxes (x, y, w, h) below `top` that do not touch, or None where there was no room."
    boxes = []
    for w, h in sizes:
        for _ in range(30):
            box = (rng.randint(2, W - w - 3), rng.randint(top + 2, H - h - 3), w, h)
            if apart(box, boxes, 3): boxes.append(box); break
        else: return None
    return boxes


def column(rng, sizes, top, style):
    "Boxes one below the other, now and then two beside each other, with lines of text and empty fields in between, as a simple form has them; or None; -> boxes, boxes of the fields."
    left, y, boxes, fields = rng.choice([2, 2, 8, rng.randint(2, 40)]), top + rng.randint(2, 30), [], []
    for w, h in sizes:
        for _ in range(rng.choice([0, 0, 1, 1, 2])):
            if rng.random() < 0.5: style.pen.text((left, y), " ".join(made_up(rng) for _ in range(rng.randint(1, 3)))[:24], fill=(0, 0, 0), font=font(style.which, 10)); y += 11
            else: fields.append((left, y, rng.randint(40, 148 - left), rng.randint(18, 21))); y += fields[-1][3] + 1
        x = left
        if boxes and rng.random() < 0.2 and sum(boxes[-1][::2]) + w < W - 4 and boxes[-1][1] + boxes[-1][3] < y <= boxes[-1][1] + boxes[-1][3] + 6: x, y = sum(boxes[-1][::2]) + 2, boxes[-1][1]
        boxes.append((x, y, w, h)); y += h + rng.randint(1, 6)
    return (boxes, fields) if y < H and all(x + w < W for x, _, w, _ in boxes) else (None, [])


class Style:
    "Fonts, lines and backgrounds of one screen."
    def __init__(self, rng):
        self.rng, self.which, self.points = rng, rng.choices(range(len(FONTS)), FONT_SHARES)[0], rng.choice([10, 11, 11, 12, 12, 13, 13, 13, 14])
        self.back = (255, 255, 255) if rng.random() < 0.7 else jitter(rng, (240, 240, 240), 14)
        self.line, self.radius = rng.choice([(60, 60, 60), (0, 0, 0), (118, 118, 118)]), rng.choice([0, 0, 2, 4])
        self.face = jitter(rng, rng.choice([(225, 225, 225), (239, 239, 239), (245, 245, 245)]), 8)
        self.image = Image.new("RGB", (W, H), self.back); self.pen = ImageDraw.Draw(self.image)

    def width(self, word): return int(font(self.which, self.points).getlength(word))

    def draw(self, t:Thing):
        x, y, w, h = t.box; d, rng = self.pen, self.rng
        if t.kind in SHAPES: draw_shape(d, t, paint(rng, t.colour), self.line if rng.random() < 0.5 else None); return
        if t.kind == "field": d.rounded_rectangle([x, y, x + w, y + h], self.radius//2, fill="white", outline=(118, 118, 118)); return
        if t.kind in ("button", "tab"):
            face = paint(rng, t.colour) if t.colour else self.face
            d.rounded_rectangle([x, y, x + w, y + h], self.radius, fill=face, outline=self.line)
            if t.kind == "tab": d.line([x + 1, y + h, x + w - 1, y + h], fill=face)
        if not t.word: return
        points, word = self.points, t.word
        if self.width(word) > w - 4: word = word.replace(" ", "\n")
        while max(font(self.which, points).getlength(line) for line in word.split("\n")) > w - 2 and points > 9: points -= 1
        ink = (0, 0, 0)
        if t.kind == "button" and 0.3 * face[0] + 0.59 * face[1] + 0.11 * face[2] <= 110: ink = (255, 255, 255)
        if t.kind == "checkbox":
            d.rectangle([x, y + h/2 - 6, x + 12, y + h/2 + 6], fill="white", outline=(118, 118, 118))
            d.text((x + 18, y + h/2), t.word, fill=ink, font=font(self.which, points), anchor="lm"); return
        if t.kind == "link": ink = (0, 0, 238); d.line([x + 2, y + h/2 + points/2, x + w - 2, y + h/2 + points/2], fill=ink)
        d.text((x + w/2 + rng.random(), y + h/2 + rng.random()), word, fill=ink, font=font(self.which, points), anchor="mm", align="center", spacing=1)

    def distract(self, taken, top):
        "Lines of text, empty fields, a window's frame: nothing that a goal is about; the fields are returned."
        rng, fields = self.rng, []
        for _ in range(rng.randint(1, 3)):
            w, h = (rng.randint(30, 140), 19) if rng.random() < 0.5 else (rng.randint(40, 110), 11)
            for _ in range(10):
                box = (rng.randint(1, W - w - 2), rng.randint(top + 1, H - h - 2), w, h)
                if not apart(box, taken + [f.box for f in fields], 2): continue
                if h == 19: fields.append(Thing(box, "field")); self.draw(fields[-1])
                else:
                    text = "".join(rng.choice("aeioulrstnmdpc  ") for _ in range(40))
                    while font(self.which, 10).getlength(text) > w: text = text[:-1]
                    self.pen.text(box[:2], text, fill=(0, 0, 0), font=font(self.which, 10))
                break
        return fields

    def window(self, boxes, top):
        "A frame with a title bar around everything; -> its close button, which most have."
        rng = self.rng
        l, t = max(0, min(b[0] for b in boxes) - rng.randint(4, 20)), max(top, min(b[1] for b in boxes) - rng.randint(22, 40))
        r, b = min(W - 1, max(x + w for x, _, w, _ in boxes) + rng.randint(4, 20)), min(H - 1, max(y + h for _, y, _, h in boxes) + rng.randint(4, 20))
        bar = rng.randint(17, 26)
        self.pen.rectangle([l, t, r, b], fill="white", outline=(170, 170, 170)); self.pen.rectangle([l + 2, t + 2, r - 2, t + bar], fill=self.face, outline=(170, 170, 170))
        if rng.random() < 0.5: self.pen.text((l + 6, t + bar/2 + 1), made_up(rng).title(), fill=(0, 0, 0), font=font(self.which, 10), anchor="lm")
        if r - l < 40 or rng.random() < 0.2: return None
        side = rng.randint(12, bar - 3)
        return Thing((r - side - rng.randint(3, 6), t + 1 + (bar - side)//2, side, side), "button", None, "x")

    def finish(self, asked, top):
        "The screenshot, with the instruction in a yellow bar if there is room for it, and with a little noise now and then."
        if top:
            ink = font(self.which, self.rng.choice([10, 11])); swatch = next((c for c in COLOURS if f" {c} " in asked), None) if self.rng.random() < 0.4 else None
            self.pen.rectangle([0, 0, W, top - 1], fill=(255, 255, 0)); self.pen.text((4, 6), asked[:30] if swatch is None else asked.replace(swatch, "     ")[:32], fill=(0, 0, 0), font=ink)
            if swatch: x = 4 + ink.getlength(asked[:asked.index(swatch)]); self.pen.rectangle([x, 5, x + 11, 16], fill=paint(self.rng, swatch), outline=(0, 0, 0))  # the colour instead of its name
        a = np.asarray(self.image)
        if self.rng.random() < 0.3: a = np.clip(a.astype(np.int16) + np.random.RandomState(self.rng.randrange(1 << 30)).randint(-6, 7, a.shape), 0, 255).astype(np.uint8)
        return a


def draw_shape(d, t, fill, line):
    x, y, w, h = t.box; cx, cy = x + w/2, y + h/2
    if t.kind == "circle": d.ellipse([x, y, x + w, y + h], fill=fill, outline=line); return
    star = [(cx + r * math.cos(a), cy + r * math.sin(a)) for i in range(10) for r, a in [((w/5 if i % 2 else w/2), (i/5 - 0.5) * math.pi)]]
    d.polygon({"square": [(x, y), (x + w, y), (x + w, y + h), (x, y + h)], "triangle": [(cx, y), (x + w, y + h), (x, y + h)],
               "diamond": [(cx, y), (x + w, cy), (cx, y + h), (x, cy)], "star": star}[t.kind], fill=fill, outline=line)


def inner(t:Thing):
    "The part of a shape's box that is surely inside."
    x, y, w, h = t.box
    if t.kind == "triangle": y, h = y + 0.4 * h, 0.6 * h
    return t.box if t.kind == "square" else (x + 0.22 * w, y + 0.22 * h, 0.56 * w, 0.56 * h)


def goal_of(rng, t:Thing, single=False):
    "One goal that a click on `t` fulfils."
    if t.kind in SHAPES: return Goal(rng.choice(ASKS["shape"]).format(t.name), "shape", inner(t), t.name)
    if single: return Goal(rng.choice(ASKS["single"]), "single", t.box, "button")
    if t.colour and not (t.word and rng.random() < 0.5): return Goal(rng.choice(ASKS["colour"]).format(t.colour), "colour", t.box, t.colour)
    return Goal(rng.choice(ASKS["close" if t.word == "x" else t.kind]).format(t.word), "text", t.box, t.word)


def strange_goal(rng):
    "An instruction whose words mean nothing yet; where only one thing can be clicked it is clear all the same, and no word stays untouched."
    w = [rng.choice(MINIWOB + SPEECH + LABELS) if rng.random() < 0.8 else made_up(rng) for _ in range(4)]
    return rng.choice(["Click the {} button.", "Click button {}.", 'Click "{}".', "Click on the {} colored box.", "{} {} the {}.", '{} the {} {} {}.', '{} {} {} the "{}".', "{} on the {}."]).format(*w)


def words(rng, n, strange, alike=0.0):
    "Labels of `n` things; `alike`: the chance that they come from eight of about one length."
    at = rng.randrange(len(LABELS) - 7) if alike and rng.random() < alike else None
    return [made_up(rng) if rng.random() < strange else w for w in rng.sample(LABELS if at is None else BY_LENGTH[at:at + 8], n)]


def scene(rng:random.Random, kind:str=None, mix=MIX, strange:float=0.12, alike:float=0.5)->Scene:
    "A screen with all its goals; `strange` is the share of labels that are no words of the vocabulary, `alike` that of screens on which things are easily confused: shapes in two colours, words of about one length."
    kind = kind or rng.choices(list(mix), mix.values())[0]
    if kind == "toy": return toy_scene(rng)
    while True:
        s, top = Style(rng), 50 if rng.random() < 0.5 else 0
        n = dict(single=1, typing=2, window=1, text=rng.randint(2, 4), both=rng.randint(2, 4)).get(kind, rng.randint(2, 5))
        look = rng.choices(["button", "link", "checkbox", "tab"], [0.76, 0.08, 0.08, 0.08])[0] if kind == "text" else "button"
        colours, labels, kinds = [None] * n, [None] * n, [look] * n
        if kind == "shape":
            palette = rng.sample(COLOURS, 2) if alike and rng.random() < alike else COLOURS
            pairs = rng.sample([(c, k) for c in palette for k in SHAPES], n); colours, kinds = [c for c, _ in pairs], [k for _, k in pairs]
            sizes = [(a, a) for a in (rng.randint(16, 40) for _ in range(n))]
        elif kind == "colour":
            colours = rng.sample(COLOURS, n)
            sizes = [(rng.randint(20, 56), rng.randint(16, 52)) for _ in range(n)] if rng.random() < 0.6 else [(a, a) for a in [rng.randint(24, 52)] * n]
        elif kind == "window": sizes = [(rng.randint(50, 130), rng.randint(20, 90))]  # of lines of text, which nothing is asked about
        elif kind == "single":
            if rng.random() < 0.5: colours = rng.sample(COLOURS, 1)
            else: labels = words(rng, 1, strange) if rng.random() < 0.7 else [" ".join(rng.choice([made_up(rng).title(), made_up(rng), rng.choice(LABELS)]) for _ in range(2))]
            sizes = [(rng.randint(24, 100), rng.randint(16, 100))] if rng.random() < 0.5 else [(a, a) for a in [rng.randint(24, 100)]]
        else:
            if kind == "both": colours = rng.sample(COLOURS, n)
            labels, extra = words(rng, n, strange, alike), {"checkbox": 20}.get(look, 0)
            tight = look != "button" or rng.random() < 0.6
            sizes = [(s.width(w) + extra + rng.randint(8, 16), rng.randint(s.points + 5, s.points + 10)) if tight else (rng.randint(max(36, s.width(w) + 4), max(74, s.width(w) + 6)), rng.randint(17, 42)) for w in labels]
            if kind == "typing": sizes[0] = (rng.randint(60, 140), rng.randint(18, 24)); kinds[0], labels[0] = "field", None
        boxes, between = column(rng, sizes, top, s) if kind == "text" and rng.random() < 0.3 else (scatter(rng, sizes, top), [])
        if boxes: break
    cross = s.window(boxes, top) if kind == "window" or kind == "text" and not between and rng.random() < 0.2 else None
    if kind == "window":
        if cross is None: return scene(rng, kind, mix, strange, alike)
        (x, y, w, h), = boxes
        for line in range(y, y + h - 11, 13): s.pen.text((x, line), " ".join(made_up(rng) for _ in range(w//30)), fill=(0, 0, 0), font=font(s.which, 10))
        boxes = []
    things = [Thing(*t) for t in zip(boxes, kinds, colours, labels)] + [cross] * (cross is not None)
    boxes = [t.box for t in things]
    for t in things: s.draw(t)
    if kind == "typing": goals = typing_goals(rng, s, things[0])
    else: goals = [goal_of(rng, t, kind == "single") for t in things]
    if len(things) == 1 and rng.random() < 0.6: goals[0].text = strange_goal(rng)
    if kind == "shape" and rng.random() < 0.3:  # a colour alone will do where no other shape has it
        goals = [Goal(f"Click the {t.colour} shape.", "shape", g.box, g.name) if colours.count(t.colour) == 1 else g for t, g in zip(things, goals)]
    if kind == "both": goals += [Goal(rng.choice(ASKS["button"]).format(t.word), "text", t.box, t.word) for t in things if rng.random() < 0.5]
    fields = [Thing(box, "field") for box in between]
    for t in fields: s.draw(t)
    if not between and kind != "shape" and rng.random() < 0.25: fields = s.distract(boxes, top)
    return Scene(s.finish(rng.choice(goals).text, top), goals, things + fields)


def typing_goals(rng, s, t):
    "The field has the focus: what is to be typed is typed."
    x, y, w, h = t.box
    s.pen.rounded_rectangle([x, y, x + w, y + h], 2, fill="white", outline=rng.choice([(0, 0, 0), (41, 98, 214), (16, 16, 16)]), width=2)
    return [Goal(rng.choice(ASKS["typing"]).format(w), "typing", typed=w) for w in (made_up(rng).title() if rng.random() < 0.4 else "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 6))) for _ in range(3))]


ONE_CLICK = ("toy/click-button", "toy/click-named-button", "toy/click-colour", "toy/click-shape")

def toy_scene(rng)->Scene:
    "A screen of the embedded environment, with a goal for each of its widgets."
    spec = rng.choice(ONE_CLICK); env = TOYS[spec](spec); env.build(random.Random(rng.randrange(1 << 30)))
    colour_of = {rgb: name for name, rgb in environment.COLOURS.items()}
    things = [Thing((w.box[0], w.box[1], w.box[2] - w.box[0], w.box[3] - w.box[1]), w.name if w.kind == "shape" else "button", colour_of.get(tuple(w.colour)), w.text or None) for w in env.widgets]
    return Scene(draw_widgets(env.widgets), [goal_of(rng, t, spec == "toy/click-button") for t in things], things)


def crowd(rng)->Scene:
    "A crowded screen without goals, for the vision tower alone: words, colours and shapes side by side, often with a form's column of words."
    s, things, fields = Style(rng), [], []

    def labelled():
        word, colour = rng.choice(LABELS), rng.choice(COLOURS) if rng.random() < 0.2 else None
        size = (s.width(word) + rng.randint(8, 16), rng.randint(s.points + 5, s.points + 10)) if rng.random() < 0.7 else (rng.randint(max(36, s.width(word) + 4), max(60, s.width(word) + 6)), rng.randint(17, 40))
        return word, colour, "button" if colour or fields or rng.random() < 0.7 else rng.choice(["link", "tab"]), *size

    if rng.random() < 0.4:
        named = [labelled() for _ in range(rng.randint(3, 5))]
        boxes, fields = column(rng, [t[3:] for t in named], 0, s)
        things = [Thing(box, *t[2::-1]) for box, t in zip(boxes or [], named)] + [Thing(box, "field") for box in fields]
    for _ in range(rng.randint(8, 14) - len(things)):
        u = rng.random()
        if u < 0.7: word, colour, kind, w, h = labelled()
        elif u < 0.78: word, colour, kind, w, h = None, rng.choice(COLOURS), "button", rng.randint(20, 44), rng.randint(16, 40)
        elif u < 0.82: word, colour, kind, w, h = None, None, "field", rng.randint(40, 120), rng.randint(18, 24)
        else: word, colour, kind = None, rng.choice(COLOURS), rng.choice(SHAPES); w = h = rng.randint(16, 34)
        for _ in range(25):
            box = (rng.randint(1, W - w - 2), rng.randint(1, H - h - 2), w, h)
            if apart(box, [t.box for t in things], 2): things.append(Thing(box, kind, colour, word)); break
    for t in things: s.draw(t)
    return Scene(s.finish("", 0), [], things)


def as_seen(image): return np.asarray(Image.fromarray(image).resize(SEEN, Image.NEAREST))

NAMED = dict(colour=["nothing", *COLOURS], kind=["nothing", *SHAPES, "button", "field"], word=["nothing", *LABELS])

def cells(things)->np.ndarray:
    "(5, 13, 10) what each image token shows: colour, kind, word as indices into `NAMED`, its thing's centre as bins; -100: not to be asked."
    rows, cols, sy = SEEN[1]//PATCH, SEEN[0]//PATCH, SEEN[1]/H
    out = np.zeros((5, rows, cols), dtype=np.int64); out[3:] = -100
    def overlap(l, r, i): return max(0, min(r, (i + 1) * PATCH) - max(l, i * PATCH))
    for t in things:
        x, y, w, h = t.box[0], t.box[1] * sy, t.box[2], t.box[3] * sy
        kind = "button" if t.kind in ("link", "tab", "checkbox") else t.kind
        text = (x + w/2 - 22, x + w/2 + 22, y + h/2 - 6, y + h/2 + 6)
        for j in range(max(0, int(y)//PATCH), min(rows, int(y + h)//PATCH + 1)):
            for i in range(max(0, int(x)//PATCH), min(cols, int(x + w)//PATCH + 1)):
                if overlap(x, x + w, i) * overlap(y, y + h, j) >= 0.3 * PATCH**2:
                    out[:2, j, i] = NAMED["colour"].index(t.colour or "nothing"), NAMED["kind"].index(kind)
                    out[3:, j, i] = int((t.box[0] + w/2)//GRID), int((t.box[1] + t.box[3]/2)//GRID)
                else: out[:2, j, i] = np.where(out[:2, j, i] == 0, -100, out[:2, j, i])
                if t.word:
                    seen = overlap(text[0], text[1], i) * overlap(text[2], text[3], j) >= 0.15 * PATCH**2
                    out[2, j, i] = NAMED["word"].index(t.word) if seen and t.word in LABELS else -100
    return out.reshape(5, -1)


def caption(rng, s:Scene):
    "A question about a place and its answer, or None."
    if rng.random() < 0.15:
        for _ in range(20):
            x, y = rng.randint(0, W - 1), rng.randint(50, H - 1)
            if apart((x, y, 0, 0), [t.box for t in s.things], 6): name = "nothing"; break
        else: return None
    else: t = rng.choice(s.things); name = t.name; x, y = t.box[0] + t.box[2] * rng.uniform(0.3, 0.7), t.box[1] + t.box[3] * rng.uniform(0.3, 0.7)
    return f"What is at ({int(x)//GRID * GRID + GRID//2}, {int(y)//GRID * GRID + GRID//2})?", name
