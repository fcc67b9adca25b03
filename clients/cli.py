"""The command ``dragoman``. Only argparse is imported before a command runs, so that --help is quick."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_EXAMPLES = """\
examples:
  dragoman transcribe talk.flac                  live text on a terminal, plain lines into a pipe
  dragoman transcribe talk.flac --srt > talk.srt
  dragoman transcribe a.wav b.mp3 --json         one event a line, with word times
  dragoman transcribe talk.flac --to de          with a German translation below each segment
  dragoman listen                                live captions from the microphone; Ctrl-C ends
  dragoman serve                                 a page with live captions on http://localhost:8000, sockets below it
  dragoman connect localhost:8000 talk.flac      the same words from a server
  dragoman bench CLIPS                           word errors, delays, flicker and cost on this machine

Nothing is sent anywhere but to the server that you name: the model runs on your own machine.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 done, 1 an error that was told in one line, 2 wrong usage, 130 Ctrl-C."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.print_help()
        return 2
    from ..stream import DragomanError

    try:
        return args.run(args)
    except DragomanError as error:
        sys.stderr.write(f"dragoman: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _transcribe(args: argparse.Namespace) -> int:
    from .transcribe import Wish, check, transcribe_files

    options = _options(args)
    wish = Wish(tuple(args.files), _form(args), realtime=args.realtime, stats=args.stats, output=args.output)
    check(wish, options)
    return transcribe_files(wish, _load(options), options)


def _listen(args: argparse.Namespace) -> int:
    from .listen import listen
    from .microphone import Microphone

    options = _options(args)
    microphone = Microphone(args.device)  # before the model: a missing microphone should not cost a minute
    return listen(_load(options), options, microphone=microphone, form=_form(args), stats=args.stats)


def _serve(args: argparse.Namespace) -> int:
    from .serve import run_server

    options = _options(
        args,
        {
            "server.host": args.host,
            "server.port": args.port,
            "server.max_sessions": args.max_sessions,
            "server.allow_hosts": args.allow_host or None,
            "server.allow_origins": args.allow_origin or None,
        },
    )
    return run_server(lambda: _load(options), options)


def _connect(args: argparse.Namespace) -> int:
    from .connect import Wanted, connect

    targets = _codes(args.to)
    wanted = Wanted(args.url, args.file, args.language, targets or None, args.block_ms, realtime=args.realtime, device=args.device)
    return connect(wanted, _form(args))


def _devices(args: argparse.Namespace) -> int:
    from .listen import list_devices

    return list_devices()


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
    run.main([args.what, "--config", str(args.config)])
    return 0


def _export(args: argparse.Namespace) -> int:
    # Like training, a door to a tool of model/: no client.
    from importlib import import_module

    try:
        export = import_module("dragoman.model.export").export
    except ImportError as error:
        sys.stderr.write(f'dragoman: exporting needs more packages ({error}): pip install "dragoman[export]"\n')
        return 1
    out = export(args.folder, args.out, precision=args.precision, assistant=args.assistant, progress=sys.stderr.isatty())
    size_mb = sum(path.stat().st_size for path in (out / "onnx").iterdir()) / 1e6
    sys.stderr.write(f"dragoman: {out} holds {args.precision} graphs of {size_mb:.1f} MB; run it with --model {out}\n")
    return 0


def _codes(parts: Sequence[str]) -> list[str]:
    return [code.strip() for part in parts for code in part.split(",") if code.strip()]


def _options(args: argparse.Namespace, more: dict[str, Any] | None = None) -> Any:
    from ..stream import load_options

    targets = _codes(args.to)
    flags: dict[str, Any] = {
        **(more or {}),
        "session.language": args.language,
        "session.targets": targets or None,
        "session.block_ms": args.block_ms,
        "session.vad.kind": args.vad,
        "model.name": args.model,
        "model.runtime": args.runtime,
        "model.threads": args.threads,
    }
    return load_options(args.config, flags)


def _load(options: Any) -> Any:
    from ..stream import load_model

    return load_model(options.model, progress=sys.stderr.isatty())


def _form(args: argparse.Namespace) -> Any:
    return args.form or ("live" if sys.stdout.isatty() and getattr(args, "output", None) is None else "txt")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dragoman",
        description="Live captions, transcripts and translations from one speech language model on your own machine.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, help="show the version and end")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    transcribe = commands.add_parser(
        "transcribe", help="write down what is said in audio files", description="Files (WAV, FLAC, Ogg, MP3) → text."
    )
    transcribe.add_argument("files", nargs="+", type=Path, metavar="FILE", help="audio files, read block by block")
    transcribe.add_argument("--realtime", action="store_true", help="go no faster than the audio, as a microphone would")
    transcribe.add_argument("--output", type=Path, metavar="FOLDER", help="write one text file for each audio file into FOLDER")
    _common(transcribe)
    transcribe.set_defaults(run=_transcribe)

    live = commands.add_parser("listen", help="live captions from the microphone", description="Microphone → text, until Ctrl-C.")
    live.add_argument("--device", type=int, metavar="N", help="an input device by its number in 'dragoman devices'")
    _common(live)
    live.set_defaults(run=_listen)

    _server_parsers(commands)
    listing = commands.add_parser("devices", help="list the microphones", description="Input devices; * marks the default.")
    listing.set_defaults(run=_devices)

    _bench_parser(commands)
    train = commands.add_parser(
        "train", help="train or fine-tune a small model", description="One run from one YAML file; see docs/training.md."
    )
    steps = ("train", "prepare", "plot")
    train.add_argument(
        "what", nargs="?", choices=steps, default="train", help="prepare: only decode audio and make targets; plot: draw the curve"
    )
    train.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML file of the run")
    train.set_defaults(run=_train)
    _export_parser(commands)
    return parser


