"""The command ``dragoman``. Only argparse is imported before a command runs, so that --help is quick."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .parser import FLAGS, make_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 done, 1 an error that was told in one line, 2 wrong usage, 130 Ctrl-C."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.print_help()
        return 2
    from ..stream import DragomanError

    _write_utf8()
    try:
        code = _COMMANDS[args.command](args)
        sys.stdout.flush()  # here, where a full disk can still be told
        return code
    except DragomanError as error:
        sys.stderr.write(f"dragoman: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        _let_go_of_output()
        return 0
    except OSError as error:
        sys.stderr.write(f"dragoman: {error}\n")
        _let_go_of_output()
        return 1


def _write_utf8() -> None:
    """Captions that go into a file or a pipe are UTF-8 whatever the locale; a terminal gets what it can show."""
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]  # closed by whoever started us
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    out: Any = sys.stdout
    if not isinstance(out, io.TextIOWrapper) or "PYTHONIOENCODING" in os.environ:
        return
    if out.isatty():
        out.reconfigure(errors="replace")
    else:
        out.reconfigure(encoding="utf-8")


def _let_go_of_output() -> None:
    """What could not be written is not tried again at the end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _transcribe(args: argparse.Namespace) -> int:
    from .transcribe import Wish, check, transcribe_files

    options = _options(args)
    wish = Wish(
        tuple(args.files),
        _form(args),
        realtime=args.realtime,
        stats=args.stats,
        out=args.out,
        beside=args.form is not None,
        overwrite=args.overwrite,
        only_translation=args.only_translation,
        separate=args.separate,
    )
    todo = check(wish, options)
    return transcribe_files(todo, _load(options), options)


def _listen(args: argparse.Namespace) -> int:
    from .listen import listen
    from .microphone import Microphone

    options = _options(args)
    microphone = Microphone(args.device, loopback=args.loopback)  # before the model: a missing microphone should not cost a minute
    return listen(_load(options), options, microphone=microphone, form=_form(args), stats=args.stats)


def _serve(args: argparse.Namespace) -> int:
    from .serve import run_server

    options = _options(args)
    return run_server(lambda: _load(options), options)


def _connect(args: argparse.Namespace) -> int:
    from .connect import Wanted, connect, read_key

    targets = _codes(args.to)
    wanted = Wanted(
        args.url,
        args.file,
        args.language,
        targets or None,
        args.block_ms,
        args.steady,
        realtime=args.realtime,
        device=args.device,
        loopback=args.loopback,
        key=read_key(args.key_file, os.environ),
    )
    return connect(wanted, _form(args))


def _devices(args: argparse.Namespace) -> int:
    from .listen import list_devices

    return list_devices()


def _print_options(args: argparse.Namespace) -> int:
    from ..stream.option_table import options_page

    sys.stdout.write(options_page(FLAGS))
    return 0


def _bench(args: argparse.Namespace) -> int:
    from .bench import Plan, check, run_bench

    options = _options(args)
    blocks = _blocks(args.blocks)
    settings = tuple(_options(argparse.Namespace(**{**vars(args), "block_ms": block})).session for block in blocks)
    plan = Plan(args.clips, settings, args.split, args.talk_seconds, args.limit, args.seed, args.long, args.out)
    clips = check(plan, options)
    return run_bench(plan, clips, _load(options), options)


def _blocks(given: str) -> list[int]:
    from ..stream import ConfigError

    try:
        blocks = [int(part) for part in given.split(",")]
    except ValueError:
        blocks = []
    if not blocks or len(set(blocks)) < len(blocks):
        raise ConfigError(f"--blocks is {given!r}, expected different numbers of ms, as in 320,640,960")
    return blocks


def _train(args: argparse.Namespace) -> int:
    # The one command that is not a client: it only opens the door to the training tool, by name, and shares no code with it.
    from importlib import import_module

    try:
        run = import_module("dragoman.model.training.run")
    except ImportError as error:
        sys.stderr.write(f'dragoman: training needs more packages ({error}): pip install "dragoman[train]"\n')
        return 1
    run.main([args.what, "--config", str(args.config), "--part", str(args.part), "--parts", str(args.parts)])
    return 0


def _export(args: argparse.Namespace) -> int:
    # Like training, a door to a tool of model/: no client.
    from importlib import import_module

    try:
        export = import_module("dragoman.model.export").export
    except ImportError as error:
        sys.stderr.write(f'dragoman: exporting needs more packages ({error}): pip install "dragoman[export]"\n')
        return 1
    shown = sys.stderr.isatty()
    out = export(args.folder, args.out, precision=args.precision, assistant=args.assistant, progress=shown, once=args.once)
    size_mb = sum(path.stat().st_size for path in (out / "onnx").iterdir()) / 1e6
    sys.stderr.write(f"dragoman: {out} holds {args.precision} graphs of {size_mb:.1f} MB; run it with --model {out}\n")
    return 0


def _codes(parts: Sequence[str]) -> list[str]:
    return [code.strip() for part in parts for code in part.split(",") if code.strip()]


def _options(args: argparse.Namespace) -> Any:
    from ..stream import load_options

    flags = {dotted: getattr(args, flag.strip("-").replace("-", "_"), None) for dotted, flag in FLAGS.items()}
    flags = {dotted: value for dotted, value in flags.items() if value not in (None, [])}
    if args.to:
        flags["session.targets"] = _codes(args.to)
    return load_options(args.config, flags, environment=os.environ, assignments=args.set)


def _load(options: Any) -> Any:
    from ..stream import load_model

    return load_model(options.model, progress=sys.stderr.isatty())


def _form(args: argparse.Namespace) -> Any:
    return args.form or ("live" if sys.stdout.isatty() and getattr(args, "out", None) in (None, Path("-")) else "txt")


_COMMANDS = {
    "transcribe": _transcribe,
    "listen": _listen,
    "serve": _serve,
    "connect": _connect,
    "devices": _devices,
    "options": _print_options,
    "bench": _bench,
    "train": _train,
    "export": _export,
}
