"""What the families' notebook cannot show in its own process: an installed torchvision that does not belong to this torch, and what is written for machines that have one."""
import json
import os
import subprocess
import sys

from conftest import ROOT

from vlm_agent import VLMWrapper
from vlm_agent.families import FAMILIES, build_tiny


def test_a_torchvision_that_does_not_fit_is_named(tmp_path):
    "As the PyPI wheel for CUDA beside a CPU torch: its import fails deep inside with an operator that does not exist."
    (tmp_path/"torchvision").mkdir()
    (tmp_path/"torchvision"/"__init__.py").write_text("import torch\ntorch.ops.torchvision.nms(1)\n")
    for line in ("from vlm_agent import VLMWrapper; VLMWrapper('tiny')", "from vlm_agent.families import build_tiny; build_tiny('llava')"):
        r = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"})
        assert r.returncode != 0
        assert "ImportError: the installed torchvision does not fit torch" in r.stderr and "pip uninstall torchvision" in r.stderr, r.stderr[-2000:]


def test_saved_processors_carry_what_a_machine_with_torchvision_reads(tmp_path):
    "There `AutoProcessor` insists on the settings for videos, which nothing here uses."
    for name in FAMILIES:
        folder = build_tiny(name, tmp_path/name)
        takes_videos = name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "smolvlm")
        assert (folder/"video_preprocessor_config.json").exists() == takes_videos
        VLMWrapper(folder).save_pretrained(tmp_path/"again"/name)
        assert (tmp_path/"again"/name/"video_preprocessor_config.json").exists() == takes_videos
        if takes_videos: assert "image_mean" in json.loads((folder/"video_preprocessor_config.json").read_text())
