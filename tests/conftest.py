"""Servers and fitted probes that several files share: making one takes long."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.fitted import KINDS, Fitted
from tests.support.live import Live, model

# An example may take as long as a busy machine needs; CI tries the same ones at every run.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session", params=["embedded", pytest.param("vllm", marks=pytest.mark.vllm)])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    """One running server of each kind over a tiny model."""
    root = tmp_path_factory.mktemp(request.param)
    server = Live(request.param, root / "state", model(root / "model"))
    yield server.start()
    server.stop()


@pytest.fixture(scope="session", params=KINDS)
def fitted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """A tiny base of each architecture with its probe."""
    return Fitted(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """One tiny base with its probe."""
    return Fitted(tmp_path_factory.mktemp("one"), "llama")
