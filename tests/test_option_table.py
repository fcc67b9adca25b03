"""docs/options.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from dragoman.clients.cli import _options, main  # pyright: ignore[reportPrivateUsage]
from dragoman.clients.parser import FLAGS, make_parser
from dragoman.stream.config import load_options, option_fields, variable
from dragoman.stream.option_table import options_page

PAGE = Path(__file__).parents[1] / "docs" / "options.md"
ROWS = {
    cells[0].strip("`"): cells[1:] for cells in re.findall(r"^\| (`[^|]*) \|" + r" ([^|]*) \|" * 5 + "$", options_page(FLAGS), re.MULTILINE)
}
# A value for each kind of option that differs from its default.
OTHER = {"text": "other", "list": "de,fr"}
# whose values have a form of their own
SHAPED = {"session.terms": "de:fox=Fuchs,fr:fox=renard", "server.keys": "a-key-of-sixteen-letters,another-key-for-tests"}


SWITCH = "`true`, `false`"


def test_the_page_is_what_the_code_makes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["options"]) == 0
    assert PAGE.read_text(encoding="utf-8") == capsys.readouterr().out, "run: dragoman options > docs/options.md"


def test_every_option_has_a_row_with_a_meaning() -> None:
    assert list(ROWS) == [dotted for dotted, _ in option_fields()] and len(ROWS) > 30
    assert [dotted for dotted, cells in ROWS.items() if not cells[-1].strip()] == []
    assert len({cells[3] for cells in ROWS.values()}) == len(ROWS), "a variable for two options"


def other(dotted: str) -> str:
    default, allowed = ROWS[dotted][0].strip("`"), ROWS[dotted][1]
    if dotted in SHAPED:
        return SHAPED[dotted]
    if allowed in OTHER:
        return OTHER[allowed]
    choices = re.findall(r"`(\w+)`", allowed)
    if choices:
        return next(choice for choice in choices if choice != default)
    low, high = (re.findall(r"[\d.]+", allowed) + ["1000"])[:2]
    return high if "above" not in allowed and "below" not in allowed and high != default else str((float(low) + float(high)) / 2)


@pytest.mark.parametrize("dotted", [dotted for dotted, _ in option_fields()])
def test_every_variable_and_every_range_is_true(dotted: str) -> None:
    extra = ["session.endpoint.start_window_ms=2000"] if dotted == "session.endpoint.start_ms" else []
    changed = load_options(environment={variable(dotted): other(dotted)}, assignments=extra)
    value, default = changed, load_options(assignments=extra)
    for name in dotted.split("."):
        value, default = getattr(value, name), getattr(default, name)
    assert value != default


@pytest.mark.parametrize("dotted", FLAGS)
def test_every_flag_sets_its_option(dotted: str) -> None:
    command = ["serve"] if dotted.startswith("server.") else ["transcribe", "a.wav"]
    value = [] if ROWS[dotted][1] == SWITCH else [other(dotted)]
    args = make_parser().parse_args([*command, FLAGS[dotted], *value])
    value, default = _options(args), load_options()
    for name in dotted.split("."):
        value, default = getattr(value, name), getattr(default, name)
    assert value != default


def test_the_command_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAGOMAN_SESSION_BLOCK_MS", "320")
    assert _options(make_parser().parse_args(["listen"])).session.block_ms == 320
    assert _options(make_parser().parse_args(["listen", "--block-ms", "960"])).session.block_ms == 960
    assert _options(make_parser().parse_args(["listen", "--set", "session.block_ms=480"])).session.block_ms == 480
