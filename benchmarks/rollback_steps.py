"""Worker steps of the rollback's measurement: a random adapter at once, in place of learning."""

from __future__ import annotations

from daemon.children.worker import StepContext
from daemon.ledger.records import Adapter, Served
from daemon.training.messages import TrainDone, TrainRequest
from tests.support.fake_steps import evaluate, probe

__all__ = ["evaluate", "probe", "train"]


def train(desk: StepContext) -> TrainDone:
    """Publish factors drawn by the revision's number, with their identity."""
    import torch  # noqa: PLC0415 - seconds, which the other steps need not wait

    from adapters.generate import Generator  # noqa: PLC0415
    from tests.support import live  # noqa: PLC0415

    request = TrainRequest.model_validate_json(desk.request)
    generator = Generator(request.model_dir, max_rank=16, device=torch.device("cpu"))
    name = live.publish(generator, request.served, request.number).served_name
    sha256 = f"{request.number:064}"
    return TrainDone(
        adapter=Adapter(sha256=sha256, rank=request.rank),
        served=Served(name=name, sha256=sha256),
        rank=request.rank,
        report={},
        seconds={},
    )
