"""The flags of every command. Nothing but argparse is imported, so that --help is quick."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_EXAMPLES = """\
examples:
  dragoman transcribe talk.flac                  live text on a terminal, plain lines into a pipe
  dragoman transcribe talk.flac --srt > talk.srt
  dragoman transcribe talks film.mp4 --vtt       a folder and a film: captions beside each file
  dragoman transcribe a.wav b.mp3 --json --out - one event a line, with word times
  dragoman transcribe talk.flac --to de --srt    with a German translation below each caption (--to de,fr: both)
  dragoman listen                                live captions from the microphone; Ctrl-C ends
  dragoman serve                                 a page with live captions on http://localhost:8000, sockets below it
  dragoman connect localhost:8000 talk.flac      the same words from a server
  dragoman bench CLIPS                           word errors, delays, flicker and cost on this machine

Nothing is sent anywhere but to the server that you name: the model runs on your own machine.
"""

# Options that have a flag of their own, by dotted key; any other is reached by --set.
FLAGS = {
    "session.language": "--language",
    "session.targets": "--to",
    "session.block_ms": "--block-ms",
    "session.steady": "--steady",
    "session.glossary": "--glossary",
    "session.style": "--style",
    "session.vad.kind": "--vad",
    "model.name": "--model",
    "model.runtime": "--runtime",
    "model.threads": "--threads",
    "server.host": "--host",
    "server.port": "--port",
    "server.max_sessions": "--max-sessions",
    "server.allow_hosts": "--allow-host",
    "server.allow_origins": "--allow-origin",
    "server.keys_file": "--keys-file",
    "server.open_to_all": "--open-to-all",
    "server.tls_cert": "--tls-cert",
    "server.tls_key": "--tls-key",
    "server.record": "--record",
    "server.record_dir": "--record-dir",
    "server.record_days": "--record-days",
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dragoman",
        description="Live captions, transcripts and translations from one speech language model on your own machine.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, help="show the version and end")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    transcribe = commands.add_parser(
        "transcribe",
        help="write down what is said in files",
        description="Sound and video → text. Several files: with --srt, --vtt, --json or --txt one text file beside each; without one of "
        "these and without --out all text goes to standard output.",
    )
    transcribe.add_argument("files", nargs="+", type=Path, metavar="FILE", help="files of sound or video, and folders that hold some")
    transcribe.add_argument("--realtime", action="store_true", help="go no faster than the audio, as a microphone would")
    into = "write the text files into FOLDER instead; -: everything to standard output"
    transcribe.add_argument("--out", "--output", type=Path, metavar="FOLDER", help=into)
    transcribe.add_argument("--overwrite", action="store_true", help="replace text files that are there already")
    transcribe.add_argument("--only-translation", action="store_true", help="with --to: leave out what is said")
    own = "with --to and --srt or --vtt: captions for each language in a file of its own (talk.srt, talk.de.srt)"
    transcribe.add_argument("--separate", action="store_true", help=own)
    _common(transcribe)

    live = commands.add_parser("listen", help="live captions from the microphone", description="Microphone → text, until Ctrl-C.")
    _devices(live)
    _common(live)

    _server_parsers(commands)
    about = "Input devices; * marks the default, (loopback) what plays on this machine."
    commands.add_parser("devices", help="list the microphones", description=about)
    commands.add_parser("options", help="list every option", description="All options as a table: flags, variables, defaults.")

    _bench_parser(commands)
    train = commands.add_parser(
        "train", help="train or fine-tune a small model", description="One run from one YAML file; see docs/training.md."
    )
    steps = ("train", "prepare", "label", "drafter", "plot")
    what = (
        "prepare: only decode audio and make targets; label: only transcribe with the teachers; drafter: the MTP drafter; plot: the curve"
    )
    train.add_argument("what", nargs="?", choices=steps, default="train", help=what)
    train.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML file of the run")
    train.add_argument(
        "--part", type=int, default=0, metavar="I", help="label: which share of the clips, from 0; one process for each core"
    )
    train.add_argument("--parts", type=int, default=1, metavar="N", help="label: how many shares")
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
    access = server.add_argument_group("who may come")
    access.add_argument("--keys-file", type=Path, metavar="FILE", help="API keys, one a line: clients must show one of them")
    access.add_argument("--open-to-all", action="store_true", default=None, help="listen beyond this machine without any key")
    access.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate chain (PEM): https and wss only")
    access.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key (PEM)")
    record = server.add_argument_group("recording (default: nothing is stored)")
    record.add_argument("--record", choices=("text", "audio", "both"), help="what of every session is stored")
    record.add_argument("--record-dir", type=Path, metavar="FOLDER", help="where")
    record.add_argument("--record-days", type=float, metavar="N", help="for how long (default: 7)")
    _task(server)
    _running(server)

    client = commands.add_parser(
        "connect", help="captions from a server", description="A file, or else the microphone, through a server → text."
    )
    client.add_argument("url", metavar="URL", help="the server, e.g. localhost:8000")
    client.add_argument("file", nargs="?", type=Path, metavar="FILE", help="an audio file (default: the microphone)")
    client.add_argument("--realtime", action="store_true", help="send no faster than the audio, as a microphone would")
    key = "a file that holds the server's key (default: the variable DRAGOMAN_KEY)"
    client.add_argument("--key-file", type=Path, metavar="FILE", help=key)
    _devices(client)
    _forms(client)
    _task(client, of_server=True)


def _bench_parser(commands: Any) -> None:
    bench = commands.add_parser(
        "bench", help="measure words, delays and cost on this machine", description="Clips with transcripts → figures; see docs/bench.md."
    )
    given = "a folder of sound files with a .txt beside each, or a store; without it you are told where to get one"
    bench.add_argument("clips", nargs="?", type=Path, metavar="CLIPS", help=given)
    bench.add_argument("--split", metavar="NAME", help="of a store: which clips, e.g. dev-clean")
    bench.add_argument("--blocks", default="320,640,960", metavar="N,N", help="block sizes in ms (default: %(default)s)")
    bench.add_argument("--talk-seconds", type=float, default=120.0, metavar="S", help="clips are joined up to so long (default: 120)")
    bench.add_argument("--limit", type=int, metavar="N", help="only the first clips")
    bench.add_argument("--seed", type=int, default=0, metavar="N", help="of the pauses between clips (default: 0)")
    bench.add_argument("--long", type=int, metavar="MINUTES", help="then one stream of so many minutes: memory and CPU for each")
    bench.add_argument("--out", type=Path, metavar="FOLDER", help="write bench.json, bench.txt and bench.png into FOLDER")
    _running(bench)
    bench.set_defaults(to=[], language=None, block_ms=None)


def _export_parser(commands: Any) -> None:
    export = commands.add_parser(
        "export", help="write a model for ONNX Runtime", description="A checkpoint folder → graphs that run without torch."
    )
    export.add_argument("folder", type=Path, metavar="MODEL", help="config.json, tokenizer.json and safetensors")
    export.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder, or MODEL itself: it gets an onnx/")
    export.add_argument("--precision", choices=("fp32", "int8", "int4"), default="int8", help="of the weights (default: %(default)s)")
    export.add_argument("--assistant", type=Path, metavar="FOLDER", help="its MTP drafter (default: MODEL/assistant)")
    once = "no matrix twice: model.safetensors keeps what the graphs lack (where FOLDER is MODEL, its unrounded weights are gone)"
    export.add_argument("--once", action="store_true", help=once)


def _devices(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--device", type=int, metavar="N", help="an input device by its number in 'dragoman devices'")
    which.add_argument("--loopback", action="store_true", help="what plays on this machine (a call, a film) instead of a microphone")


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


def _task(parser: argparse.ArgumentParser, *, of_server: bool = False) -> None:
    """``of_server``: what is not given is as the server is configured."""
    language, targets, block_ms = ("as the server is configured",) * 3 if of_server else ("en", "none", "640")
    task = parser.add_argument_group("task")
    task.add_argument("--language", metavar="CODE", help=f"language spoken (default: {language})")
    into = f"translate into, e.g. de or de,fr (default: {targets})"
    task.add_argument("--to", action="append", default=[], metavar="CODE[,CODE]", help=into)
    task.add_argument("--block-ms", type=int, metavar="N", help=f"audio between two hypotheses: 320 quick, 960 calm (default: {block_ms})")
    task.add_argument("--steady", action="store_true", default=None, help="show no word before it is certain not to change")


def _running(parser: argparse.ArgumentParser) -> None:
    running = parser.add_argument_group("running")
    running.add_argument("--model", metavar="NAME", help="'small' (default, in the package) or a checkpoint folder")
    running.add_argument("--runtime", choices=("onnx", "torch"), help="default: ONNX Runtime where the model has exported graphs")
    running.add_argument("--glossary", action="append", default=[], metavar="TERM", help="a name or term as it should be written")
    running.add_argument("--style", help="formatted text in this style, e.g. plain (models with instructions)")
    running.add_argument("--vad", choices=("webrtc", "silero"), help="voice detector (default: silero)")
    running.add_argument("--threads", type=int, metavar="N", help="threads of the model (default: the runtime decides)")
    running.add_argument("--config", type=Path, metavar="FILE", help="YAML file with options; variables and flags win over it")
    running.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any option, e.g. session.vad.threshold=0.5")


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
