"""Fuzzing guided by coverage, with atheris (``pip install atheris``; no extra has it, no test needs it).

    python -m tests.fuzz                              a million inputs over all targets, and a table (six minutes of CPU)
    python -m tests.fuzz openai_messages --inputs 100000
    python -m tests.fuzz openai_messages --input FILE one input again, as a fuzzer has written it

An input that breaks a promise is written into the folder of --found, and the command ends with 1.
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

# Inputs of each target out of a million and a bit: as many as are worth the time that one takes.
SHARES = {
    "native_messages": 300_000, "openai_messages": 150_000, "openai_translation_messages": 120_000, "deepgram": 150_000,
    "pcm_audio": 12_000, "opus": 25_000, "container": 5_000, "sound_file": 20_000, "numbers": 60_000, "gate": 150_000, "form": 40_000,
    "http": 8_000, "frames": 6_000, "conversation": 6_000,
}  # fmt: skip

_WORDS = (
    "type session.update transcription_session.update input_audio_buffer.append input_audio_buffer.commit session.close "
    "session.input_audio_buffer.append audio session input output format rate transcription language languages keywords turn_detection "
    "server_vad threshold event_id start resume gap finish sample_rate channels encoding opus container pcm_f32le glossary targets "
    "after_seq samples Finalize CloseStream encoding=linear16 sample_rate= keyterm= endpointing= channels= authorization Bearer"
).split()
_TOKENS = ['"\\\\ud800"', "NaN", "1e999", "-1", "null", "\\x00\\x00\\xff\\xff", "RIFF", "fLaC", "OggS", "\\x1a\\x45\\xdf\\xa3"]


def run_all(inputs: int, found: Path) -> int:
    """Each target in a process of its own: a crash of a C library must not end the others."""
    whole, failed, total = sum(SHARES.values()), 0, 0
    print("| target | inputs | CPU s | found |\n|---|---|---|---|", flush=True)
    for name, share in SHARES.items():
        command = [sys.executable, "-m", "tests.fuzz", name, "--inputs", str(inputs * share // whole), "--found", str(found)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        ran = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
        count = int(ran[1]) if ran else 0
        fine = done.returncode == 0 and ran is not None
        total, failed = total + count, failed + (not fine)
        print(f"| `{name}` | {count:,} | {cpu_s:.0f} | {'nothing' if fine else f'see {found}/{name}.log'} |", flush=True)
        if not fine:
            (found / f"{name}.log").write_text((done.stdout + done.stderr)[-20_000:], encoding="utf-8")
    print(f"| all | {total:,} | | |")
    return 1 if failed else 0


def run_one(name: str, inputs: int, found: Path) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["dragoman"]):
        from . import fuzzing
    with tempfile.TemporaryDirectory(prefix="dragoman-corpus-") as folder:
        corpus = Path(folder)
        for number, seed in enumerate(fuzzing.seeds(name)):
            (corpus / f"seed{number}").write_bytes(seed)
        words = corpus.with_suffix(".dict")
        words.write_text("".join(f'"{word}"\n' for word in _WORDS) + "".join('"' + t.replace('"', '\\"') + '"\n' for t in _TOKENS))
        flags = [
            f"-runs={inputs}", "-print_final_stats=1", "-max_len=6000", "-timeout=20", "-rss_limit_mb=1500", f"-dict={words}",
            f"-artifact_prefix={found}/{name}-",
        ]  # fmt: skip
        atheris.Setup([sys.argv[0], *flags, str(corpus)], fuzzing.TARGETS[name])
        atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", choices=SHARES, help="default: all")
    parser.add_argument("--inputs", type=int, default=sum(SHARES.values()), metavar="N", help="of all targets; default: %(default)s")
    parser.add_argument("--found", type=Path, default=Path("build/fuzz"), metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--input", type=Path, metavar="FILE", help="run this input, once")
    args = parser.parse_args()
    args.found.mkdir(parents=True, exist_ok=True)
    if args.target is None:
        return run_all(args.inputs, args.found)
    if args.input is None:
        run_one(args.target, args.inputs, args.found)
    from .fuzzing import TARGETS

    TARGETS[args.target](args.input.read_bytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
