"""Every knob, as one frozen tree: defaults, then a TOML file, then the environment, then flags.

    Config(server, data, cards, backend, remote, engine, sampling, log)

The environment writes `server.port` as `GREENROOM_SERVER__PORT`; `GREENROOM_DATA` is short for
`data.folder` and `GREENROOM_CONFIG` names the TOML file. docs/config.md lists all knobs.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
import types
from collections.abc import Mapping  # noqa: TC003 - read from annotations
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from backends.local.settings import EngineSettings
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn

    from backends.api import Sampling
    from backends.openai_compat import OpenAICompatSettings
    from personas.limits import ImportLimits

__all__ = [
    "BackendConfig",
    "CardsConfig",
    "Config",
    "DataConfig",
    "EngineConfig",
    "Knob",
    "LogConfig",
    "RemoteConfig",
    "SamplingConfig",
    "ServerConfig",
    "knobs",
    "load",
    "table",
]

T = TypeVar("T")
ENV = "GREENROOM_"
SHORT = {"GREENROOM_DATA": "data.folder"}
CONFIG_FILE = "GREENROOM_CONFIG"


@dataclass(frozen=True, slots=True)
class Knob:
    """One knob for people: `section.key`, its default, what it does and what it may be."""

    key: str
    default: object
    says: str
    allowed: str


def _knob(
    default: T,
    says: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> T:
    meta = {"says": says, "low": low, "high": high, "choices": choices}
    return field(default=default, metadata=meta)


def _default_folder() -> Path:
    home = os.environ.get("XDG_DATA_HOME", "")
    base = Path(home) if home.startswith("/") else Path.home() / ".local" / "share"
    return base / "greenroom"


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where to listen, whom to answer, and how long to wait."""

    host: str = _knob("127.0.0.1", "address to listen on; only this machine by default")
    port: int = _knob(8642, "port to listen on; 0 takes a free one", low=0, high=65535)
    hosts: tuple[str, ...] = _knob(
        (), "more names that the Host header may have, without port; loopback is always there"
    )
    origins: tuple[str, ...] = _knob(
        (), "more origins (such as https://chat.example) whose pages may open a socket"
    )
    frame_bytes: int = _knob(65536, "largest frame of a client", low=1024, high=1 << 20)
    text_chars: int = _knob(16000, "longest message, in characters", low=1, high=1_000_000)
    live_turns: int = _knob(64, "replies that may be spoken at the same time", low=1, high=100_000)
    hello_seconds: float = _knob(5.0, "time for the first frame of a socket", low=0.05, high=60)
    heartbeat_seconds: float = _knob(20.0, "time between pings of a socket", low=1, high=300)
    ready_seconds: float = _knob(
        300.0, "how long a turn waits for a backend that is starting", low=0, high=3600
    )
    turn_seconds: float = _knob(900.0, "how long one reply may take in all", low=1, high=86400)
    grace_seconds: float = _knob(
        5.0, "how long live replies may go on when the server is told to stop", low=0, high=600
    )


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Where everything is kept."""

    folder: Path = field(
        default_factory=_default_folder,
        metadata={
            "says": "conversations, converted weights, cached KV, and your own cards in `personas`",
            "default": "$XDG_DATA_HOME/greenroom, or ~/.local/share/greenroom",
        },
    )


@dataclass(frozen=True, slots=True)
class CardsConfig:
    """What a card or chat file may be before it is refused; see `personas.limits.ImportLimits`."""

    file_bytes: int = _knob(64 << 20, "largest file", low=1024, high=1 << 32)
    inflated_bytes: int = _knob(
        128 << 20, "most that one file may hold unpacked", low=1024, high=1 << 34
    )
    pixels: int = _knob(32_000_000, "largest picture, in pixels", low=1, high=1 << 30)
    lore_entries: int = _knob(10_000, "most entries of one lorebook", low=1, high=1_000_000)
    chat_messages: int = _knob(
        100_000, "most messages of one imported chat", low=1, high=10_000_000
    )


@dataclass(frozen=True, slots=True)
class BackendConfig:
    """Who speaks."""

    name: str = _knob("local", "backend that speaks: local, scripted, remote, or one of a plugin")
    offer: tuple[str, ...] = _knob((), "more backends that a chat may choose on the page")


@dataclass(frozen=True, slots=True)
class RemoteConfig:
    """A server that speaks OpenAI's chat completions; see `backends.openai_compat`."""

    url: str = _knob("", "where /chat/completions is below; set, the backend `remote` is offered")
    model: str = _knob("", "the server's name of the model")
    key_env: str = _knob("", "environment variable that holds the server's key")
    context: int = _knob(8192, "tokens that the model takes", low=64, high=1 << 24)
    extras: tuple[str, ...] = _knob(
        (), "sampling fields beyond OpenAI's that it takes: top_k, min_p, repetition_penalty"
    )


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The local engine; see `backends.local.settings.EngineSettings`."""

    model: str = _knob(
        "gemma-3-270m", "packaged model, path of a Hugging Face folder, or synthetic:NAME"
    )
    device: str = _knob(
        "auto", "what computes; auto is a CUDA device, if any", choices=("auto", "cpu", "cuda")
    )
    threads: int = _knob(0, "CPU threads; 0 uses every core", low=0, high=1024)
    context: int = _knob(4096, "most tokens of one prompt and its reply", low=64, high=1 << 20)
    max_running: int = _knob(8, "replies computed together", low=1, high=1024)
    max_queued: int = _knob(64, "turns that may wait for the engine", low=1, high=100_000)
    max_wait_seconds: int = _knob(
        60, "longest wait for a turn's first step; then it is refused", low=1, high=3600
    )
    step_tokens: int = _knob(256, "tokens of one scheduling step", low=1, high=65536)
    draft_tokens: int = _knob(
        3, "guesses that a step verifies where few speak; 0 is none", low=0, high=64
    )
    store: str = _knob("tiered", "where KV is kept between turns", choices=("tiered", "none"))
    device_bytes: int = _knob(
        512 << 20, "pool of KV that attention reads", low=1 << 20, high=1 << 44
    )
    host_bytes: int = _knob(1 << 30, "host memory for KV", low=0, high=1 << 44)
    disk_bytes: int = _knob(4 << 30, "disk for KV", low=0, high=1 << 46)
    tenant_bytes: int = _knob(
        0, "host memory for KV of one tenant; 0 is all of it", low=0, high=1 << 44
    )
    remote_url: str = _knob("", "Redis or Valkey server for KV, shared between engines")
    remote_deadline_ms: int = _knob(
        250, "what a call to it may take, in ms; then it is a miss", low=1, high=60_000
    )
    remote_ttl_seconds: int = _knob(
        7 * 86400, "how long it keeps KV that nobody uses", low=60, high=1 << 31
    )


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How the next token is drawn; what is unset is as the model's profile has it."""

    temperature: float | None = _knob(None, "0 is greedy", low=0, high=5)
    top_k: int | None = _knob(None, "draw from the k likeliest; 0 is off", low=0, high=1 << 20)
    top_p: float | None = _knob(None, "draw from the likeliest of this mass", low=0.001, high=1)
    min_p: float | None = _knob(
        None, "drop tokens below this share of the likeliest", low=0, high=0.999
    )
    repetition_penalty: float | None = _knob(None, "above 1 repeats less", low=0.1, high=10)
    seed: int | None = _knob(None, "fixes the draw; unset: fresh each turn", low=0, high=2**63 - 1)
    max_tokens: int | None = _knob(None, "longest reply", low=1, high=32768)


