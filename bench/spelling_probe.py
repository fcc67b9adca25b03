"""How well words could be spelt from what is heard: one small net learns characters from a layer of a model, and from its teacher.

    python bench/spelling_probe.py --store FOLDER                        # from the teacher's features, every 24 ms as they are
    python bench/spelling_probe.py --store FOLDER --every-40-ms          # from the same, as often as the model could have them
    python bench/spelling_probe.py --store FOLDER --model small --layer 6
    python bench/spelling_probe.py --store FOLDER --model small --layer 8 --delay 6 --known librispeech

Three convolutions learn CTC on the same hours of transcribed speech each time (as ``align.FeatureProbe``, with two outputs for each
40 ms), and spell the dev split greedily. They know nothing of words, so the character error rate tells hearing from language: what is
wrong with the teacher's features is the probe's own, what a layer has beyond that was not heard. With ``--known`` the net learns nothing
from that source, and spells as many of its training clips as of the dev split: what it has fewer errors in there, and has not with the
teacher's features, the layer knows by heart.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from dragoman.model.load import model_folder
from dragoman.model.scoring import normalise
from dragoman.model.store import Clip, Store
from dragoman.model.training import text
from dragoman.model.training.batches import BatchOptions
from dragoman.model.training.precision import autocast
from dragoman.model.training.probe import student_of
from dragoman.model.training.rows import Row, collate
from dragoman.model.training.speech import Speech
from dragoman.model.training.splices import FRAME
from dragoman.model.training.teachers import CENTRE_SAMPLES, HOP_SAMPLES, SPREAD, WIDTH, MoonshineEncoder
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

BATCH_S = 250.0
LONGEST_S = 14.0
Spoken = tuple[int, Clip, str]
Hear = Callable[[Store, Sequence[Clip]], list[Tensor]]


def teacher(speech: Speech, *, every_frame: bool) -> Hear:
    """The encoder's standardised states of clips, from the store where it has them; ``every_frame``: interpolated to one for each frame."""
    encoder, (mean, spread) = MoonshineEncoder(), speech.spread

    def hear(store: Store, clips: Sequence[Clip]) -> list[Tensor]:
        rows = [
            np.asarray(speech.tables[0][c.id], np.float32) if c.id in speech.tables[0] else encoder(store.samples(c)) / SPREAD
            for c in clips
        ]
        found = [((r - mean) / spread).astype(np.float32) for r in rows]
        return [torch.from_numpy(_at_frames(r) if every_frame else r) for r in found]

    return hear


def _at_frames(rows: np.ndarray) -> np.ndarray:
    count = len(rows) * HOP_SAMPLES // FRAME
    at = np.clip(((np.arange(count) + 0.5) * FRAME - CENTRE_SAMPLES) / HOP_SAMPLES, 0, len(rows) - 1.001)
    low = at.astype(np.int64)
    part = (at - low)[:, None].astype(np.float32)
    return rows[low] * (1 - part) + rows[low + 1] * part


def layer(model: str, depth: int, delay: int) -> Hear:
    """The model's states after ``depth`` layers on whole clips, ``delay`` frames later than what they are of."""
    student, _ = student_of(model_folder(model))

    @torch.inference_mode()
    def hear(store: Store, clips: Sequence[Clip]) -> list[Tensor]:
        rows: list[Row] = []
        for clip in clips:
            row = Row()
            row.finish(np.pad(store.samples(clip), (0, delay * FRAME)), 0, delay, np.random.default_rng(0))
            rows.append(row)
        longest = max(len(row.frames) for row in rows) + 2
        with autocast():
            states = student.hidden_states(collate(rows, longest, (np.zeros(WIDTH, np.float32), np.ones(WIDTH, np.float32))), depth)[-1]
        return [x[2 + delay : 2 + len(row.frames)].float() for x, row in zip(states, rows, strict=True)]

    return hear


class SpellingProbe(nn.Module):
    """[B, rows, inputs] → [B, rows · each, classes] log-probabilities."""

    def __init__(self, inputs: int, each: int, width: int = 256) -> None:
        super().__init__()
        self.each, self.classes = each, len(text.CTC_CHARACTERS)
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("spread", torch.ones(inputs))
        first, second = nn.Conv1d(inputs, width, 5, padding=2), nn.Conv1d(width, width, 5, padding=2)
        self.net = nn.Sequential(first, nn.GELU(), second, nn.GELU(), nn.Conv1d(width, self.classes * each, 1))

    def forward(self, x: Tensor) -> Tensor:
        said = self.net(((x - self.mean) / self.spread).mT).mT.float()
        return said.reshape(len(x), -1, self.classes).log_softmax(-1)


