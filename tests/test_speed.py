"The benchmark of acting and learning runs where there is no GPU and nobody to compare with, and what it calls needed is what is computed."
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT/"benchmarks"/"shared_prefix.py"


def test_the_mode_of_a_gpu_runs_on_a_cpu(tmp_path):
    out = tmp_path/"rates.json"
    r = subprocess.run([sys.executable, str(SCRIPT), "--rates", "--pixels", "112x140", "--screens", "2", "--k", "2", "--repeats", "1", "--json", str(out)], capture_output=True, text=True, cwd=ROOT)
    assert r.returncode == 0, r.stderr[-2000:]
    found, = json.loads(out.read_text())
    assert set(found["rates"]) == {"ours, act", "ours, learn", "ours, learn, features kept", "plain, act", "plain, learn"}
    for row in found["rates"].values(): assert row["trajectories_per_second"] > 0 and 0 < row["mfu"] < 1, row
    assert {"command", "date", "processor", "versions", "peak"} <= set(found)


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("shared_prefix_benchmark", SCRIPT); module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("pixels, k", [((160, 224), 4), ((448, 448), 1), ((1920, 1080), 1)])  # the last is more than the processor lets through
def test_the_needed_products_are_those_that_are_computed(benchmark, tmp_path, pixels, k):
    "By torch's own count: the tower, and then the rest, when the features are kept."
    from vlm_agent.wrapper import VLMWrapper
    benchmark.checkpoint("tiny", tmp_path); vlm = VLMWrapper(str(tmp_path))
    (picture, prompt, answers), = benchmark.round_of(0, 1, k, pixels)
    tokens = sum(len(vlm.label_ids(a)) for a in answers)
    def attention(query, key, value, dropout_p=0.0, is_causal=False, **kwargs): return (2 if is_causal else 4) * query[0] * query[1] * query[2] * key[2] * query[3]
    def count():
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping={torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}) as counter: vlm([picture] * k, [prompt] * k, answers)
        return counter.get_total_flops()
    both, rest = count(), count()
    ids = vlm.inputs([picture], [prompt])[0]["input_ids"]; image = (ids == vlm.config.image_token_id).sum().item()
    assert benchmark.image_tokens(pixels) == image
    needed = benchmark.needed("tiny", pixels, k, tokens / k, ids.shape[1] - image)
    assert abs((both - rest) / needed["tower"] - 1) < 0.02 and abs(rest / (needed["text"] + needed["head"]) - 1) < 0.03, (both - rest, rest, needed)
