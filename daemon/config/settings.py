"""config.toml, the environment and the command line become one frozen `Settings`."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from pydantic import BaseModel, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from daemon.config.canary import CanarySettings
from daemon.config.errors import check_environment, explain
from daemon.config.feeds import FeedSettings
from daemon.config.gate import GateSettings
from daemon.config.keep import KeepSettings
from daemon.config.layout import Layout
from daemon.config.monitor import MonitorSettings
from daemon.config.notify import NotifySettings
from daemon.config.paraphrases import paraphrase_policy
from daemon.config.sections import (
    DaemonSettings,
    IntakeSettings,
    ModelSettings,
    ProbeSettings,
    ProtectionSettings,
    ServerSettings,
)
from daemon.config.training import TrainSettings
from daemon.config.verification import AnchorSettings
from daemon.config.web import WebSettings
from policies.errors import ConfigError
from policies.facts.paraphrases import ParaphrasePolicy

PREFIX: Final = "PALORAD_"
_Model = TypeVar("_Model", bound=BaseModel)


class Settings(BaseSettings):
    """Everything that can be set; paths are absolute once loaded."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        use_attribute_docstrings=True,
    )

    state_dir: Path = Path("state")
    """The directory for everything that survives a restart: ledger, archive, adapters, probes."""
    model: ModelSettings = ModelSettings()
    """[model]"""
    server: ServerSettings = ServerSettings()
    """[server]"""
    probe: ProbeSettings = ProbeSettings()
    """[probe]"""
    protection: ProtectionSettings = ProtectionSettings()
    """[protection]"""
    train: TrainSettings = TrainSettings()
    """[train]"""
    gate: GateSettings = GateSettings()
    """[gate]"""
    intake: IntakeSettings = IntakeSettings()
    """[intake]"""
    feeds: tuple[FeedSettings, ...] = ()
    """[[feeds]]"""
    keep: KeepSettings = KeepSettings()
    """[keep]"""
    daemon: DaemonSettings = DaemonSettings()
    """[daemon]"""
    anchor: AnchorSettings = AnchorSettings()
    """[anchor]"""
    web: WebSettings = WebSettings()
    """[web]"""
    canary: CanarySettings = CanarySettings()
    """[canary]"""
    monitor: MonitorSettings = MonitorSettings()
    """[monitor]"""
    notify: NotifySettings = NotifySettings()
    """[notify]"""

    @model_validator(mode="before")
    @classmethod
    def _as_the_method_says(cls, given: dict[str, Any]) -> dict[str, Any]:
        """What the method decides outside [train]."""
        train, protection = given.get("train", {}), given.get("protection", {})
        method = train.get("method") if isinstance(train, Mapping) else train.method
        if method != "palora" or not isinstance(protection, Mapping):
            return given
        if protection.get("kind", "svf") != "svf":
            raise ValueError(
                'train.method "palora" has protection.kind = "svf": remove protection.kind, or '
                "choose another method"
            )
        return {**given, "protection": {**protection, "kind": "svf"}}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.train.rank > self.train.rank_budget:
            raise ValueError("train.rank is larger than train.rank_budget")
        if self.train.rank_budget > self.server.max_lora_rank:
            raise ValueError("train.rank_budget is larger than server.max_lora_rank")
        if self.train.launcher == "ray" and self.server.gpu_sharing != "separate":
            raise ValueError(
                'train.launcher "ray" trains on another GPU: set server.gpu_sharing = "separate"'
            )
        names = [feed.name for feed in self.feeds]
        if len(set(names)) != len(names):
            raise ValueError("two feeds have one name")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is passed: `load` alone reads the environment and a file."""
        return (init_settings,)

    @property
    def layout(self) -> Layout:
        """Where everything durable lies."""
        return Layout(self.state_dir, self.intake.inbox)

    @property
    def paraphrase_policy(self) -> ParaphrasePolicy:
        """Everything that is decided about the paraphrases of facts."""
        return paraphrase_policy(self.intake, self.train)

    @property
    def trained_on(self) -> tuple[Path, ...]:
        """The files whose questions the probe and every training use: the gate never asks them."""
        replay = self.train.replay
        return tuple(p for p in (self.probe.skill, replay.known, replay.reasoning) if p is not None)

    @classmethod
    def load(cls, path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
        """Settings from `path` (else $PALORAD_CONFIG, else ./config.toml); raises `ConfigError`.

        `overrides` is a tree of keys that wins over everything; `Path` values in it are relative
        to the current directory, all other relative paths to the file.
        """
        file = _find(path)
        table = _read(file)
        check_environment(cls, PREFIX, os.environ)
        try:
            loaded = _sourced(cls, table)(**_rooted(overrides or {}))
        except ValidationError as error:
            raise ConfigError(explain(cls, file, error, table, overrides or {})) from None
        return cls.model_validate(loaded.model_dump()).rooted(file.parent)

    def rooted(self, base: Path) -> Settings:
        """The same with every path absolute: relative ones below `base`, the inbox's below
        the state directory.
        """
        state = _below(base, self.state_dir)
        inbox = _below(state, self.intake.inbox)
        settings = _absolute(self, base)
        intake = settings.intake.model_copy(update={"inbox": inbox})
        return settings.model_copy(update={"state_dir": state, "intake": intake})


def _find(path: Path | None) -> Path:
    named = os.environ.get("PALORAD_CONFIG") if path is None else path
    file = Path(named or "config.toml").absolute()
    if file.is_dir():
        raise ConfigError(f"{file}: is a directory; name the settings file in it")
    if not file.is_file():
        hint = "" if named else "; name one with --config FILE or PALORAD_CONFIG"
        raise ConfigError(f"{file}: no such settings file{hint}")
    return file


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: is not TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None


def _sourced(base: type[Settings], table: dict[str, Any]) -> type[Settings]:
    class Sourced(base):  # type: ignore[misc, valid-type]  # the base is an argument
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, table)

    return Sourced


def _rooted(tree: Mapping[str, Any]) -> dict[str, Any]:
    def value_of(value: object) -> object:
        if isinstance(value, Mapping):
            return _rooted(value)
        return value.absolute() if isinstance(value, Path) else value

    return {key: value_of(value) for key, value in tree.items()}


def _below(base: Path, path: Path) -> Path:
    return Path(os.path.normpath(base / path.expanduser()))


def _absolute(model: _Model, base: Path) -> _Model:
    def value_of(value: object) -> object:
        if isinstance(value, Path):
            return _below(base, value)
        if isinstance(value, BaseModel):
            return _absolute(value, base)
        if isinstance(value, tuple):
            return tuple(value_of(v) for v in value)
        return value

    return model.model_copy(update={name: value_of(value) for name, value in model})
