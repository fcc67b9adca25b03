"""Options as pydantic models: defaults, then a YAML file, then flags. An unknown key is an error that names the nearest one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from ..model.errors import ConfigError
from ..model.prompt import Term, language_code
from .endpoint import EndpointFrames

KEY_FORM = r"[A-Za-z0-9._~+-]{16,200}"  # of an API key: what may stand in every header that carries one
_SECRET = ("server.keys",)  # options whose values no error shows
Language = Annotated[str, AfterValidator(language_code)]  # wherever one comes in: regions and capitals change nothing


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class VadOptions(_Section):
    """Voice activity detection."""

    kind: Literal["webrtc", "silero"] = Field(
        default="silero",
        description="voice detector; silero tells noise from speech, webrtc costs a sixtieth and takes most noise for speech",
    )
    aggressiveness: int = Field(default=2, ge=0, le=3, description="of webrtc: 0 keeps everything, 3 only clear speech")
    threshold: float = Field(default=0.3, gt=0, lt=1, description="of silero: probability that counts as speech")


class EndpointOptions(_Section):
    """Where segments begin and end."""

    start_ms: int = Field(default=80, ge=40, le=1000, description="so much speech within start_window_ms begins a segment")
    start_window_ms: int = Field(default=160, ge=40, le=2000, description="where start_ms is looked for")
    pre_roll_ms: int = Field(default=240, ge=0, le=2000, description="audio kept from before the first speech")
    lead_in_ms: int = Field(default=360, ge=0, le=2000, description="silence from before the segment that the model hears with it")
    hangover_ms: int = Field(default=600, ge=80, le=5000, description="silence that ends a segment")
    sentence_hangover_ms: int = Field(default=320, ge=80, le=5000, description="the same after a finished sentence")
    short_hangover_ms: int = Field(
        default=120, ge=40, le=5000, description="the same when the segment is full; from half full on the two above shrink towards it"
    )
    trailing_ms: int = Field(default=320, ge=0, le=2000, description="audio after the last speech that the final hypothesis hears at least")
    longest_s: float | None = Field(default=None, ge=2, le=30, description="longest segment, in s; none: what the model can bear")

    @model_validator(mode="after")
    def _fits(self) -> EndpointOptions:
        if self.start_ms > self.start_window_ms:
            raise ValueError(f"start_ms ({self.start_ms}) is more than start_window_ms ({self.start_window_ms})")
        return self

    def frames(self, frame_ms: float, model_longest_s: float) -> EndpointFrames:
        """The same in frames. ``model_longest_s``: the longest segment that the model can bear."""

        def count(duration_ms: float, least: int = 1) -> int:
            return max(least, round(duration_ms / frame_ms))

        longest_s = model_longest_s if self.longest_s is None else min(self.longest_s, model_longest_s)
        pre_roll_frames, start_window_frames = count(self.pre_roll_ms, 0), count(self.start_window_ms)
        return EndpointFrames(
            start_frames=count(self.start_ms),
            start_window_frames=start_window_frames,
            pre_roll_frames=pre_roll_frames,
            lead_in_frames=count(self.lead_in_ms, 0),
            hangover_frames=count(self.hangover_ms),
            sentence_hangover_frames=count(min(self.sentence_hangover_ms, self.hangover_ms)),
            short_hangover_frames=count(self.short_hangover_ms),
            longest_frames=max(pre_roll_frames + start_window_frames + 1, int(longest_s * 1000 / frame_ms)),
        )


class GuardOptions(_Section):
    """Limits on what the model may write."""

    tokens_per_second: float = Field(
        default=12.0, gt=0, le=100, description="tokens that a segment may hold for each second of its audio, besides floor_tokens"
    )
    floor_tokens: int = Field(default=8, ge=1, le=1000, description="tokens that any segment may hold")
    loop_tokens: int = Field(default=12, ge=2, le=1000, description="a repetition over so many tokens in loop_copies copies is cut")
    loop_copies: int = Field(default=3, ge=2, le=100, description="see loop_tokens")
    words_per_second: float = Field(
        default=6.0,
        gt=0,
        le=100,
        description="more words than that and four are an answer, not a transcript (models with instructions)",
    )


class SessionOptions(_Section):
    """What one session does."""

    language: Language = Field(default="en", description="spoken, ISO 639-1")
    targets: tuple[Language, ...] = Field(default=(), description="translations wanted, ISO 639-1")
    glossary: tuple[str, ...] = Field(default=(), description="names and terms that may be spoken, as they should be written")
    terms: tuple[str, ...] = Field(default=(), description="how terms are translated, as de:keeper=Wärter (models with instructions only)")
    style: str | None = Field(
        default=None,
        max_length=200,
        description='formatted text after each segment: "plain" or a style in words (models with instructions only); none: no such text',
    )
    translation: Literal["stable", "draft"] = Field(
        default="stable", description="stable: finished segments only; draft: unfinished ones too, for the time being"
    )
    block_ms: int = Field(default=640, ge=80, le=4000, description="audio between two hypotheses: 320 is quick, 640 the default, 960 calm")
    hold_back_words: int = Field(
        default=1,
        ge=0,
        le=10,
        description="newest words of the unstable tail that are not shown yet: more is calmer, and later; what is committed stays the same",
    )
    steady: bool = Field(
        default=False, description="no word is shown before it is committed, so none that is shown ever changes; later by a block or more"
    )
    patience_blocks: float = Field(
        default=1.6,
        ge=0,
        le=100,
        description="a word that ended so many blocks ago is committed as it is heard now, whatever was heard before; 100: it waits",
    )
    carry_over: bool = Field(
        default=True, description="the last sentence goes into the next segment's prompt, where the model has a place for it"
    )
    max_draft: int | None = Field(
        default=None, ge=0, le=16, description="tokens that the MTP drafter guesses at once; none: as the model says"
    )
    vad: VadOptions = VadOptions()
    endpoint: EndpointOptions = EndpointOptions()
    guards: GuardOptions = GuardOptions()

    @field_validator("terms")
    @classmethod
    def _whole(cls, terms: tuple[str, ...]) -> tuple[str, ...]:
        for term in terms:
            Term.read(term)
        return terms

    @field_validator("targets")
    @classmethod
    def _once(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(targets)) < len(targets):
            raise ValueError(f"a language stands twice in {', '.join(targets)}")
        return targets


class ModelOptions(_Section):
    """Which model, and where it runs."""

    name: str = Field(default="small", description='"small" (in the package) or a checkpoint folder')
    runtime: Literal["auto", "onnx", "torch"] = Field(
        default="auto",
        description="auto: ONNX Runtime where the folder has exported graphs and nothing is asked that only torch does (device other than "
        "cpu, dtype other than float32, an assistant by name), else torch; torch also where ONNX Runtime or its graphs do not load",
    )
    assistant: Path | None = Field(
        default=None,
        description="folder of an MTP drafter, with torch; none: MODEL/assistant, if there is one (exported graphs hold their own drafter)",
    )
    device: str = Field(default="cpu", description="where torch runs the model, e.g. cpu or cuda")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="of the weights, with torch")
    threads: int | None = Field(default=None, ge=1, le=1024, description="of the model; none: the runtime decides")


class ServerOptions(_Section):
    """Who may come, how many, and how long is waited for them."""

    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0: every machine of the network may connect")
    port: int = Field(default=8000, ge=0, le=65535, description="0: any free one")
    max_sessions: int = Field(default=8, ge=1, le=10_000, description="sessions at once")
    workers: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="threads that run the model; none: one a core, at most 8, or one where a forward takes all cores",
    )
    idle_s: float = Field(
        default=60.0, gt=0, description="a connection from which nothing comes for so long, not even the answer to a ping, is closed"
    )
    resume_s: float = Field(default=60.0, ge=0, description="a session whose connection was lost is kept for so long")
    drain_s: float = Field(default=30.0, ge=0, description="after SIGTERM, sessions may go on for so long")
    session_s: float | None = Field(
        default=None, gt=0, description="a session ends after so long, what it has heard is committed; longer files are refused"
    )
    stall_s: float = Field(default=60.0, gt=0, description="a client that takes nothing of what is sent to it for so long is cut off")
    sessions_per_key: int | None = Field(default=None, ge=1, description="sessions at once with the same key; none: max_sessions")
    sessions_per_address: int | None = Field(
        default=None, ge=1, description="sessions at once of one address (of IPv6: one network of 64 bits); none: max_sessions"
    )
    queue_ms: int = Field(
        default=10_000,
        ge=1000,
        le=600_000,
        description="audio that may wait in one session before its sender has to, at most 32 MB; OpenAI's and Deepgram's sockets are read "
        "on up to those 32 MB",
    )
    upload_mb: int = Field(default=512, ge=1, description="largest file for /v1/audio/transcriptions, in MB")
    allow_hosts: tuple[str, ...] = Field(
        default=(), description="names under which the server is reached, besides localhost and plain addresses"
    )
    allow_origins: tuple[str, ...] = Field(default=(), description="pages of other origins that may use it, e.g. https://captions.example")
    keys: tuple[str, ...] = Field(
        default=(),
        repr=False,
        description="clients must show one of these; in a file or this variable others on the machine do not see them",
    )
    keys_file: Path | None = Field(default=None, description="the same from a file, one a line")
    open_to_all: bool = Field(default=False, description="listen beyond this machine although there is no key")
    tls_cert: Path | None = Field(default=None, description="file of a certificate chain (PEM): the server speaks https and wss only")
    tls_key: Path | None = Field(default=None, description="file of its private key (PEM, without a password)")
    proxies: tuple[str, ...] = Field(default=(), description="addresses of proxies whose X-Forwarded-For is believed")
    record: Literal["nothing", "text", "audio", "both"] = Field(
        default="nothing", description="what of every session is stored in record_dir, for the eyes of the server's user only"
    )
    record_dir: Path | None = Field(default=None, description="folder of the recordings")
    record_days: float = Field(default=7.0, gt=0, description="recordings are deleted when they are so old")

    @field_validator("keys")
    @classmethod
    def _are_keys(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if not all(re.fullmatch(KEY_FORM, key) for key in keys):
            raise ValueError("a key is 16 to 200 letters, digits and - . _ ~ +")
        return keys


class Options(_Section):
    """A whole configuration file."""

    model: ModelOptions = ModelOptions()
    session: SessionOptions = SessionOptions()
    server: ServerOptions = ServerOptions()


def load_options(
    path: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    assignments: Sequence[str] = (),
) -> Options:
    """Defaults, then the YAML file, then ``environment``, then ``assignments``, then ``overrides``.

    ``environment``: variables such as DRAGOMAN_SERVER_PORT; others, and empty ones, say nothing. ``assignments``: "server.port=9000".
    ``overrides``: by dotted keys, {"session.block_ms": 320}; a value None says nothing.

    Raises ConfigError naming the file or variable, the key, what was got and what was expected.
    """
    raw = {} if path is None else _read_yaml(path)
    origins: dict[str, str] = {}
    for dotted, text, origin in (*_from_environment(environment or {}), *_from_assignments(assignments)):
        _put(raw, dotted, _value(dotted, text))
        origins[dotted] = origin
    for dotted, value in (overrides or {}).items():
        if value is not None:
            _put(raw, dotted, value)
            origins.pop(dotted, None)
    return parse_options(raw, where="the options" if path is None else str(path), origins=origins)


def parse_options(raw: Mapping[str, Any], *, where: str = "the options", origins: Mapping[str, str] | None = None) -> Options:
    """A nested mapping → Options. Raises ConfigError that lists everything wrong. ``origins``: where some keys came from instead."""
    try:
        return Options.model_validate(raw)
    except ValidationError as error:
        problems = [_problem(dict(item), origins or {}) for item in error.errors()]
        raise ConfigError(f"{where}: " + "; ".join(problems)) from error


def option_fields() -> Iterator[tuple[str, FieldInfo]]:
    """Every option by its dotted key, in the order of the sections."""
    for place, section in _sections(Options, ()):
        yield from ((".".join((*place, name)), field) for name, field in section.model_fields.items() if _section_of(field) is None)


def variable(dotted: str) -> str:
    """The environment variable of an option: server.port → DRAGOMAN_SERVER_PORT."""
    return "DRAGOMAN_" + dotted.upper().replace(".", "_")


def _sections(section: type[BaseModel], place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], type[BaseModel]]]:
    yield place, section
    for name, field in section.model_fields.items():
        inner = _section_of(field)
        if inner is not None:
            yield from _sections(inner, (*place, name))


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """(dotted key, text, origin) of each variable that is set. Raises ConfigError for one of our sections that names no option."""
    known = {variable(dotted): dotted for dotted, _ in option_fields()}
    ours = tuple(variable(name) + "_" for name in Options.model_fields)
    for name, text in environment.items():
        if name in known and text:
            yield known[name], text, name
        elif name.startswith(ours) and name not in known:
            raise ConfigError(f"unknown environment variable {name}; {_hint(name, sorted(known))}")


def _from_assignments(assignments: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    known = [dotted for dotted, _ in option_fields()]
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment}, expected KEY=VALUE as in server.port=9000")
        if dotted not in known:
            raise ConfigError(f"--set {assignment}: unknown key {dotted!r}; {_hint(dotted, known)}")
        yield dotted, text, "--set"


def _value(dotted: str, text: str) -> Any:
    """Text of a variable or flag → what a YAML file would hold: lists by commas, "none" where nothing is a choice."""
    default = dict(option_fields())[dotted].get_default()
    if isinstance(default, tuple):
        return [part.strip() for part in text.split(",") if part.strip()]
    return None if default is None and text.lower() == "none" else text


def _hint(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def _problem(item: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    place = cast(tuple[str | int, ...], item["loc"])
    dotted = ".".join(map(str, place))
    if item["type"] != "extra_forbidden":
        shown = f", got {item['input']!r}" if not isinstance(item["input"], dict) and dotted not in _SECRET else ""
        origin = next((f" (from {name})" for key, name in origins.items() if dotted == key or dotted.startswith(key + ".")), "")
        return f"{dotted}: {item['msg']}{shown}{origin}"
    known = _keys(place[:-1])
    near = difflib.get_close_matches(str(place[-1]), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"unknown key {dotted!r}; {hint}"


def _keys(place: tuple[str | int, ...]) -> list[str]:
    """The keys that a section knows."""
    section: type[BaseModel] = Options
    for name in place:
        inner = section.model_fields[str(name)].annotation
        assert isinstance(inner, type) and issubclass(inner, BaseModel), "only sections have keys"
        section = inner
    return sorted(section.model_fields)


def _put(raw: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    for name in sections:
        inner: Any = raw.setdefault(name, {})
        if not isinstance(inner, dict):  # of a file; the check of the whole tells what is wrong with it
            return
        raw = cast(dict[str, Any], inner)
    raw[key] = value


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML ({str(error).splitlines()[0]})") from error
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected sections with keys, got {type(raw).__name__}")
    return _plain(cast(dict[Any, Any], raw), path)


def _plain(raw: dict[Any, Any], path: Path) -> dict[str, Any]:
    """A copy with string keys all the way down; a section left empty in the file counts as absent."""
    plain: dict[str, Any] = {}
    for key, value in raw.items():
        if not isinstance(key, str):
            raise ConfigError(f"{path}: key {key!r} is {type(key).__name__}, expected a name")
        if value is not None:
            plain[key] = _plain(cast(dict[Any, Any], value), path) if isinstance(value, dict) else value
    return plain
