"""Layers that learn to translate: what they are shown, that they compute what a stream does, and that nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("sacrebleu", reason="needs the extra train")

from dragoman.model.backend import Backend  # noqa: E402
from dragoman.model.checkpoint import load_model, save_checkpoint  # noqa: E402
from dragoman.model.errors import ConfigError  # noqa: E402
from dragoman.model.load import Loaded, load  # noqa: E402
from dragoman.model.offline import translate_job  # noqa: E402
from dragoman.model.prompt import Task  # noqa: E402
from dragoman.model.torch_backend import TorchBackend  # noqa: E402
from dragoman.model.training import text  # noqa: E402
from dragoman.model.training.batches import BatchOptions  # noqa: E402
from dragoman.model.training.package import Taught, config_of, save_model, small_config  # noqa: E402
from dragoman.model.training.pairs import PairBatches, PairOptions  # noqa: E402
from dragoman.model.training.rows import IGNORE  # noqa: E402
from dragoman.model.training.run import RunOptions, StoreOptions, prepare  # noqa: E402
from dragoman.model.training.run import build_trainer as build_run  # noqa: E402
from dragoman.model.training.student import Depths  # noqa: E402
from dragoman.model.training.trainer import TrainOptions  # noqa: E402
from dragoman.model.training.translating import (  # noqa: E402
    PaceOptions,
    TranslatingOptions,
    Translator,
    build_trainer,
    main,
    read_options,
    with_layers,
    with_marks,
    write,
)
from dragoman.model.work import Append, Work, perform, run  # noqa: E402
from dragoman.stream.drafting import Drafting  # noqa: E402
from dragoman.stream.guards import Guards  # noqa: E402
from dragoman.stream.segment import Segment  # noqa: E402
from dragoman.stream.stats import Stats  # noqa: E402
from dragoman.stream.transcript import Transcript  # noqa: E402

from .test_pairs import GERMAN, write_pairs  # noqa: E402
from .tiny_models import PLAIN, noise, randomise, tiny_config, tiny_model  # noqa: E402
from .training_fakes import SENTENCES, make_store  # noqa: E402

PAIRS = list(zip(SENTENCES[:3], GERMAN, strict=True))
SMALL_ROWS = PairOptions(lengths=(48, 64), positions=192, others=20)
pytestmark = pytest.mark.usefixtures("training_in_float32")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose layers for text are plain, and that translates nothing."""
    folder = tmp_path_factory.mktemp("start")
    tokenizer = text.train_tokenizer(iter([*SENTENCES, *GERMAN] * 4), folder / "tokenizer.json", vocab_size=320)
    config = config_of(asdict(replace(tiny_config().backbone, **PLAIN, vocab_size=tokenizer.get_vocab_size())))
    model = tiny_model(5, config)
    save_checkpoint(folder, model.backbone, model.projector)
    raw = small_config(asdict(config.backbone), Taught(delay_frames=4))
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


@pytest.fixture(scope="module")
def options(start: Path, tmp_path_factory: pytest.TempPathFactory) -> TranslatingOptions:
    texts = tmp_path_factory.mktemp("text")
    write_pairs(texts / "en-de.tsv", PAIRS)
    (texts / "manifest.tsv").write_text(f"split\ttext\ndev-clean\t{SENTENCES[0].upper()}\ntrain\t{SENTENCES[1].upper()}\n")
    pace = PaceOptions(
        steps=60,
        decay_from=40,
        warmup_steps=2,
        log_every=20,
        evaluate_every=60,
        threads=1,
        compile=False,
        average=0.5,
        muon_lr=0.01,
        adam_lr=1e-3,
    )
    given = {"folder": str(tmp_path_factory.mktemp("run")), "start_from": str(start), "text": str(texts)}
    files = {"translations": {"de": "en-de.tsv"}, "manifest": str(texts / "manifest.tsv")}
    return TranslatingOptions(**given, **files, layers=2, batches=SMALL_ROWS, train=pace)  # type: ignore[arg-type]


def batches(start: Path, *, plainly: bool = False, rows: PairOptions = SMALL_ROWS, languages: Sequence[str] = ("de",)) -> PairBatches:
    import tokenizers

    pairs = dict.fromkeys(languages, PAIRS)
    return PairBatches(pairs, tokenizers.Tokenizer.from_file(str(start / "tokenizer.json")), rows, 3, plainly=plainly)


