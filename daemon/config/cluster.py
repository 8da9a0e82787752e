"""[train.ray]: the cluster that stages run on."""

from __future__ import annotations

from pydantic import Field

from daemon.config.sections import Section


class RaySettings(Section):
    """[train.ray]: the Ray cluster that trains, with train.launcher = "ray". Every node sees
    state_dir, the model and the replayed files under the same paths as the daemon."""

    address: str = Field(default="127.0.0.1:6379", pattern=r"^[^\s:/]+:\d{1,5}$")
    """HOST:PORT of the cluster's head node. The daemon's host is a node of the cluster too; it can
    join without taking work: `ray start --address=HOST:PORT --num-cpus=0 --num-gpus=0`."""
    num_cpus: int = Field(default=1, ge=1)
    """CPU cores that a stage reserves on its node; it computes with so many threads."""
    num_gpus: int = Field(default=1, ge=0)
    """GPUs that training reserves on its node; 0 trains on the CPU. An evaluation reserves none."""