def _server_parsers(commands: Any) -> None:
    server = commands.add_parser(
        "serve", help="live captions for browsers and programs", description="A web page, sockets and a REST endpoint on one model."
    )
    server.add_argument("--host", metavar="ADDRESS", help="where to listen (default: 127.0.0.1, this machine only; 0.0.0.0: the network)")
    server.add_argument("--port", type=int, metavar="N", help="default: 8000; 0: any free one")
    server.add_argument("--max-sessions", type=int, metavar="N", help="sessions at once (default: 8)")
    server.add_argument("--allow-host", action="append", metavar="NAME", help="a name under which the server is reached")
    server.add_argument("--allow-origin", action="append", metavar="ORIGIN", help="another site whose pages may use it")
    _task(server)
    _running(server)
    server.set_defaults(run=_serve)

    client = commands.add_parser(
        "connect", help="captions from a server", description="A file, or else the microphone, through a server → text."
    )
    client.add_argument("url", metavar="URL", help="the server, e.g. localhost:8000")
    client.add_argument("file", nargs="?", type=Path, metavar="FILE", help="an audio file (default: the microphone)")
    client.add_argument("--realtime", action="store_true", help="send no faster than the audio, as a microphone would")
    client.add_argument("--device", type=int, metavar="N", help="an input device by its number in 'dragoman devices'")
    _forms(client)
    _task(client)
    client.set_defaults(run=_connect)


def _bench_parser(commands: Any) -> None:
    bench = commands.add_parser(
        "bench", help="measure words, delays and cost on this machine", description="Clips with transcripts → figures; see docs/bench.md."
    )
    bench.add_argument("clips", type=Path, metavar="CLIPS", help="a folder of sound files with a .txt beside each, or a store")
    bench.add_argument("--split", metavar="NAME", help="of a store: which clips, e.g. dev-clean")
    bench.add_argument("--blocks", default="320,640,960", metavar="N,N", help="block sizes in ms (default: %(default)s)")
    bench.add_argument("--talk-seconds", type=float, default=120.0, metavar="S", help="clips are joined up to so long (default: 120)")
    bench.add_argument("--limit", type=int, metavar="N", help="only the first clips")
    bench.add_argument("--seed", type=int, default=0, metavar="N", help="of the pauses between clips (default: 0)")
    bench.add_argument("--long", type=int, metavar="MINUTES", help="then one stream of so many minutes: memory and CPU for each")
    bench.add_argument("--out", type=Path, metavar="FOLDER", help="write bench.json, bench.txt and bench.png into FOLDER")
    _running(bench)
    bench.set_defaults(run=_bench, to=[], language=None, block_ms=None)


def _export_parser(commands: Any) -> None:
    export = commands.add_parser(
        "export", help="write a model for ONNX Runtime", description="A checkpoint folder → graphs that run without torch."
    )
    export.add_argument("folder", type=Path, metavar="MODEL", help="config.json, tokenizer.json and safetensors")
    export.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder, or MODEL itself: it gets an onnx/")
    export.add_argument("--precision", choices=("fp32", "int8", "int4"), default="int8", help="of the weights (default: %(default)s)")
    export.add_argument("--assistant", type=Path, metavar="FOLDER", help="its MTP drafter (default: MODEL/assistant)")
    export.set_defaults(run=_export)


def _common(parser: argparse.ArgumentParser) -> None:
    _forms(parser)
    _task(parser)
    _running(parser)
    parser.add_argument("--stats", action="store_true", help="speed, drafts and guards on standard error at the end")


def _forms(parser: argparse.ArgumentParser) -> None:
    form = parser.add_argument_group(
        "output (default: live text on a terminal, else one line for each segment)"
    ).add_mutually_exclusive_group()
    for name, what in (
        ("json", "one event a line"),
        ("srt", "SubRip captions"),
        ("vtt", "WebVTT captions"),
        ("txt", "one line for each segment"),
    ):
        form.add_argument(f"--{name}", dest="form", action="store_const", const=name, help=what)


def _task(parser: argparse.ArgumentParser) -> None:
    task = parser.add_argument_group("task")
    task.add_argument("--language", metavar="CODE", help="language spoken (default: en)")
    task.add_argument("--to", action="append", default=[], metavar="CODE[,CODE]", help="translate into, e.g. de or de,fr")
    task.add_argument("--block-ms", type=int, metavar="N", help="audio between two hypotheses (default: 640; 320 quick, 960 calm)")


def _running(parser: argparse.ArgumentParser) -> None:
    running = parser.add_argument_group("running")
    running.add_argument("--model", metavar="NAME", help="'small' (default, in the package) or a checkpoint folder")
    running.add_argument("--runtime", choices=("onnx", "torch"), help="default: ONNX Runtime where the model has exported graphs")
    running.add_argument("--vad", choices=("webrtc", "silero"), help="voice detector (default: silero)")
    running.add_argument("--threads", type=int, metavar="N", help="threads of the model (default: the runtime decides)")
    running.add_argument("--config", type=Path, metavar="FILE", help="YAML file with options; flags win over it")


class _Version(argparse.Action):
    """Looks the version up only when asked: reading package metadata takes longer than parsing."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("dragoman")
        except PackageNotFoundError:
            found = "(not installed)"
        sys.stdout.write(f"dragoman {found}\n")
        parser.exit()