def examples(made: PairBatches, step: int) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of every example of a batch."""
    batch = made[step]
    found = []
    for ids, labels, example in zip(batch.ids, batch.labels, batch.example, strict=True):
        found += [(ids[example == n].tolist(), labels[example == n].tolist()) for n in range(1, int(example.max()) + 1)]
    return found


def test_an_example_is_what_a_session_asks_for(start: Path) -> None:
    """From the language to the end of the translation; only the translation and its end are asked for."""
    loaded = load(start, runtime="torch")
    encode = loaded.tokenizer.encode
    made = batches(start, plainly=True, rows=replace(SMALL_ROWS, several=(0.5, 0.5)))
    single = {(tuple(encode(english)), tuple(encode(german))) for english, german in PAIRS}
    sizes = set()
    for ids, labels in examples(made, 0) + examples(made, 1):
        end = ids.index(text.END)
        source, translation = ids[1:end], ids[end + 1 :]
        assert ids[0] == text.TRANSLATE["de"] and labels == [IGNORE] * end + [*translation, text.END]
        found = [pair for pair in single if tuple(source) == pair[0]]
        sizes.add(len(found))
        assert not found or tuple(translation) == found[0][1]
    assert sizes == {0, 1}, "some are two sentences"


def test_a_batch_is_a_function_of_seed_and_step(start: Path) -> None:
    one, other = batches(start), batches(start)
    other[0]
    assert all(torch.equal(getattr(one[5], name), getattr(other[5], name)) for name in ("ids", "labels", "example", "candidates"))
    assert not torch.equal(one[5].ids, one[6].ids)
    batch = one[5]
    asked = batch.labels[batch.labels != IGNORE]
    assert bool(torch.isin(asked, batch.candidates).all()) and len(batch.candidates) == len(batch.candidates.unique())


def test_a_step_looks_at_few_pieces_in_place_of_all(start: Path) -> None:
    """What its softmax sums over is, on average, what all pieces sum to; its own translations' pieces are never left out."""
    made, scores = batches(start), np.random.default_rng(0).normal(size=320).astype(np.float32)
    sums = []
    for step in range(400):
        batch = made[step]
        assert len(batch.candidates) < made.size / 2
        sums.append(np.exp(scores[batch.candidates.numpy()] + batch.log_counts.numpy()).sum())
        asked = batch.labels[batch.labels != IGNORE].unique()
        assert set(asked.tolist()) == set(batch.candidates[batch.log_counts == 0].tolist())
    everything = np.exp(scores[: made.size]).sum()
    assert abs(np.mean(sums) / everything - 1) < 4 * np.std(sums) / everything / 400**0.5 < 0.1
    plain = batches(start, plainly=True)[0]
    assert sorted(plain.candidates.tolist()) == list(range(made.size)) and not plain.log_counts.any(), "measured with all of them"


def test_rows_take_turns_and_languages_their_shares(start: Path) -> None:
    rows = replace(SMALL_ROWS, weights={"de": 0.25})
    made = batches(start, rows=rows, languages=("de", "fr"))
    assert [tuple(made[step].ids.shape) for step in range(3)] == [(4, 48), (3, 64), (4, 48)]
    first = [ids[0] for step in range(40) for ids, _ in examples(made, step)]
    german = first.count(text.TRANSLATE["de"]) / len(first)
    assert 0.1 < german < 0.3 and set(first) == {text.TRANSLATE["de"], text.TRANSLATE["fr"]}
    measured = [ids[0] for step in range(40) for ids, _ in examples(batches(start, rows=rows, languages=("de", "fr"), plainly=True), step)]
    assert 0.4 < measured.count(text.TRANSLATE["de"]) / len(measured) < 0.6
    with pytest.raises(ConfigError, match="batches.weights names dee; expected languages among de, fr, es"):
        batches(start, rows=replace(SMALL_ROWS, weights={"dee": 1.0}))


