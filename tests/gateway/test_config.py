"""gateway.config: four sources, one tree, and a clear error for everything else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.api import Sampling
from backends.local.settings import EngineSettings
from backends.openai_compat import OpenAICompatSettings
from gateway.config import Config, EngineConfig, SamplingConfig, knobs, load, table
from gateway.errors import ConfigError

DOC = Path(__file__).parents[2] / "docs" / "config.md"


def write(folder: Path, text: str) -> Path:
    file = folder / "greenroom.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_defaults() -> None:
    """Without sources the server listens on loopback only, and all knobs have their defaults."""
    config = load(environ={})
    assert (config.server.host, config.server.port) == ("127.0.0.1", 8642)
    assert config == Config()


def test_engine_defaults_are_the_engines_own(tmp_path: Path) -> None:
    """The engine section without its folder is EngineSettings, field by field."""
    config = load(environ={"GREENROOM_DATA": str(tmp_path)})
    assert config.engine_settings() == EngineSettings(data_dir=tmp_path)
    names = {f.name for f in dataclasses.fields(EngineSettings)} - {"data_dir"}
    assert {f.name for f in dataclasses.fields(EngineConfig)} == names


def test_sampling_defaults_are_the_contracts_own() -> None:
    """What is unset is the model's own, what is set goes over it; every field but `stop`."""
    base = Sampling(temperature=0.3, min_p=0.1)
    assert Config().make_sampling(base) == base
    set_here = Config(sampling=SamplingConfig(temperature=0.0))
    assert set_here.make_sampling(base) == Sampling(temperature=0.0, min_p=0.1)
    names = {f.name for f in dataclasses.fields(Sampling)} - {"stop"}
    assert {f.name for f in dataclasses.fields(SamplingConfig)} == names


def test_later_sources_win(tmp_path: Path) -> None:
    """Flags beat the environment, which beats the file, which beats the defaults."""
    file = write(tmp_path, "[server]\nport = 1\nlive_turns = 7\n[sampling]\ntemperature = 0\n")
    environ = {"GREENROOM_SERVER__PORT": "2", "GREENROOM_LOG__LEVEL": "debug"}
    config = load(file, environ, {"server.port": 3})
    assert config.server.port == 3
    assert load(file, environ).server.port == 2
    assert config.server.live_turns == 7
    assert config.sampling.temperature == 0.0
    assert config.log.level == "debug"
    named = {"GREENROOM_CONFIG": str(file)}
    assert load(environ=named).server.port == 1


def test_lists_and_paths(tmp_path: Path) -> None:
    """The environment writes lists with commas; folders become absolute."""
    environ = {
        "GREENROOM_SERVER__HOSTS": "a.example, b.example",
        "GREENROOM_DATA": str(tmp_path / "x"),
        "GREENROOM_SAMPLING__SEED": "5",
    }
    config = load(environ=environ)
    assert config.server.hosts == ("a.example", "b.example")
    assert config.data.folder == tmp_path / "x"
    assert config.sampling.seed == 5
    assert load(environ={"GREENROOM_DATA": "here"}).data.folder.is_absolute()


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("[sever]\nport = 1", "sever", "server"),
        ("[server]\nprot = 1", "server.prot", "server.port"),
        ("[engine]\nzzzzzzzzzz = 1", "engine.zzzzzzzzzz", None),
        ("server = 1", "server", None),
        ("[server]\nport = 'x'", "server.port", None),
        ("[server]\nport = true", "server.port", None),
        ("[server]\nport = 70000", "server.port", None),
        ("[server]\nhosts = 'a'", "server.hosts", None),
        ("[server]\nhosts = [1]", "server.hosts", None),
        ("[sampling]\ntop_p = nan", "sampling.top_p", None),
        ("[engine]\nstore = 'disk'", "engine.store", None),
        ("[data]\nfolder = ''", "data.folder", None),
        ("[server", "", None),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, key: str, nearest: str | None) -> None:
    """Unknown names, wrong types and values out of range are named, with the nearest name."""
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text), {})
    assert (caught.value.key, caught.value.nearest) == (key, nearest)
    assert key in caught.value.message


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [
        ("GREENROOM_PORT", "1", "GREENROOM_SERVER__PORT"),
        ("GREENROOM_SERVER__PROT", "1", "GREENROOM_SERVER__PORT"),
        ("GREENROOM_SERVER__PORT", "eighty", None),
    ],
)
def test_wrong_environment(name: str, value: str, nearest: str | None) -> None:
    """A variable of ours that sets nothing is an error, not silence."""
    with pytest.raises(ConfigError) as caught:
        load(environ={name: value})
    assert caught.value.nearest == nearest


def test_wrong_flag_and_missing_file(tmp_path: Path) -> None:
    """Flags are checked like the rest, and a file that is not there is one line."""
    with pytest.raises(ConfigError, match=r"server\.port must be from 0 to 65535"):
        load(environ={}, flags={"server.port": -1})
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.toml", {})


@given(st.sampled_from([k.key for k in knobs()]), st.text(max_size=8))
def test_no_text_breaks_it(key: str, text: str) -> None:
    """Any text in any variable gives a configuration or a ConfigError."""
    refusal = ""
    try:
        load(environ={"GREENROOM_" + key.upper().replace(".", "__"): text})
    except ConfigError as error:
        refusal = error.message
    assert refusal == "" or key in refusal


def test_remote_backend(tmp_path: Path) -> None:
    """A url makes a remote backend of the section; without one there is none."""
    assert Config().remote_settings() is None
    file = write(tmp_path, "[remote]\nurl = 'http://h/v1'\nmodel = 'm'\nextras = ['min_p']\n")
    environ = {"GREENROOM_REMOTE__KEY_ENV": "KEY", "GREENROOM_BACKEND__OFFER": "scripted, local"}
    config = load(file, environ)
    assert config.backend.offer == ("scripted", "local")
    assert config.remote_settings() == OpenAICompatSettings(
        "remote", "http://h/v1", "m", key_env="KEY", extras=("min_p",)
    )


@pytest.mark.parametrize(
    "wrong", ["url = 'ftp://h'", "url = 'http://h/v1'", "url = 'http://h'\nextras = ['x']"]
)
def test_wrong_remote_backend(tmp_path: Path, wrong: str) -> None:
    """An address that is none, a model that is missing and an unknown field are refused."""
    config = load(write(tmp_path, f"[remote]\n{wrong}\n"), {})
    with pytest.raises(ConfigError, match=r"\[remote\]"):
        config.remote_settings()


def test_doc_has_every_knob() -> None:
    """docs/config.md holds the table of all knobs exactly as the code would write it."""
    assert table() in DOC.read_text(encoding="utf-8")


def test_data_folder_by_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The default folder follows XDG_DATA_HOME when that is absolute."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert load(environ={}).data.folder == tmp_path / "greenroom"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert load(environ={}).data.folder == tmp_path / "home" / ".local" / "share" / "greenroom"
