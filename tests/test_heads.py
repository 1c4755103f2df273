"""Heads against what the models say when asked row by row, without padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from outlay.errors import LabelError, UsageError
from outlay.models.generative_heads import CAUSAL_SEPARATOR, GenerationHead, RankClassificationHead
from outlay.models.heads import ClassificationHead, TaggingHead, logits_of
from outlay.models.loading import head_for
from outlay.models.tokenization import AnswerIds
from outlay.settings import TeachSettings
from outlay.spec import TaskSpec
from tests.checkpoints import make_bart, make_checkpoint, make_gpt2, make_t5

TEXTS = [
    "mix 5 ml of water",
    "add the salt",
    "heat the tube and then cool it for 10 minutes in the dark room",
    "spin",
    "wash twice with buffer A and dry",
]
ANSWERS = [
    "mix [Action] 5 ml [Amount] water [Reagent]",
    "add [Action]",
    "heat [Action]",
    "",
    "wash [Action] buffer A [Reagent]",
]
LABELS = ("Amount", "Reagent", "Action")
CLASSES = ("NO", "YES", "YES OF COURSE")
WORDS = [*TEXTS, *ANSWERS, *CLASSES, "task: "]
SOURCES = [(text,) for text in TEXTS]
GREEDY = TeachSettings(batch_size=3)

Made = tuple[GenerationHead, torch.nn.Module]


class Heard:
    """A sink that keeps what it is given: logits by row and position."""

    def __init__(self) -> None:
        self.logits: dict[tuple[int, int], torch.Tensor] = {}

    def __call__(self, rows: np.ndarray, positions: np.ndarray, logits: torch.Tensor) -> None:
        assert len(rows) == len(positions) == len(logits)
        for row, position, one in zip(rows.tolist(), positions.tolist(), logits, strict=True):
            assert (row, position) not in self.logits
            self.logits[row, position] = one

    def row(self, row: int) -> torch.Tensor:
        """All positions of a row, [P, V]."""
        places = sorted(position for one, position in self.logits if one == row)
        assert places == list(range(len(places)))
        return torch.stack([self.logits[row, position] for position in places])


def writer(family: str, folder: Path, form: TaskSpec) -> Made:
    make = {"t5": make_t5, "bart": make_bart, "gpt2": make_gpt2}[family]
    make(folder, WORDS)
    auto = AutoModelForCausalLM if family == "gpt2" else AutoModelForSeq2SeqLM
    model = auto.from_pretrained(folder).eval()
    return GenerationHead(
        AutoTokenizer.from_pretrained(folder), form, "causal" if family == "gpt2" else "seq2seq"
    ), model


@pytest.fixture(scope="module", params=["t5", "bart", "gpt2"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    form = TaskSpec("entities", LABELS, 32, 24, "task: ")
    return writer(request.param, tmp_path_factory.mktemp(request.param), form)


def alone(head: GenerationHead, model: torch.nn.Module, text: str, units: list[int]) -> torch.Tensor:
    """Logits of each unit of one row, [len(units), V], from the model called as its documentation says."""
    tokenizer = head.tokenizer
    if head.family == "seq2seq":
        source = tokenizer(head.form.prefix + text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            out: torch.Tensor = model(input_ids=source, labels=torch.tensor([units])).logits[0]
        return out
    source = tokenizer(head.form.prefix + text + CAUSAL_SEPARATOR)["input_ids"]
    with torch.no_grad():
        said: torch.Tensor = model(input_ids=torch.tensor([[*source, *units]])).logits[0]
    return said[len(source) - 1 : -1]


def test_logits_of_a_padded_batch_are_those_of_each_row_alone(made: Made) -> None:
    head, model = made
    read = head.tokenize(SOURCES)
    units = head.encode_answers(read, ANSWERS)
    rows = np.array([2, 0, 3, 1])
    padded, mask = units.batch(rows)
    with torch.no_grad():
        logits = logits_of(head, model, read, rows, padded)
    for at, row in enumerate(rows):
        length = int(units.lengths[row])
        assert int(mask[at].sum()) == length
        expected = alone(head, model, TEXTS[row], padded[at, :length].tolist())
        torch.testing.assert_close(logits[at, :length], expected, rtol=2e-4, atol=2e-5)


def test_greedy_answers_are_the_argmax_of_each_position(made: Made) -> None:
    head, model = made
    read = head.tokenize(SOURCES)
    rows = np.arange(len(TEXTS))
    heard = Heard()
    with torch.no_grad():
        generation = head.generate(model, read, rows, GREEDY, sink=heard)
    for row in rows:
        said: list[int] = []
        while len(said) < head.form.max_target_tokens:
            last = alone(head, model, TEXTS[row], [*said, 0])[-1]
            said.append(int(last.argmax()))
            if said[-1] == head.tokenizer.eos_token_id:
                break
        # BART's generation config forces its last token, which no argmax says.
        if "bart" not in type(model).__name__.lower():
            assert generation.units[row].tolist() == said
        written = generation.units[row].tolist()
        expected = alone(head, model, TEXTS[row], written)
        torch.testing.assert_close(heard.row(row), expected, rtol=2e-4, atol=2e-5)
    # The logits are those of the steps themselves, however the model writes.
    assert generation.n_tokens == read.encoded.n_tokens + sum(len(units) for units in generation.units)


def test_generate_writes_only_where_greedy_does_not_do(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    head, model = made
    asked: list[int] = []
    generate = model.generate

    def counted(**inputs: object) -> object:
        asked.append(1)
        return generate(**inputs)

    monkeypatch.setattr(model, "generate", counted)
    read, rows = head.tokenize(SOURCES), np.array([2, 1])
    with torch.no_grad():
        head.generate(model, read, rows, GREEDY)
        assert bool(asked) == (model.config.model_type == "bart")  # it forces the last token at the limit
        asked.clear()
        head.generate(model, read, rows, GREEDY.changed({"beams": 2}))
    assert asked


def test_answers_come_back_from_their_tokens(made: Made) -> None:
    head, _ = made
    read = head.tokenize(SOURCES)
    units = head.encode_answers(read, ANSWERS)
    rows = np.arange(len(ANSWERS))
    split = [units.ids[units.offsets[row] : units.offsets[row + 1]] for row in rows]
    assert head.decode(read, rows, split) == ANSWERS
    assert all(row[-1] == head.tokenizer.eos_token_id for row in split)
    assert units.n_cut == 0


def test_long_sources_and_answers_are_cut_and_counted(made: Made) -> None:
    head, _ = made
    short = GenerationHead(head.tokenizer, TaskSpec("entities", LABELS, 8, 5, "task: "), head.family)
    read = short.tokenize(SOURCES)
    assert read.encoded.lengths.max() == 8
    lengths = head.tokenize(SOURCES).encoded.lengths
    assert read.encoded.n_truncated == int((lengths > 8).sum()) > 0
    units = short.encode_answers(read, ANSWERS)
    whole = head.encode_answers(head.tokenize(SOURCES), ANSWERS)
    assert units.lengths.max() == 5
    assert units.n_cut == int((whole.lengths > 5).sum()) > 0
    assert all(units.ids[stop - 1] == head.tokenizer.eos_token_id for stop in units.offsets[1:])


def test_a_choice_is_the_probability_of_writing_each_label(made: Made) -> None:
    text, model = made
    form = TaskSpec("classification", CLASSES, 32, 8, "task: ")
    head = RankClassificationHead(GenerationHead(text.tokenizer, form, text.family))
    read = head.tokenize(SOURCES)
    rows = np.array([4, 1, 2])
    with torch.no_grad():
        logits = logits_of(head, model, read, rows, torch.empty(0))
    assert logits.shape == (3, 1, len(CLASSES))
    for at, row in enumerate(rows):
        for number, label in enumerate(CLASSES):
            units = head.writer.encode_answers(read, [label]).ids.tolist()
            log_p = F.log_softmax(alone(head.writer, model, TEXTS[row], units), dim=-1)
            expected = log_p[torch.arange(len(units)), torch.tensor(units)].sum()
            torch.testing.assert_close(logits[at, 0, number], expected, rtol=2e-4, atol=2e-4)
    heard = Heard()
    with torch.no_grad():
        generation = head.generate(model, read, rows, GREEDY, sink=heard)
    for at, row in enumerate(rows):
        assert heard.row(row).dtype == torch.float32
        torch.testing.assert_close(heard.row(row), logits[at], rtol=1e-5, atol=1e-5)
    best = logits[:, 0].argmax(-1).tolist()
    assert head.decode(read, rows, generation.units) == [CLASSES[i] for i in best]
    # Said: each source once, and the labels behind it at most. Trained: a causal model reads the source with each label.
    n_labels, n_sources = int(head.writer.encode_answers(read, CLASSES).lengths.sum()), read.encoded.lengths[rows]
    assert int(n_sources.sum()) < generation.n_tokens <= int(n_sources.sum()) + 3 * n_labels
    n_copies = 3 if text.family == "causal" else 1
    assert head.n_tokens(read, AnswerIds.of([]))[rows].tolist() == (n_copies * n_sources + n_labels).tolist()


def test_a_source_is_encoded_once_for_all_labels_in_training_too(made: Made) -> None:
    text, model = made
    head = RankClassificationHead(
        GenerationHead(text.tokenizer, TaskSpec("classification", CLASSES, 32, 8, "task: "), text.family)
    )
    read, rows = head.tokenize(SOURCES), np.array([4, 1, 2])
    inputs = head.inputs(read, rows, torch.empty(0))
    assert len(inputs["input_ids"]) == (9 if text.family == "causal" else 3)
    logits = head.logits(model, inputs)
    weights = torch.linspace(-1, 2, 9).reshape(3, 1, 3)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad((weights * logits).sum(), parameters, allow_unused=True)
    # The same, each label of each row in a call of its own.
    total = torch.zeros(())
    for at, row in enumerate(rows):
        for number, label in enumerate(CLASSES):
            units = torch.tensor([head.writer.encode_answers(read, [label]).ids.tolist()])
            said = logits_of(head.writer, model, read, np.array([row]), units)[0]
            score = F.log_softmax(said, dim=-1)[torch.arange(units.shape[1]), units[0]].sum()
            total = total + weights[at, 0, number] * score
    expected = torch.autograd.grad(total, parameters, allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_many_labels_are_scored_a_few_rows_at_a_time(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    text, model = made
    head = RankClassificationHead(
        GenerationHead(text.tokenizer, TaskSpec("classification", CLASSES, 32, 8, "task: "), text.family)
    )
    read, rows = head.tokenize(SOURCES), np.array([2, 4, 0, 1, 3])
    at_once, by_two = Heard(), Heard()
    with torch.no_grad():
        whole = head.generate(model, read, rows, GREEDY, sink=at_once)
        per_row = 3 * (int(read.encoded.lengths.max()) + int(head.writer.encode_answers(read, CLASSES).lengths.max()))
        monkeypatch.setattr("outlay.models.generative_heads._CHUNK_TOKENS", 2 * per_row + 1)
        parts = head.generate(model, read, rows, GREEDY, sink=by_two)
    assert [unit.tolist() for unit in parts.units] == [unit.tolist() for unit in whole.units]
    assert parts.n_tokens == whole.n_tokens
    for row in rows:
        torch.testing.assert_close(by_two.row(row), at_once.row(row), rtol=1e-5, atol=1e-5)


def test_a_label_is_the_greedy_path_among_the_labels(made: Made) -> None:
    text, model = made
    head = GenerationHead(text.tokenizer, TaskSpec("classification", CLASSES, 32, 24, "task: "), text.family)
    read, rows = head.tokenize(SOURCES), np.array([3, 0, 2, 4, 1])
    paths = [head.encode_answers(read, [label]).ids.tolist() for label in CLASSES]
    heard = Heard()
    with torch.no_grad():
        generation = head.generate(model, read, rows, GREEDY, sink=heard)
        free = head.generate(model, read, rows, GREEDY.changed({"answers_from": "free"}))
    for row, units in zip(rows, generation.units, strict=True):
        said: list[int] = []
        while said not in paths:
            logits = alone(head, model, TEXTS[row], [*said, 0])[-1]
            allowed = sorted({path[len(said)] for path in paths if path[: len(said)] == said})
            said.append(max(allowed, key=lambda token: float(logits[token])))
        assert units.tolist() == said
        torch.testing.assert_close(heard.row(row), alone(head, model, TEXTS[row], said), rtol=2e-4, atol=2e-5)
    assert set(head.decode(read, rows, generation.units)) <= set(CLASSES)
    assert not set(head.decode(read, rows, free.units)) <= set(CLASSES)
    assert generation.n_tokens == read.encoded.n_tokens + sum(len(units) for units in generation.units)


def test_what_was_searched_or_drawn_is_read_once_more_for_its_logits(made: Made) -> None:
    head, model = made
    read, rows = head.tokenize(SOURCES), np.array([4, 0, 3])
    for how, beams in ((GREEDY.changed({"beams": 3}), 3), (TeachSettings(sample=True), 1)):
        heard = Heard()
        with torch.no_grad():
            generation = head.generate(model, read, rows, how, sink=heard)
        for row, units in zip(rows, generation.units, strict=True):
            expected = alone(head, model, TEXTS[row], units.tolist())
            torch.testing.assert_close(heard.row(row), expected, rtol=2e-4, atol=2e-5)
        n_said = sum(len(units) for units in generation.units)
        assert generation.n_tokens == int(read.encoded.lengths[rows].sum()) + (beams + 1) * n_said


def test_beams_find_an_answer_at_least_as_likely_and_samples_repeat(made: Made) -> None:
    head, model = made
    read, rows = head.tokenize(SOURCES), np.arange(len(TEXTS))

    def log_probability(units: np.ndarray, row: int) -> float:
        said = units.tolist()
        log_p = F.log_softmax(alone(head, model, TEXTS[row], said), dim=-1)
        return float(log_p[torch.arange(len(said)), torch.tensor(said)].sum()) / len(said)

    greedy = head.generate(model, read, rows, GREEDY)
    beams = head.generate(model, read, rows, GREEDY.changed({"beams": 4}))
    if "bart" not in type(model).__name__.lower():
        better = [
            log_probability(b, i) >= log_probability(g, i) - 1e-4
            for i, (b, g) in enumerate(zip(beams.units, greedy.units, strict=True))
        ]
        assert sum(better) >= len(better) - 1
    drawn = [head.generate(model, read, rows, TeachSettings(sample=True, seed=seed)) for seed in (1, 1, 2)]
    as_lists = [[u.tolist() for u in generation.units] for generation in drawn]
    assert as_lists[0] == as_lists[1] != as_lists[2]


def test_padding_kept_for_the_published_objective_reaches_the_limit(made: Made) -> None:
    head, model = made
    read, rows = head.tokenize(SOURCES), np.arange(len(TEXTS))
    how = TeachSettings(keep_padding=True)
    heard = Heard()
    with torch.no_grad():
        generation = head.generate(model, read, rows, how, sink=heard)
    limit = head.form.max_target_tokens
    assert {len(heard.row(row)) for row in rows} == {limit}
    n_written = sum(len(units) for units in generation.units)
    assert generation.n_tokens == read.encoded.n_tokens + n_written + limit * len(rows)
    assert max(len(units) for units in generation.units) <= limit - 1
    row = int(np.argmin([len(units) for units in generation.units]))
    said = [*generation.units[row].tolist(), *[head.pad_unit] * (limit - len(generation.units[row]))]
    torch.testing.assert_close(heard.row(row), alone(head, model, TEXTS[row], said), rtol=2e-4, atol=2e-5)


def test_rows_that_pad_the_vocabulary_are_never_said(tmp_path: Path) -> None:
    make_t5(tmp_path, WORDS, vocab_extra=5)
    head = GenerationHead(AutoTokenizer.from_pretrained(tmp_path), TaskSpec("generation", (), 32, 12), "seq2seq")
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        model.lm_head.weight[-5:] = model.lm_head.weight[:5] * 50  # loud
    generation = head.generate(model, head.tokenize(SOURCES), np.arange(len(TEXTS)), GREEDY)
    assert max(int(units.max()) for units in generation.units) < len(head.tokenizer)


# --- encoders --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> tuple[TaggingHead, torch.nn.Module]:
    folder = make_checkpoint(tmp_path_factory.mktemp("tagger"), WORDS)
    head = TaggingHead(AutoTokenizer.from_pretrained(folder), TaskSpec("entities", LABELS, 32, 24))
    model = AutoModelForTokenClassification.from_pretrained(folder, num_labels=head.n_outputs).eval()
    return head, model


def test_tags_of_an_answer_read_back_as_the_answer(tagger: tuple[TaggingHead, torch.nn.Module]) -> None:
    head, _ = tagger
    read = head.tokenize(SOURCES)
    units = head.encode_answers(read, ANSWERS)
    rows = np.arange(len(ANSWERS))
    split = [units.ids[units.offsets[row] : units.offsets[row + 1]] for row in rows]
    assert [head.tags[tag] for tag in split[0]] == ["B-Action", "B-Amount", "I-Amount", "O", "B-Reagent"]
    assert head.decode(read, rows, split) == ANSWERS
    assert units.n_unaligned == 0


def test_tag_logits_stand_at_the_tokens_of_the_text(tagger: tuple[TaggingHead, torch.nn.Module]) -> None:
    head, model = tagger
    read = head.tokenize(SOURCES)
    rows = np.array([3, 2, 0])
    with torch.no_grad():
        logits = logits_of(head, model, read, rows, torch.empty(0))
    for at, row in enumerate(rows):
        tokens = head.tokenizer(TEXTS[row], return_tensors="pt")
        with torch.no_grad():
            expected = model(**tokens).logits[0, 1:-1]  # without [CLS] and [SEP]
        torch.testing.assert_close(logits[at, : len(expected)], expected, rtol=2e-4, atol=2e-5)


def test_encoders_hand_over_the_logits_of_real_positions(
    tagger: tuple[TaggingHead, torch.nn.Module], checkpoint: Path
) -> None:
    head, model = tagger
    read, rows = head.tokenize(SOURCES), np.array([3, 2, 0])
    heard = Heard()
    with torch.no_grad():
        generation = head.generate(model, read, rows, GREEDY, sink=heard)
        logits = logits_of(head, model, read, rows, torch.empty(0))
    for at, (row, units) in enumerate(zip(rows, generation.units, strict=True)):
        torch.testing.assert_close(heard.row(row), logits[at, : len(units)])
        assert units.tolist() == logits[at, : len(units)].argmax(-1).tolist()
    chooser = ClassificationHead(AutoTokenizer.from_pretrained(checkpoint), TaskSpec("classification", CLASSES, 32, 8))
    classifier = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=3).eval()
    heard = Heard()
    read = chooser.tokenize(SOURCES)
    with torch.no_grad():
        generation = chooser.generate(classifier, read, rows, GREEDY, sink=heard)
        logits = logits_of(chooser, classifier, read, rows, torch.empty(0))
    assert [int(units[0]) for units in generation.units] == logits[:, 0].argmax(-1).tolist()
    torch.testing.assert_close(torch.stack([heard.row(row) for row in rows]), logits)


def test_entities_that_cannot_be_tagged_are_counted(tagger: tuple[TaggingHead, torch.nn.Module]) -> None:
    head, _ = tagger
    read = head.tokenize([("add the salt",), ("5ml water",)])
    units = head.encode_answers(read, ["add [Action] pepper [Reagent]", "5 [Amount] ml [Reagent] water [Reagent]"])
    # `pepper` is not there; `5` and `ml` are one token, and the first has it.
    assert units.n_unaligned == 2


def test_an_inside_tag_on_its_own_begins_an_entity(tagger: tuple[TaggingHead, torch.nn.Module]) -> None:
    head, _ = tagger
    read = head.tokenize([("mix 5 ml of water",)])
    tags = [head.tags.index(tag) for tag in ("I-Action", "I-Amount", "B-Amount", "O", "I-Reagent")]
    line = head.decode(read, np.array([0]), [np.array(tags, dtype=np.int32)])[0]
    assert line == "mix [Action] 5 [Amount] ml [Amount] water [Reagent]"


def test_an_encoder_does_not_write_and_a_class_must_be_known(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    with pytest.raises(UsageError, match="seq2seq or causal"):
        head_for("bert", "encoder", TaskSpec("generation", (), 32, 32), tokenizer)
    head = ClassificationHead(tokenizer, TaskSpec("classification", CLASSES, 32, 8))
    with pytest.raises(LabelError, match="'MAYBE' of row 1"):
        head.encode_answers(head.tokenize(SOURCES[:2]), ["NO", "MAYBE"])


def test_a_label_the_tokenizer_cannot_spell_is_named(made: Made) -> None:
    text, _ = made
    head = GenerationHead(text.tokenizer, TaskSpec("classification", ("YES", "жук ☃"), 32, 8), text.family)
    if text.family == "causal":  # a byte-level tokenizer spells everything, if it is given the room
        with pytest.raises(LabelError, match=r"max_target_tokens\b.*\b8\b"):
            head.check_spelling(head.form.labels)
        return
    with pytest.raises(LabelError, match="жук ☃"):
        head.check_spelling(head.form.labels)


def test_units_pad_to_the_longest_row() -> None:
    units = AnswerIds.of([[5, 6, 7], [], [8]])
    ids, mask = units.batch(np.array([1, 0, 2]))
    assert ids.tolist() == [[0, 0, 0], [5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[False] * 3, [True] * 3, [True, False, False]]