def test_a_language_that_is_new_gets_a_token_of_its_own(start: Path) -> None:
    """What a model has never seen has zeros in its table; what it has learnt with stays, zeros too."""
    model = load_model(start)
    table, (de, fr, es) = model.backbone.embed_tokens.weight.data, text.TRANSLATE.values()
    table[[de, fr]] = 0.0
    before = table.clone()
    taught = replace(model, config=replace(model.config, targets=("de",)))
    assert with_marks(taught, ("de", "fr", "es")) is taught
    changed = [i for i in range(len(table)) if not torch.equal(before[i], table[i])]
    assert changed == [fr] and bool(table[es].any())
    assert float(table[fr].norm()) == pytest.approx(float(before.norm(dim=1).median()), rel=1e-3)
    with_marks(model, ("de", "fr"))
    assert 0.0 < float(torch.cosine_similarity(table[de], table[fr], 0).abs()) < 0.9


def test_a_source_may_be_heard_wrong_but_not_its_translation(start: Path) -> None:
    made = batches(start, rows=replace(SMALL_ROWS, wrong_tokens=0.5, unmarked=0.5, several=(1.0,)))
    right = examples(batches(start, plainly=True), 0)
    whole = {tuple(ids[1 : ids.index(text.END)]) for ids, _ in right}
    written = {tuple(label for label in labels if label != IGNORE) for _, labels in right}
    found = examples(made, 0)
    assert any(tuple(ids[1 : ids.index(text.END)]) not in whole for ids, _ in found)
    assert {tuple(label for label in labels if label != IGNORE) for _, labels in found} <= written


def test_training_computes_what_a_stream_does(start: Path) -> None:
    """An example alone in the runtime, behind audio, and among others in a row."""
    model = with_layers(load_model(start), 2)
    randomise(model.backbone, 8)
    translator, batch = Translator(model), batches(start)[0]
    with torch.inference_mode():
        states = translator.hidden_states(batch.ids, batch.example)
    backend = TorchBackend(model)
    for n in range(1, int(batch.example[0].max()) + 1):
        cache = backend.new_cache()
        backend.listen([(cache, noise(n, 7))])
        own = batch.example[0] == n
        (step,) = backend.step([(cache, batch.ids[0, own].numpy())])
        np.testing.assert_allclose(states[0, own].numpy(), np.stack([np.asarray(state) for state in step.hidden]), atol=2e-4)


def test_new_layers_begin_as_the_models_own_and_change_nothing_else(start: Path) -> None:
    model = load_model(start)
    grown = with_layers(model, 2)
    assert grown.config.backbone.layer_roles[-2:] == ("translation",) * 2
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(grown.backbone.state_dict()[name], value), name
    text_layers = [i for i, role in enumerate(model.config.backbone.layer_roles) if role == "text"]
    for new, old in zip((-2, -1), text_layers, strict=True):
        theirs = model.backbone.layers[old : old + 2]
        assert torch.equal(grown.backbone.layers[new].self_attn.q_proj.weight, theirs[0].self_attn.q_proj.weight)  # type: ignore[union-attr]
        assert torch.equal(grown.backbone.layers[new].mlp.up_proj.weight, theirs[1].mlp.up_proj.weight)  # type: ignore[union-attr]
    assert with_layers(grown, 2) is grown
    for wanted, count in ((grown, 1), (model, 3), (model, 0)):
        with pytest.raises(ConfigError, match=f"layers is {count}, "):
            with_layers(wanted, count)
    with pytest.raises(ConfigError, match="layers for text are plain"):
        with_layers(tiny_model(), 2)


def test_a_run_learns_and_goes_on_and_is_written(options: TranslatingOptions, tmp_path: Path) -> None:
    """What it writes translates what it has learnt, and has the rest of what it began from to the last bit."""
    with pytest.raises(ConfigError, match="holds no checkpoint.pt"):
        write(options, tmp_path / "model")
    trainer = build_trainer(options)
    assert {pair[0] for _, pair in trainer.batches._pairs} == {*SENTENCES[1:3]}, "a dev transcript is not learnt"  # type: ignore[attr-defined]
    trainer.train(lambda _: trainer.held_figures())
    records = [json.loads(line) for line in (Path(options.folder) / "log.jsonl").read_text().splitlines()]
    right = [record["words_right"] for record in records if "words_right" in record]
    assert right[-1] > 0.9 > right[0], right
    assert any("held_words" in record for record in records)
    again = build_trainer(options)
    assert again.step == 60 and all(
        torch.equal(p, q) for p, q in zip(again.student.parameters(), trainer.student.parameters(), strict=True)
    )
    write(options, tmp_path / "model")
    loaded, before = load(tmp_path / "model", runtime="torch"), load_model(Path(options.start_from))
    config = loaded.backend.spec.config
    assert config.targets == ("de",) and config.hearing_delay_ms == before.config.hearing_delay_ms
    after = load_model(tmp_path / "model").backbone.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.backbone.state_dict().items())
    said = run(loaded.backend, translate_job(loaded, "de", transcript=f"{SENTENCES[1]} {SENTENCES[2]}"))
    assert loaded.tokenizer.decode(said.ids).strip() == f"{GERMAN[1]} {GERMAN[2]}", "sentence by sentence"
    session_translates(loaded)


