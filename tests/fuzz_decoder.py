"""Coverage-guided fuzzing of the decoder, run by hand: it is no test of the suite and atheris is no requirement.

    pip install atheris numpy pillow
    python tests/fuzz_decoder.py --seeds SEEDS            # writes the corpus as seed files
    python tests/fuzz_decoder.py SEEDS -max_total_time=660 -max_len=600 -dict=SEEDS/../words.dict

Every input must end in actions of the vocabulary, inside the screen and ready for JSON, or in ActionDecodeError; and what was
decoded, if the dialect has words for it, must be read back as itself. Recorded runs stand in nbs/05_decoder.ipynb.
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

if "--seeds" in sys.argv:
    from vlm_agent.decoder import DIALECTS
    folder, names = Path(sys.argv[sys.argv.index("--seeds") + 1]), list(DIALECTS)
    folder.mkdir(parents=True, exist_ok=True)
    for i, line in enumerate((Path(__file__).parent/"decoder_corpus.jsonl").read_text(encoding="utf-8").splitlines()):
        r = json.loads(line)
        (folder/f"{i:03d}").write_bytes(bytes([names.index(r["dialect"])]) + r["text"].encode("utf-8", "surrogatepass"))
    words = {w for d in DIALECTS.values() for w in d.names} | set("( ) [ ] { } ' \" ''' \\ \\u \\n , : = <point> </point> <loc0001> <loc_1> <think> </think> <|box_start|> <tool_call> coordinate action arguments None null 1e999".split())
    (folder.parent/"words.dict").write_text("".join(f'"{w}"\n' for w in (w.replace("\\", "\\\\").replace('"', '\\"') for w in sorted(words))))
    sys.exit()

import atheris

with atheris.instrument_imports(include=["vlm_agent.decoder"]):
    from vlm_agent.decoder import DIALECTS, ActionDecodeError, ActionDecoder
from vlm_agent.core import ActionError, check_action

DECODERS, SIZE, SEEN = [ActionDecoder(name) for name in DIALECTS], (160, 210), (160, 224)


def one(data):
    if not data: return
    decoder, text = DECODERS[data[0] % len(DECODERS)], data[1:].decode("utf-8", "surrogateescape")
    try: actions = decoder.decode_all(text, SIZE, SEEN)
    except ActionDecodeError as e:
        assert e.reason and str(e)
        return
    for a in actions:
        assert check_action(a, SIZE) == a
        json.dumps(a)
    assert decoder.decode(text, SIZE, SEEN) == actions[-1]
    try: written = decoder.encode(actions[-1], SIZE, SEEN)
    except ActionError: return
    back = decoder.decode(written, SIZE, SEEN)
    assert back["type"] == actions[-1]["type"] and back.get("text") == actions[-1].get("text"), (written, back)


atheris.Setup(sys.argv, one)
atheris.Fuzz()
