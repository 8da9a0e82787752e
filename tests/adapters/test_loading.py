"""How a base is loaded: once, and not at all where its weights are quantised."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adapters import models
from adapters.errors import UnusableModel
from tests.support import tiny

LIMITED = """
import resource, sys
from pathlib import Path
import torch
import transformers.models.llama.modeling_llama
from adapters import models
path, share = Path(sys.argv[1]), float(sys.argv[2])
size = (path / "model.safetensors").stat().st_size
lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
held = int(lines["VmData"].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (held + int(share * size),) * 2)
model = models.load_base(path, torch.device("cpu"))
assert sum(p.numel() * p.element_size() for p in model.parameters()) >= 0.99 * size
"""


def loaded(model: Path, share: float) -> int:
    """The exit status of a process that loads a model with so much of its size to write in."""
    command = [sys.executable, "-c", LIMITED, str(model), str(share)]
    return subprocess.run(command, capture_output=True, check=False).returncode


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_loading_takes_the_memory_of_the_model_once(tmp_path: Path) -> None:
    model = tiny.build(tmp_path / "base", hidden=1024, layers=4, intermediate=4096)
    assert (model / "model.safetensors").stat().st_size > 200e6
    assert loaded(model, 1.5) == 0
    assert loaded(model, 0.5) != 0, "the limit says nothing"


@pytest.mark.parametrize("said", [{"quant_method": "fp8"}, {"quant_method": "awq", "bits": 4}])
def test_a_quantised_base_is_refused_with_what_to_name_instead(
    tmp_path: Path, said: dict[str, object]
) -> None:
    model = tiny.build(tmp_path / "base")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
    told = rf"quantised \({said['quant_method']}\).*name the model that they were made of"
    with pytest.raises(UnusableModel, match=told):
        models.load_base(model, torch.device("cpu"))


@pytest.mark.gpu
def test_on_a_gpu_the_base_is_there_in_bf16(tmp_path: Path) -> None:
    model = models.load_base(tiny.build(tmp_path / "base"), torch.device("cuda"))
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("cuda", torch.bfloat16)}
    assert all(buffer.device.type == "cuda" for buffer in model.buffers())