def session_translates(loaded: Loaded) -> None:
    """A segment's words as they are committed: a sentence that was translated is not translated again, and what was said stays."""
    task, stats = Task(targets=("de",)), Stats()
    transcript, works = Transcript(loaded.tokenizer, 0), list[Append]()
    segment = Segment(
        loaded.backend.new_cache(),
        transcript,
        0,
        prompts=loaded.prompts,
        task=task,
        guards=Guards(frozenset(), tokens_per_second=12, floor_tokens=8, loop_tokens=12, loop_copies=3),
        stats=stats,
        drafting=Drafting(stats.drafts),
        max_draft=0,
    )

    def translated(words: str) -> tuple[str, int]:
        ids = loaded.tokenizer.encode(words)
        transcript.update(ids, [0.0] * len(ids), len(ids), heard_ms=900, word_is_over=True)
        works.clear()
        return run(loaded.backend, segment.translate("de"), perform=counted), len(works)

    def counted(backend: Backend, given: Sequence[Work]) -> list[Any]:
        works.extend(work for work in given if isinstance(work, Append))
        return perform(backend, given)

    first, cost = translated(SENTENCES[1])
    assert first == GERMAN[1] and cost > 1
    assert translated("") == (GERMAN[1], 0)
    both, more = translated(SENTENCES[2])
    assert both == f"{GERMAN[1]} {GERMAN[2]}" and 0 < more <= 2 * cost


def test_fine_tuning_leaves_what_translates_as_it_is(start: Path, tmp_path: Path) -> None:
    """And does not teach it in another way."""
    save_model(tmp_path / "model", with_layers(load_model(start), 2), start, Taught(4, ("de",)))
    make_store(tmp_path / "store", features=False)
    write_pairs(tmp_path / "en-de.tsv", PAIRS)
    options = RunOptions(
        folder=str(tmp_path / "run"),
        start_from=str(tmp_path / "model"),
        stores=(StoreOptions(str(tmp_path / "store"), features=False),),
        batches=BatchOptions(shapes=((96, 3, 1.0),), labelled=1.0, delay_frames=4),
        train=TrainOptions(warmup_steps=1, mel_steps=0, hearing_steps=0, join_step=0, threads=1),
        depths=Depths(mel=1, features=1, ctc=1, late=2),
    )
    prepare(options)
    trainer = build_run(options)
    before = {name: value.clone() for name, value in trainer.student.backbone.state_dict().items()}
    trainer.update(trainer.batches[0])
    after = trainer.student.backbone.state_dict()
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert {name for name in before if name.startswith(("layers.6.", "layers.7."))} <= same
    assert not any(name.startswith("layers.5.mlp") for name in same), "what writes has learnt"
    assert Taught.read(tmp_path / "run").targets == ("de",)
    wanted = replace(options, translations={"de": str(tmp_path / "en-de.tsv")}, batches=replace(options.batches, translate=0.5))
    with pytest.raises(ConfigError, match="start_from translates in layers of its own"):
        build_run(wanted)


def test_the_command_reads_its_file(options: TranslatingOptions, tmp_path: Path) -> None:
    given = asdict(options) | {"folder": str(tmp_path / "run")}
    given["train"] |= {"steps": 1}
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(given))  # JSON is YAML
    main(["--config", str(path)])
    main(["--config", str(path), "--out", str(tmp_path / "model"), "--last"])
    assert (tmp_path / "model" / "model.safetensors").exists()
    path.write_text(json.dumps(given | {"layer": 3}))
    with pytest.raises(ConfigError, match="the nearest key is 'layers'"):
        read_options(path)
