"""What synthetic voices read never holds what is measured."""

from __future__ import annotations

import lzma
from pathlib import Path

from dragoman.model.training.sentences import HELD_OUT_PAIRS, plain, read_pairs, write


def test_dev_transcripts_and_held_out_pairs_are_left_out(tmp_path: Path) -> None:
    english = [f"This is the sentence number {i} of all." for i in range(HELD_OUT_PAIRS + 200)]
    with lzma.open(tmp_path / "en-de.tsv.xz", "wt", encoding="utf-8") as file:
        file.writelines(f"{sentence}\tSatz\n" for sentence in english)
    kept, held = read_pairs(tmp_path / "en-de.tsv.xz")
    prompts = ["We measure with this one here.", "We train with this one already.", "A voice reads this one aloud.", "Too short.", held[0]]
    with lzma.open(tmp_path / "sentences-en.txt.xz", "wt", encoding="utf-8") as file:
        file.write("\n".join([*prompts, prompts[2]]))
    manifest = "id\tsplit\ttext\na\tdev-clean\tWE MEASURE WITH THIS ONE HERE\nb\ttrain\tWe train with this one already.\n"
    (tmp_path / "manifest.tsv").write_text(manifest + f"c\tdev-l2\t{kept[0].upper()}\n")
    assert write(tmp_path, tmp_path / "manifest.tsv", tmp_path / "out") == (1, 199)
    assert (tmp_path / "out" / "sentences.txt").read_text() == "A voice reads this one aloud.\n"
    read = {plain(line) for line in (tmp_path / "out" / "pairs-en.txt").read_text().splitlines()}
    assert not read & {plain(sentence) for sentence in [*held, kept[0]]} and plain(kept[1]) in read