@dataclass(frozen=True, slots=True)
class LogConfig:
    """What is logged, to stderr."""

    level: str = _knob(
        "info", "least level that is written", choices=("debug", "info", "warning", "error")
    )
    format: str = _knob(
        "auto", "auto: console on a terminal, else json", choices=("auto", "console", "json")
    )


@dataclass(frozen=True, slots=True)
class Config:
    """All of it."""

    server: ServerConfig = field(default_factory=ServerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    cards: CardsConfig = field(default_factory=CardsConfig)
    backend: BackendConfig = field(default_factory=BackendConfig)
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def import_limits(self) -> ImportLimits:
        """What files of characters and chats may be."""
        from personas.limits import ImportLimits

        values = {f.name: getattr(self.cards, f.name) for f in dataclasses.fields(self.cards)}
        return ImportLimits(**values)

    def engine_settings(self) -> EngineSettings:
        """What the engine process is told."""
        values = {f.name: getattr(self.engine, f.name) for f in dataclasses.fields(self.engine)}
        return EngineSettings(data_dir=self.data.folder, **values)

    def remote_settings(self) -> OpenAICompatSettings | None:
        """What the backend `remote` is told; None when no url is set. Raises `ConfigError`."""
        if not self.remote.url:
            return None
        from backends.openai_compat import OpenAICompatSettings

        remote = self.remote
        try:
            return OpenAICompatSettings(
                name="remote",
                base_url=remote.url,
                model=remote.model,
                key_env=remote.key_env,
                context=remote.context,
                extras=remote.extras,
            )
        except ValueError as error:
            raise ConfigError(f"[remote]: {error}", key="remote") from error

    def make_sampling(self, base: Sampling) -> Sampling:
        """How turns are drawn: `base`, which suits the model, with what is set here over it."""
        names = [f.name for f in dataclasses.fields(self.sampling)]
        values = {name: getattr(self.sampling, name) for name in names}
        return dataclasses.replace(base, **{k: v for k, v in values.items() if v is not None})


SECTIONS: Mapping[str, type] = types.MappingProxyType(
    {
        "server": ServerConfig,
        "data": DataConfig,
        "cards": CardsConfig,
        "backend": BackendConfig,
        "remote": RemoteConfig,
        "engine": EngineConfig,
        "sampling": SamplingConfig,
        "log": LogConfig,
    }
)


def load(
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Config:
    """The configuration; later sources win: defaults, `file`, `environ`, `flags` (`section.key`).

    Raises `ConfigError` naming an unknown knob and its nearest, or a wrong value.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, object] = {}
    if file is None and environ.get(CONFIG_FILE):
        file = Path(environ[CONFIG_FILE])
    if file is not None:
        values.update(_from_file(file))
    values.update(_from_environ(environ))
    values.update(_checked(key, value, "command line") for key, value in (flags or {}).items())
    sections = {
        name: cls(
            **{
                key.partition(".")[2]: value
                for key, value in values.items()
                if key.startswith(name + ".")
            }
        )
        for name, cls in SECTIONS.items()
    }
    return Config(**sections)


def knobs() -> Iterator[Knob]:
    """Every knob, section by section."""
    for section, cls in SECTIONS.items():
        for f in dataclasses.fields(cls):
            meta = f.metadata
            low, high = meta.get("low"), meta.get("high")
            allowed = ", ".join(meta.get("choices", ()))
            if low is not None:
                allowed = f"{low} to {high}"
            default = meta.get("default", f.default)
            yield Knob(f"{section}.{f.name}", default, meta["says"], allowed)


def table() -> str:
    """All knobs as the Markdown table of docs/config.md."""
    lines = ["| knob | default | allowed | what it does |", "|---|---|---|---|"]
    for k in knobs():
        default = {None: "unset", (): "none", "": "none"}.get(cast("None", k.default), k.default)
        lines.append(f"| `{k.key}` | {default} | {k.allowed or '–'} | {k.says} |")
    return "\n".join(lines)


def _from_file(path: Path) -> Iterator[tuple[str, object]]:
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    for section, table in tree.items():
        if section not in SECTIONS:
            _unknown(f"{path}: no section [{section}]", section, SECTIONS)
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {section} must be a table, [{section}]", key=section)
        for key, value in table.items():
            yield _checked(f"{section}.{key}", value, str(path))


def _from_environ(environ: Mapping[str, str]) -> Iterator[tuple[str, object]]:
    spelled = {ENV + k.key.upper().replace(".", "__"): k.key for k in knobs()} | SHORT
    for name, text in sorted(environ.items()):
        if not name.startswith(ENV) or name == CONFIG_FILE:
            continue
        if name not in spelled:
            bare = {ENV + s.rpartition("__")[2]: s for s in spelled if "__" in s}
            near = difflib.get_close_matches(name, [*bare, *spelled], n=1, cutoff=0.5)
            nearest = bare.get(near[0], near[0]) if near else None
            raise ConfigError(f"environment: no knob {name}", key=name, nearest=nearest)
        yield _checked(spelled[name], _parse(text, spelled[name]), "environment")


def _field(key: str, where: str) -> tuple[dataclasses.Field[object], object]:
    section, _, name = key.partition(".")
    by_name = {f.name: f for f in dataclasses.fields(SECTIONS[section])}
    if name not in by_name:
        _unknown(f"{where}: no knob {key}", key, [f"{section}.{n}" for n in by_name])
    return by_name[name], get_type_hints(SECTIONS[section])[name]


def _unknown(message: str, word: str, known: Mapping[str, object] | list[str]) -> NoReturn:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    raise ConfigError(message, key=word, nearest=near[0] if near else None)


def _parse(text: str, key: str) -> object:
    """Text of the environment as TOML would have it; what does not parse stays text."""
    _, hint = _field(key, "environment")
    plain = _plain(hint)
    if plain is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    for kind in (int, float):
        if plain is kind:
            try:
                return kind(text)
            except ValueError:
                return text
    return text


def _plain(hint: object) -> object:
    """The hint without `| None` and without what a tuple holds."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(h for h in get_args(hint) if h is not type(None))
    return get_origin(hint) or hint


def _checked(key: str, value: object, where: str) -> tuple[str, object]:
    """The knob with its value in the right type. Raises `ConfigError`."""
    f, hint = _field(key, where)
    plain = _plain(hint)
    names = {str: "text", Path: "a path", int: "a whole number", float: "a number"}

    def wrong(wanted: str) -> NoReturn:
        raise ConfigError(f"{where}: {key} must be {wanted}, not {value!r}", key=key)

    if plain is tuple:
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            wrong("a list of texts")
        return key, tuple(value)
    if plain is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if plain is Path and isinstance(value, str) and value:
        value = Path(value).expanduser()
    if isinstance(value, bool) or not isinstance(value, cast("type", plain)):
        wrong(names[cast("type", plain)])
    if isinstance(value, Path):
        return key, value.absolute()
    choices: tuple[str, ...] = f.metadata.get("choices", ())
    if choices and value not in choices:
        wrong("one of " + ", ".join(choices))
    low: float | None = f.metadata.get("low")
    high: float | None = f.metadata.get("high")
    if low is not None and high is not None and not low <= cast("float", value) <= high:
        wrong(f"from {low} to {high}")
    return key, value
