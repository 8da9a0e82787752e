"""KL(base ‖ model) per token on general text: what the base itself writes without any prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from adapters import lora, models
from adapters.synthesis import written

TEXTS: Final = 48


@torch.inference_mode()
def general_kl(model_dir: Path, sha256: str, served: Path | None, folder: Path) -> float:
    """Nats per token, a mean over the tokens of `TEXTS` texts; 0 without an adapter."""
    if served is None:
        return 0.0
    device = models.pick_device()
    tokenizer = models.load_tokenizer(model_dir)
    base, changed = (models.load_base(model_dir, device) for _ in range(2))
    texts = written(base, tokenizer, (), TEXTS, base_hash=sha256, folder=folder)
    adapter = lora.read(served)
    matrices = models.matrices(changed, tuple({n.rsplit(".", 1)[-1] for n in adapter.factors}))
    for name in adapter.factors:
        weight = matrices[name].weight.data
        weight += adapter.delta(name).to(weight)
    total, tokens = 0.0, 0
    for (text,) in texts:
        ids = torch.tensor([text.ids], device=device)
        total += float(_kl(base(ids).logits, changed(ids).logits))
        tokens += len(text.ids)
    return total / max(tokens, 1)


def _kl(base: Tensor, changed: Tensor) -> Tensor:
    ours, theirs = base.float().log_softmax(-1), changed.float().log_softmax(-1)
    return (ours.exp() * (ours - theirs)).sum()
