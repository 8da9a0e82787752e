"""Servers that several files share: starting one takes long."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live import Live, model


@pytest.fixture(scope="session", params=["embedded", pytest.param("vllm", marks=pytest.mark.vllm)])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    """One running server of each kind over a tiny model."""
    root = tmp_path_factory.mktemp(request.param)
    server = Live(request.param, root / "state", model(root / "model"))
    yield server.start()
    server.stop()
