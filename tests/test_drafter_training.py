"""Training the drafter: its steps are those of the decoder, its targets the backbone's own words, and its folder is one that loads."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("rapidfuzz", reason="needs the extra train")
pytest.importorskip("scipy", reason="needs the extra train")

from dragoman.model.errors import ConfigError  # noqa: E402
from dragoman.model.load import load  # noqa: E402
from dragoman.model.offline import transcribe_job  # noqa: E402
from dragoman.model.store import Store  # noqa: E402
from dragoman.model.torch_backend import TorchBackend  # noqa: E402
from dragoman.model.training import run, text  # noqa: E402
from dragoman.model.training.batches import BatchOptions  # noqa: E402
from dragoman.model.training.drafting import DrafterOptions, draft_logits, drafting_loss, hear, new_drafter, starts  # noqa: E402
from dragoman.model.training.rows import IGNORE, Batch  # noqa: E402
from dragoman.model.training.run import RunOptions, StoreOptions  # noqa: E402
from dragoman.model.training.splices import FRAME  # noqa: E402
from dragoman.model.training.trainer import Trainer, TrainOptions  # noqa: E402
from dragoman.model.work import run as run_job  # noqa: E402

from .tiny_models import HEARING, ROLES, TEXT, TRANSLATING, noise, randomise, some_ids, tiny_config, tiny_drafter, tiny_model  # noqa: E402
from .training_fakes import SENTENCES, make_batches, make_store, make_student  # noqa: E402


def make_batch(tokens: list[list[int]], frames: int, length: int) -> Batch:
    """Rows of three prompt tokens, audio and text; the first text token is forced, the others are asked for."""
    b = len(tokens)
    ids, labels = torch.zeros(b, length, dtype=torch.int64), torch.full((b, length), IGNORE)
    sound, is_text = torch.zeros(b, length, FRAME), torch.zeros(b, length, dtype=torch.bool)
    for i, said in enumerate(tokens):
        ids[i, :3], is_text[i, :3] = torch.tensor([2, 5, 6]), True
        sound[i, 3 : 3 + frames] = torch.from_numpy(noise(i, frames))
        at = 3 + frames
        ids[i, at : at + len(said)], is_text[i, at : at + len(said)] = torch.tensor(said), True
        labels[i, at : at + len(said) - 1] = torch.tensor(said[1:])
    none = torch.zeros(0)
    return Batch(sound, ids, is_text, labels, none, torch.zeros(b, length, 2), *[none] * 7, torch.full((b,), frames), 1.0)


def test_a_taught_draft_is_the_decoders_draft() -> None:
    """Step by step, the logits of training are those of the backend that decodes, beyond the sliding window too."""
    model, drafter = tiny_model(0), tiny_drafter(1)
    rows = [some_ids(7, 12).tolist(), some_ids(8, 9).tolist()]
    batch = make_batch(rows, frames=20, length=40)
    places, valid = starts(batch, 3)
    with torch.no_grad():
        taught = draft_logits(drafter, hear(model, batch), places, 3)
    backend = TorchBackend(model, drafter, slack_tokens=64)
    compared = 0
    for b, said in enumerate(rows):
        for s, place in enumerate(places[b].tolist()):
            if not valid[b, s, 0]:
                continue
            cache = backend.new_cache()
            backend.step([(cache, np.array([2, 5, 6]))])
            backend.listen([(cache, noise(b, 20))])
            hidden = backend.step([(cache, np.array(said[: place - 22]))])[0].hidden[-1][None]
            assert cache.length == place + 1 > TEXT.sliding_window
            for step in range(int(valid[b, s].sum())):
                token = np.array(said[place - 22 + step : place - 21 + step])
                logits, hidden = backend.draft_logits([cache], token, hidden)
                torch.testing.assert_close(taught[b, s, step], logits[0], atol=2e-4, rtol=1e-4)
                compared += 1
    assert compared == (10 + 9 + 8) + (7 + 6 + 5)


@pytest.mark.parametrize("kinds", [ROLES, TRANSLATING, HEARING], ids=["roles", "plain", "hearing"])
def test_a_taught_draft_is_the_decoders_where_layers_have_roles(kinds: dict[str, Any]) -> None:
    """The window counts what was heard alone, and text is read where the decoder keeps it."""
    model = tiny_model(0, tiny_config(**kinds))
    special = replace(model.config.special, bos=text.BOS, begin_of_audio=text.BEGIN_AUDIO, end_of_audio=text.END_AUDIO)
    model = replace(model, config=replace(model.config, special=special))
    drafter = new_drafter(model.config.backbone, DrafterOptions(hidden_size=16, intermediate_size=32, num_attention_heads=12, layers="SFF"))
    randomise(drafter, 4)
    said, frames = [text.END_AUDIO, text.TRANSCRIBE, *some_ids(7, 9).tolist()], 20
    batch = make_batch([said], frames=frames, length=40)
    batch.ids[0, :3] = torch.tensor([text.BOS, text.BEGIN_AUDIO, text.BEGIN_AUDIO])
    batch.labels[0, 23] = IGNORE
    places, valid = starts(batch, 3)
    with torch.no_grad():
        taught = draft_logits(drafter, hear(model, batch), places, 3)
    backend = TorchBackend(model, drafter, slack_tokens=64)
    for s, place in enumerate(places[0].tolist()):
        cache = backend.new_cache()
        backend.step([(cache, batch.ids[0, :3].numpy())])
        backend.listen([(cache, noise(0, frames))])
        hidden = backend.step([(cache, np.array(said[: place - 22]))])[0].hidden[-1][None]
        assert cache.length == place + 1
        for step in range(int(valid[0, s].sum())):
            logits, hidden = backend.draft_logits([cache], np.array(said[place - 22 + step : place - 21 + step]), hidden)
            torch.testing.assert_close(taught[0, s, step], logits[0], atol=2e-4, rtol=1e-4)
    assert int(valid.sum()) == 8 + 7 + 6


def test_a_draft_ends_where_the_text_does() -> None:
    batch = make_batch([[9, 10, 11, 12], [9, 10]], frames=4, length=16)
    places, valid = starts(batch, 3)
    assert places[0].tolist() == [7, 8] and valid[0].tolist() == [[True, True, False], [True, False, False]]
    assert not valid[1].any(), "one token was asked for: nothing is left to draft"


def test_targets_are_what_the_backbone_says() -> None:
    """The backbone's probabilities at t + s, whatever the transcript holds there: a perfect drafter's loss is their entropy."""
    model, drafter = tiny_model(0), tiny_drafter(1)
    batch = make_batch([some_ids(7, 6).tolist()], frames=4, length=16)
    heard = hear(model, batch)
    loss, figures = drafting_loss(drafter, heard, batch, 2)
    other = batch.ids.clone()
    other[0, 12] = (other[0, 12] + 1) % 80  # the last token is no one's input, and no one's target
    same, _ = drafting_loss(drafter, heard, replace(batch, ids=other), 2)
    assert torch.equal(loss, same) and 0 <= figures["kept"] <= 2
    entropy = -(heard.probabilities * heard.probabilities.log()).sum(-1)
    assert loss > entropy[0, 8:12].min()
    with pytest.raises(ConfigError, match="drafter.layers is 'SF'.*'full_attention'"):
        new_drafter(replace(TEXT, layer_types=("full_attention",) * 2), DrafterOptions(layers="SF"))
    with pytest.raises(ConfigError, match="num_attention_heads is 3, expected a multiple of the key heads, 1 and 2"):
        new_drafter(TEXT, DrafterOptions(num_attention_heads=3))


@pytest.mark.train
def test_a_drafter_learns_and_its_folder_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    tokenizer = text.train_tokenizer(iter(SENTENCES * 4), folder / "tokenizer.json", vocab_size=320)
    student = make_student()
    (folder / "sizes.json").write_text(json.dumps(asdict(student.config.backbone)))
    make_store(tmp_path / "store", features=False)
    trainer = Trainer(
        student,
        make_batches(tmp_path, tokenizer, labelled=1.0),
        folder,
        TrainOptions(warmup_steps=5, mel_steps=0, hearing_steps=0, threads=1),
    )
    for step in range(25):
        trainer.update(trainer.batches[step])
    trainer.save()
    wanted = DrafterOptions(hidden_size=32, intermediate_size=64, num_attention_heads=2, steps=40, warmup_steps=5, log_every=20, threads=1)
    options = RunOptions(
        folder=str(folder),
        stores=(StoreOptions(str(tmp_path / "store"), features=False),),
        probe_split="train",
        batches=BatchOptions(shapes=((96, 3, 1.0),), labelled=1.0, silence=0.2),
        drafter=replace(wanted, clips=4),
    )
    found = run.build_drafter(options)
    steps = [float(line.split(": ")[1].split()[0]) for line in capsys.readouterr().out.splitlines() if line.startswith("drafter step")]
    assert len(steps) == 2 and steps[1] < steps[0]
    assert found is not None and found.drafted > 0 and found.forwards <= found.tokens
    plain, drafting = load(folder / "model", runtime="torch"), load(folder / "model", runtime="torch", assistant=folder / "assistant")
    clip = Store(tmp_path / "store").clips[0]
    samples = Store(tmp_path / "store").samples(clip)
    alone, drafted = (
        run_job(plain.backend, transcribe_job(plain, samples)),
        run_job(drafting.backend, transcribe_job(drafting, samples, max_draft=4)),
    )
    assert alone.ids == drafted.ids and drafted.drafted_tokens > 0