def learn(hear: Hear, store: Store, spoken: Sequence[Spoken], *, each: int, passes: int) -> SpellingProbe:
    """CTC on clips of one store; what is heard is kept in memory (9 h of a layer of width 256: 0.4 GB)."""
    groups = _groups(spoken)
    heard = {
        clip.id: x.to(torch.bfloat16)
        for group in track(groups, description="hearing")
        for (_, clip, _), x in zip(group, hear(store, [clip for _, clip, _ in group]), strict=True)
    }
    some = torch.cat(list(heard.values())[::16]).float()
    torch.manual_seed(0)
    probe, rng = SpellingProbe(some.shape[1], each), np.random.default_rng(0)
    probe.mean, probe.spread = some.mean(0), some.std(0) + 1e-3
    optimiser = torch.optim.AdamW(probe.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=passes * len(groups), pct_start=0.1)
    for number in range(passes):
        for i in track(rng.permutation(len(groups)), description=f"pass {number + 1}"):
            group = groups[int(i)]
            x = nn.utils.rnn.pad_sequence([heard[clip.id].float() for _, clip, _ in group], batch_first=True)
            lengths = torch.tensor([len(heard[clip.id]) * each for _, clip, _ in group])
            targets = [text.ctc_targets(words) for _, _, words in group]
            counts = torch.tensor([len(target) for target in targets])
            with autocast():
                said = probe(x)
            flat = torch.tensor([c for target in targets for c in target])
            loss = F.ctc_loss(said.transpose(0, 1), flat, lengths, counts, reduction="sum", zero_infinity=True) / counts.sum()
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(probe.parameters(), 1.0)
            optimiser.step()
            schedule.step()
    return probe.eval()


def _groups(spoken: Sequence[Spoken]) -> list[list[Spoken]]:
    groups: list[list[Spoken]] = [[]]
    for item in sorted(spoken, key=lambda item: item[1].samples):
        if (len(groups[-1]) + 1) * item[1].seconds > BATCH_S and groups[-1]:
            groups.append([])
        groups[-1].append(item)
    return groups


@torch.inference_mode()
def spell(probe: SpellingProbe, heard: Sequence[Tensor]) -> list[str]:
    texts: list[str] = []
    for x in heard:
        with autocast():
            best = probe(x[None])[0].argmax(-1).tolist()
        texts.append("".join(text.CTC_CHARACTERS[c] for c, _ in groupby(best) if c).strip())
    return texts


def main(arguments: Sequence[str] | None = None) -> None:
    import jiwer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="a store of speech with the teacher's features (dragoman train prepare)")
    parser.add_argument("--model", help="hear with a layer of this model instead of the teacher")
    parser.add_argument("--layer", type=int, default=6)
    parser.add_argument("--delay", type=int, default=BatchOptions().delay_frames, help="with --model: frames")
    parser.add_argument("--every-40-ms", action="store_true", help="with the teacher: as often as a model's frames")
    parser.add_argument("--split", default="dev-clean")
    parser.add_argument("--clips", type=int, default=150, help="of that split")
    parser.add_argument("--hours", type=float, default=9.0, help="to learn from")
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--known", metavar="SOURCE", help="spell training clips of this source too, of which the net has learnt none")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    speech, dev = Speech([(given.store, 1.0)], None, labels=[0.8]), Speech([(given.store, 1.0)], None, split=given.split)
    usual = [item for item in speech.labelled if item[1].id in speech.tables[0] and item[1].seconds < LONGEST_S]
    usual = [usual[i] for i in np.random.default_rng(0).permutation(len(usual))]
    clips = {given.split: [clip for _, clip, _ in dev.labelled[: given.clips]]}
    if given.known:
        clips[given.known] = [clip for _, clip, _ in usual if clip.source == given.known][: given.clips]
        usual = [item for item in usual if item[1].source != given.known]
    until = np.searchsorted(np.cumsum([clip.seconds for _, clip, _ in usual]), given.hours * 3600) + 1
    hear = layer(given.model, given.layer, given.delay) if given.model else teacher(speech, every_frame=given.every_40_ms)
    each = 2 if given.model or given.every_40_ms else 1
    probe = learn(hear, speech.stores[0], usual[:until], each=each, passes=given.passes)
    for name, some in clips.items():
        texts = [said or "-" for clip in some for said in spell(probe, hear(dev.stores[0], [clip]))]
        references = [normalise(clip.text) for clip in some]
        wrong, words = 100 * jiwer.cer(references, texts), 100 * jiwer.wer(references, texts)
        print(f"{name}: characters wrong {wrong:.1f} %, words {words:.1f} %: {texts[0]}")


if __name__ == "__main__":
    main()
