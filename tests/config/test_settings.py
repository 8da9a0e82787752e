"""config.toml, its documentation, its precedence and its errors."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

from adapters.config import PALORA
from daemon.config import cluster, feeds, gate, monitor, notify, sections, training, verification
from daemon.config.errors import RENAMED, key_paths
from daemon.config.gate import SuiteSettings
from daemon.config.settings import Settings
from daemon.serving import alias
from policies.errors import ConfigError
from policies.gate.limits import PRESETS

CONFIG = Path(__file__).parents[2] / "config.toml"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def load(config: Path, text: str = "", **overrides: Any) -> Settings:
    config.write_text(text)
    return Settings.load(config, overrides)


def problem(config: Path, text: str, **overrides: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        load(config, text, **overrides)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def written(text: str) -> Iterator[tuple[str, Any]]:
    """Every key of a settings file and its value, as TOML has them; list indices left out."""

    def walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(inner, f"{path}.{key}" if path else key)
        elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
            for one in value:
                yield from walk(one, f"{path}[]")
        else:
            yield path, value

    return walk(tomllib.loads(text), "")


def uncommented(text: str) -> str:
    """The file with the keys and tables that it shows as comments."""
    return re.sub(r"^# (?=\w+ = |\[)", "", text, flags=re.MULTILINE)


def defaults(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that has a default, with the default as a file would write it."""
    for name, field in model.model_fields.items():
        inner = [field.annotation, *get_args(field.annotation)]
        section = next((m for m in inner if isinstance(m, type) and issubclass(m, BaseModel)), None)
        if section is not None:
            listed = "" if section is field.annotation else "[]"
            yield from defaults(section, f"{prefix}{name}{listed}.")
        elif not field.is_required():
            yield f"{prefix}{name}", to_jsonable_python(field.default)


def test_every_value_that_is_written_is_the_default() -> None:
    text = CONFIG.read_text()
    values = [(key, value) for key, value in written(text) if "[]" not in key]
    known = dict(defaults(Settings))
    assert len(values) > 60
    assert dict(values) == {key: known[key] for key, _ in values}
    suites = tomllib.loads(text)["gate"]["suites"]
    assert [SuiteSettings(**suite) for suite in suites] == list(Settings().gate.suites)


def test_every_value_that_a_comment_shows_is_the_default_or_an_example() -> None:
    text = CONFIG.read_text()
    shown = [pair for pair in written(uncommented(text)) if pair not in list(written(text))]
    preset = {f"gate.{key}": value for key, value in PRESETS["balanced"].model_dump().items()}
    known = dict(defaults(Settings)) | preset
    examples = {"feeds[].kind"} | {
        f"feeds[].rules[].{key}" for key in ("subject", "relation", "paraphrases")
    }
    compared = {k: v for k, v in shown if known.get(k) is not None and k not in examples}
    assert {"gate.alpha", "gate.retention_floor", "feeds[].every_s"} <= set(compared)
    assert compared == {key: known[key] for key in compared}


def test_every_key_occurs_in_config_toml_in_its_own_table() -> None:
    shown = {key for key, _ in written(uncommented(CONFIG.read_text()))}
    assert shown == set(key_paths(Settings))


def test_every_field_has_a_description() -> None:
    files = (sections, training, cluster, gate, feeds, verification, notify, monitor)
    found = [Settings, *(m for f in files for m in vars(f).values() if isinstance(m, type))]
    for model in found:
        if issubclass(model, Settings | sections.Section):
            for name, field in model.model_fields.items():
                assert field.description, f"{model.__name__}.{name}"


def test_relative_paths_belong_to_the_file(config: Path) -> None:
    settings = load(config, 'state_dir = "s"\n[model]\npath = "../m"\n')
    assert settings.state_dir == config.parent / "s"
    assert settings.model.path == config.parent.parent / "m"
    assert settings.intake.inbox == config.parent / "s" / "inbox"
    assert all(suite.path.is_absolute() for suite in settings.gate.suites)


