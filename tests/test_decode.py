"""Answers token by token, against `generate` and against each row read alone, without a cache."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from outlay.models.decoding import (
    DecodingState,
    constrained_greedy,
    greedy,
    is_plain_greedy,
    n_scored,
    score_candidates,
)
from tests.checkpoints import make_bart, make_gpt2, make_t5

TEXTS = [
    "mix 5 ml of water",
    "add the salt",
    "heat the tube and then cool it for 10 minutes in the dark room",
    "spin",
    "wash twice with buffer A and dry",
    "cool it",
    "dry the tube",
]
CLOSING = 1
"""What we say ends an answer: the toy models say nothing on purpose, so each has a token that comes now and then."""


class Toy:
    """A model of random weights, its sources, and every answer asked of it alone."""

    def __init__(self, family: str, folder: Path) -> None:
        {"t5": make_t5, "bart": make_bart, "gpt2": make_gpt2}[family](folder, TEXTS, seed=3)
        self.is_causal = family == "gpt2"
        auto = AutoModelForCausalLM if self.is_causal else AutoModelForSeq2SeqLM
        self.model = auto.from_pretrained(folder).eval()
        torch.manual_seed(5)
        with torch.no_grad():  # random weights say one thing over and over; louder ones under another head do not
            for name, weight in self.model.named_parameters():
                if weight.dim() > 1 and not any(part in name for part in ("shared", "wte")):
                    weight.mul_(4.0)
            head = self.model.get_output_embeddings()
            head.weight = torch.nn.Parameter(torch.randn_like(head.weight))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.pad = tokenizer.pad_token_id
        self.n_choices = len(tokenizer)
        self.rows = [tokenizer(text)["input_ids"] for text in TEXTS]
        self.start = None if self.is_causal else self.model.config.decoder_start_token_id

    def read(self) -> dict[str, torch.Tensor]:
        width = max(map(len, self.rows))
        ids = torch.full((len(self.rows), width), self.pad)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(self.rows):
            at = slice(width - len(row), width) if self.is_causal else slice(0, len(row))
            ids[i, at], mask[i, at] = torch.tensor(row), 1
        return {"input_ids": ids, "attention_mask": mask}

    def writing(self) -> DecodingState:
        return DecodingState(self.model, self.read(), self.start)

    def alone(self, row: int, said: list[int]) -> torch.Tensor:
        """Logits ``[len(said), V]`` behind each token of an answer, from one call on one row without padding."""
        source = torch.tensor([self.rows[row]])
        with torch.no_grad():
            if self.is_causal:
                logits = self.model(input_ids=torch.cat([source, torch.tensor([said], dtype=torch.int64)], 1)).logits
                return logits[0, source.shape[1] - 1 : -1]
            decoder = torch.tensor([[self.start, *said[:-1]]])
            return self.model(input_ids=source, decoder_input_ids=decoder).logits[0]

    def greedy_alone(self, row: int, n_new: int, closing: int) -> list[int]:
        said: list[int] = []
        while len(said) < n_new and (not said or said[-1] != closing):
            said.append(int(self.alone(row, [*said, 0])[-1, : self.n_choices].argmax()))
        return said


@pytest.fixture(scope="module", params=["t5", "bart", "gpt2"])
def toy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return Toy(request.param, tmp_path_factory.mktemp(request.param))


def closing_of(toy: Toy, n_new: int) -> int:
    """A token that ends some of the answers early and leaves others at the limit."""
    said = [toy.greedy_alone(row, n_new, -1) for row in range(len(TEXTS))]
    ends = {
        token: [row.index(token) + 1 if token in row else n_new for row in said]
        for token in {token for row in said for token in row}
    }
    fitting = {token: len(set(lengths)) for token, lengths in ends.items() if n_new in lengths and min(lengths) < n_new}
    return max(sorted(fitting), key=lambda token: fitting[token])


def generated(toy: Toy, n_new: int, closing: int) -> list[list[int]]:
    config = GenerationConfig(
        max_new_tokens=n_new,
        num_beams=1,
        do_sample=False,
        pad_token_id=toy.pad,
        eos_token_id=closing,
        decoder_start_token_id=toy.start,
    )
    read = toy.read()
    n_before = read["input_ids"].shape[1] if toy.is_causal else 1
    toy.model.generation_config = GenerationConfig()
    written = toy.model.generate(**read, generation_config=config)[:, n_before:].tolist()
    return [row[: row.index(closing) + 1] if closing in row else row for row in written]


def test_greedy_writes_what_generate_writes(toy: Toy) -> None:
    n_new = 11
    closing = closing_of(toy, n_new)
    expected = generated(toy, n_new, closing)
    heard: dict[tuple[int, int], torch.Tensor] = {}

    def say(rows: np.ndarray, position: int, logits: torch.Tensor) -> None:
        assert len(rows) == len(logits)
        for row, one in zip(rows.tolist(), logits, strict=True):
            assert (row, position) not in heard
            heard[row, position] = one

    with torch.no_grad():
        said = greedy(toy.writing(), n_new=n_new, closing=closing, n_choices=toy.n_choices, on_logits=say)
    assert [row.tolist() for row in said] == expected
    lengths = [len(row) for row in expected]
    assert min(lengths) < n_new == max(lengths)
    assert len(set(lengths)) >= 2
    # Every position of every answer was heard once, and is what the row says alone.
    assert set(heard) == {(row, position) for row, n in enumerate(lengths) for position in range(n)}
    for row, tokens in enumerate(expected):
        logits = torch.stack([heard[row, position] for position in range(len(tokens))])
        torch.testing.assert_close(logits, toy.alone(row, tokens), rtol=2e-4, atol=2e-4)


def test_rows_leave_once_a_quarter_has_ended(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    n_new = 11
    closing = closing_of(toy, n_new)
    kept: list[int] = []
    keep = DecodingState.keep
    monkeypatch.setattr(DecodingState, "keep", lambda self, rows: (kept.append(len(rows)), keep(self, rows))[1])
    with torch.no_grad():
        greedy(toy.writing(), n_new=n_new, closing=closing, n_choices=toy.n_choices)
    assert kept
    sizes = [len(TEXTS), *kept]
    assert all(after <= before * 0.75 for before, after in pairwise(sizes))


def test_only_tokens_that_may_be_chosen_are(toy: Toy) -> None:
    n_choices = 13
    with torch.no_grad():
        said = greedy(toy.writing(), n_new=5, closing=-1, n_choices=n_choices)
    assert max(int(row.max()) for row in said) < n_choices
    for row, tokens in enumerate(said):
        assert toy.alone(row, tokens.tolist())[:, :n_choices].argmax(-1).tolist() == tokens.tolist()


PATHS = {
    "part at once": [[7, 1], [8, 9, 1], [8, 10, 11, 1]],
    "begin alike": [[5, 6, 7, 1], [5, 6, 1], [5, 6, 8, 9, 10, 1]],
    "one within another": [[7, 1], [7, 9, 1], [7, 9, 10, 12, 1], [11, 1], [11, 13, 14, 1]],
    "alone": [[7, 8, 1]],
    "one token": [[7], [8], [9]],
}


@pytest.mark.parametrize("paths", PATHS.values(), ids=PATHS)
def test_scores_are_the_probabilities_of_writing_each_answer(toy: Toy, paths: list[list[int]]) -> None:
    with torch.no_grad():
        scores = score_candidates(toy.writing(), paths)
    assert scores.shape == (len(TEXTS), len(paths))
    for row in range(len(TEXTS)):
        for i, path in enumerate(paths):
            log_p = F.log_softmax(toy.alone(row, path), dim=-1)
            expected = log_p[torch.arange(len(path)), torch.tensor(path)].sum()
            torch.testing.assert_close(scores[row, i], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("paths", PATHS.values(), ids=PATHS)
def test_a_walk_takes_the_likeliest_branch_and_tells_its_logits(toy: Toy, paths: list[list[int]]) -> None:
    heard: dict[tuple[int, int], torch.Tensor] = {}

    def say(rows: np.ndarray, position: int, logits: torch.Tensor) -> None:
        for row, one in zip(rows.tolist(), logits, strict=True):
            assert (row, position) not in heard
            heard[row, position] = one

    with torch.no_grad():
        said = constrained_greedy(toy.writing(), paths, on_logits=say)
    for row in range(len(TEXTS)):
        so_far: list[int] = []
        while so_far not in paths:
            logits = toy.alone(row, [*so_far, 0])[-1]
            allowed = sorted({path[len(so_far)] for path in paths if path[: len(so_far)] == so_far})
            so_far.append(max(allowed, key=lambda token: float(logits[token])))
        assert paths[said[row]] == so_far
        logits = torch.stack([heard.pop((row, position)) for position in range(len(so_far))])
        torch.testing.assert_close(logits, toy.alone(row, so_far), rtol=2e-4, atol=2e-4)
    assert not heard


def test_a_walk_says_what_greedy_writes_where_that_is_allowed(toy: Toy) -> None:
    free = [toy.greedy_alone(row, 4, -1) for row in range(len(TEXTS))]
    paths = [list(path) for path in sorted({tuple(row) for row in free})]
    paths += [[*path[:2], 3, 1] for path in paths]
    with torch.no_grad():
        said = constrained_greedy(toy.writing(), paths)
    assert [paths[i] for i in said] == free
    assert len({tuple(row) for row in free}) > 1


def test_each_answer_of_a_trie_is_read_once() -> None:
    # The start token; what all begin with; the longest rests, without their last tokens.
    assert {name: n_scored(paths) for name, paths in PATHS.items()} == {
        "part at once": 1 + 0 + (1 + 2 + 3),
        "begin alike": 1 + 2 + (1 + 3),
        "one within another": 1 + 0 + (4 + 3),
        "alone": 1 + 2 + 0,
        "one token": 1 + 0 + 0,
    }


def test_what_is_more_than_greedy() -> None:
    plain = [{}, {"temperature": 0.7}, {"repetition_penalty": 1.0}, {"no_repeat_ngram_size": 0, "length_penalty": 2.0}]
    more = [
        *({"num_beams": 2}, {"do_sample": True}, {"repetition_penalty": 1.1}, {"no_repeat_ngram_size": 1}),
        *({"forced_bos_token_id": 0}, {"forced_eos_token_id": 2}, {"bad_words_ids": [[3]]}, {"min_new_tokens": 2}),
        *({"begin_suppress_tokens": [3]}, {"remove_invalid_values": True}),
    ]
    assert all(is_plain_greedy(GenerationConfig(**settings)) for settings in plain)
    assert not any(is_plain_greedy(GenerationConfig(**settings)) for settings in more)
    unknown = GenerationConfig()
    unknown.some_setting_of_tomorrow = 3
    assert not is_plain_greedy(unknown)


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_half_precision_keeps_the_cache_in_step(family: str, tmp_path: Path) -> None:
    toy = Toy(family, tmp_path)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        said = greedy(toy.writing(), n_new=7, closing=-1, n_choices=toy.n_choices)
        walked = constrained_greedy(toy.writing(), PATHS["one within another"])
        scores = score_candidates(toy.writing(), PATHS["one within another"])
    assert {len(row) for row in said} == {7}
    assert scores.dtype == torch.float32
    assert bool(torch.isfinite(scores).all())
    assert set(walked.tolist()) <= set(range(5))
