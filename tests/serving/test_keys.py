"""The admin key: whole or not at all, and never an operator's own file overwritten."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from daemon.config.settings import Settings
from daemon.serving import keys, replicas
from policies.errors import ConfigError


def key_of(settings: Settings) -> str:
    """What a start of the daemon leaves in the key's file."""
    replicas.connect(settings)
    return settings.layout.admin_key.read_text().strip()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path)


def test_the_admin_key_is_made_once_for_its_owner_only(settings: Settings) -> None:
    key = key_of(settings)
    assert len(key) == 64
    assert settings.layout.admin_key.stat().st_mode & 0o777 == 0o600
    assert key_of(settings) == key
    assert os.listdir(settings.state_dir) == ["admin.key"]  # noqa: PTH208 - hidden ones too


@pytest.mark.parametrize(
    "left", [b"", b"\n", b"0123456", b"\x00" * 64, b"\xff\xfe" * 32, b"a b" * 9]
)
def test_what_a_crash_left_of_the_key_is_made_again(settings: Settings, left: bytes) -> None:
    """Created and not yet written: it was never made again, and nobody was let in."""
    path = settings.layout.admin_key
    path.write_bytes(left)
    path.chmod(0o600)
    key = key_of(settings)
    assert len(key) == 64
    assert path.stat().st_mode & 0o777 == 0o600
    assert key_of(settings) == key


def test_a_crash_while_the_key_is_made_leaves_none_or_a_whole_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = settings.layout.admin_key

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.fsync", killed)
        keys.ensure(path)
    assert not path.exists()
    path.with_name(".admin.key.tmp").write_text("half")
    assert len(key_of(settings)) == 64


def test_an_operators_key_is_never_replaced(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.key"
    theirs.write_text("short")
    settings = Settings(state_dir=tmp_path, server={"admin_key_file": theirs})
    with pytest.raises(ConfigError, match=r"theirs\.key holds no key"):
        replicas.connect(settings)
    assert theirs.read_text() == "short"
    theirs.write_text("long-enough-to-be-a-key\n")
    replicas.connect(settings)
    assert not settings.layout.admin_key.exists()