def test_precedence_is_command_line_environment_file(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "[train]\nrank = 4\nseed = 4\nattempts = 4\n"
    monkeypatch.setenv("PALORAD_TRAIN__RANK", "5")
    monkeypatch.setenv("PALORAD_TRAIN__SEED", "5")
    monkeypatch.setenv("PALORAD_SERVER__URLS", '["http://127.0.0.1:9/"]')
    settings = load(config, text, train={"rank": 6})
    assert (settings.train.rank, settings.train.seed, settings.train.attempts) == (6, 5, 4)
    assert settings.server.urls == ("http://127.0.0.1:9",)


def test_a_path_on_the_command_line_belongs_to_the_current_directory(
    config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load(config, state_dir=Path("s")).state_dir == elsewhere / "s"


def test_no_replay_file_is_written_as_an_empty_text(config: Path) -> None:
    assert load(config, '[train.replay]\nknown = ""\n').train.replay.known is None


def test_settings_are_frozen(config: Path) -> None:
    settings = load(config)
    with pytest.raises(ValueError, match="frozen"):
        settings.train.rank = 3  # type: ignore[misc]  # that it fails is what is tested


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[server]\nurl = []\n", ("unknown key server.url", "did you mean server.urls?")),
        ("[sever]\nkind = 1\n", ("unknown key sever", "did you mean server?")),
        ("rank = 3\n", ("unknown key rank", "train.rank")),
        ("[train.replay]\nreasonin = 1\n", ("did you mean train.replay.reasoning?",)),
        ("[train]\nrank = 0\n", ("train.rank", "greater than or equal to 1", "not 0")),
        ('[train]\nrank = "many"\n', ("train.rank", "'many'")),
        ('[server]\nkind = "tgi"\n', ("server.kind", "'embedded' or 'vllm'", "'tgi'")),
        ('[server]\nurls = ["http://a", "http://b"]\n', ("server", "exactly one")),
        ('[server]\nurls = ["localhost:1"]\n', ("server.urls[0]", "'localhost:1'")),
        ("[server]\nmax_lora_rank = 60\n", ("max_lora_rank must be one of 1 8 16",)),
        ("[train]\nrank_budget = 129\n", ("larger than server.max_lora_rank",)),
        ('[[gate.suites]]\nname = "x"\nrole = "fun"\npath = "p"\n', ("gate.suites[0].role",)),
        (
            '[[gate.suites]]\nname = "t"\nrole = "drift"\npath = "p"\nmargin = 0.1\nform = "chat"',
            ("gate.suites[0]", '"t"', "limited by gate.drift", "remove form, margin"),
        ),
        ("state_dir = [\n", ("is not TOML", "line")),
    ],
)
def test_a_mistake_gets_one_line_with_file_key_and_way_out(
    config: Path, text: str, words: tuple[str, ...]
) -> None:
    message = problem(config, text)
    assert message.startswith(str(config))
    for word in words:
        assert word in message


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_key_that_was_renamed_is_told_its_name(config: Path, old: str, new: str) -> None:
    assert new in set(key_paths(Settings))
    assert old not in set(key_paths(Settings))
    table, _, key = old.rpartition(".")
    assert f"unknown key {old}; it is called {new} now" in problem(
        config, f"[{table}]\n{key} = 1\n"
    )


def test_a_wrong_variable_and_a_wrong_option_name_their_source(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert problem(config, "", train={"rnk": 1}) == (
        "command line: unknown key train.rnk; did you mean train.rank?"
    )
    monkeypatch.setenv("PALORAD_TRAIN__RANKS", "1")
    assert problem(config, "") == ("environment: unknown key train.ranks; did you mean train.rank?")
    monkeypatch.delenv("PALORAD_TRAIN__RANKS")
    monkeypatch.setenv("PALORAD_TRIAN__RANK", "1")
    assert "did you mean PALORAD_TRAIN?" in problem(config, "")


def test_every_variable_that_the_middleware_reads_is_let_through(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A managed server inherits the daemon's environment, so the daemon must start with it."""
    middleware = Path(alias.__file__).read_text()
    read = set(re.findall(r'"(PALORAD_[A-Z_]+)"', middleware))
    assert len(read) == 5
    for variable in read:
        monkeypatch.setenv(variable, "1")
    load(config)


def test_no_file_and_a_directory_for_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PALORAD_CONFIG", raising=False)
    with pytest.raises(ConfigError, match=r"config\.toml: no such settings file; name one with"):
        Settings.load()
    with pytest.raises(ConfigError, match="is a directory"):
        Settings.load(tmp_path)
    monkeypatch.setenv("PALORAD_CONFIG", str(tmp_path / "gone.toml"))
    with pytest.raises(ConfigError, match=r"gone\.toml: no such settings file"):
        Settings.load()


def test_config_toml_is_plain_toml() -> None:
    assert set(tomllib.loads(CONFIG.read_text())) <= set(Settings.model_fields)


def test_the_method_decides_what_is_unset() -> None:
    palora = Settings.model_validate({"train": {"method": "palora"}})
    assert palora.protection.kind == "svf"
    assert palora.train.lineage == "stack"
    assert palora.train.max_replay == 0
    assert palora.train.config == PALORA
    own = Settings.model_validate({"train": {"method": "palorad"}})
    assert own == Settings()
    assert (own.protection.kind, own.train.lineage) == ("activations", "warm-start")


@pytest.mark.parametrize(
    ("tree", "named"),
    [
        ({"train": {"lineage": "warm-start"}}, "train.lineage"),
        ({"train": {"max_replay": 10}}, "train.max_replay"),
        ({"protection": {"kind": "activations"}}, "protection.kind"),
    ],
)
def test_what_another_method_would_be_is_refused(tree: dict[str, Any], named: str) -> None:
    train = {"method": "palora", **tree.get("train", {})}
    with pytest.raises(ValidationError, match=f"remove {named}"):
        Settings.model_validate({**tree, "train": train})
