"""Every task's metric on 200 constructed cases against a slow version written here, and each published quirk by its name."""

from __future__ import annotations

import math
import string
from collections import Counter

import numpy as np
import pytest
from sacrebleu import sentence_bleu
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from outlay.errors import DataError, LabelError
from outlay.metrics import Answered, mean_score, score
from outlay.metrics.answers import NO_PREDICTION, missing_text
from tests.value_tables import mean_interval, paired_difference, paired_scores

N_CASES = 200
FEVER = ("REFUTES", "SUPPORTS")
PAIRS = ("NO", "YES")
STANCES = ("Irrelevant", "Supporting", "Refuting", "Discussing", "Querying")
ENTITY_TYPES = ("Amount", "Reagent", "Action", "pH", "Measure-Type", "Device")


def value(metric: str, predictions: list[str], golds: list[str], labels: tuple[str, ...] = ()) -> dict[str, float]:
    return {name: r.value for name, r in score(metric, predictions, golds, labels).items()}


# --- classes ---------------------------------------------------------------------------------------------------------


def class_cases(labels: tuple[str, ...], seed: int) -> tuple[list[str], list[str]]:
    """Answers that are right, wrong, in another case, in white space, cut short, or nothing at all."""
    rng = np.random.default_rng(seed)
    golds = [str(x) for x in rng.choice(labels, N_CASES)]
    answers = [gold if rng.random() < 0.6 else str(rng.choice(labels)) for gold in golds]
    spoilt = [str.lower, str.upper, lambda a: f" {a}\n", lambda a: a[:3], lambda a: "", str, str, str]
    return [spoilt[int(rng.integers(len(spoilt)))](answer) for answer in answers], golds


@pytest.mark.parametrize(("labels", "seed"), [(FEVER, 0), (PAIRS, 1)])
def test_200_accuracy_cases(labels: tuple[str, ...], seed: int) -> None:
    answers, golds = class_cases(labels, seed)
    by_script = [a.strip().upper() if a.strip().upper() in labels else labels[0] for a in answers]
    found = value("accuracy", answers, golds, labels)
    assert found["accuracy/published"] == pytest.approx(100 * accuracy_score(golds, by_script))
    assert found["macro_f1/published"] == pytest.approx(100 * f1_score(golds, by_script, average="macro"))
    assert found["accuracy/strict"] == pytest.approx(100 * accuracy_score(golds, [a.strip() for a in answers]))


def test_200_stance_cases() -> None:
    answers, golds = class_cases(STANCES, 2)
    by_upper = {label.upper(): label for label in STANCES}
    by_script = [by_upper.get(answer.strip().upper(), "Irrelevant") for answer in answers]
    stripped = [answer.strip() for answer in answers]
    found = value("f1", answers, golds, STANCES)
    for average in ("micro", "macro"):
        published = 100 * f1_score(golds, by_script, average=average)
        assert found[f"{average}_f1/published"] == pytest.approx(published)
        strict = 100 * f1_score(golds, stripped, average=average, labels=list(STANCES))
        assert found[f"{average}_f1/strict"] == pytest.approx(strict)
    assert found["accuracy/strict"] == pytest.approx(100 * accuracy_score(golds, stripped))


def test_quirk_an_unknown_answer_is_the_first_class() -> None:
    for labels in (FEVER, PAIRS, STANCES):
        metric = "f1" if labels == STANCES else "accuracy"
        found = value(metric, ["what?", ""], [labels[0], labels[0]], labels)
        assert (found["accuracy/published"], found["accuracy/strict"]) == (100, 0)


def test_quirk_case_does_not_count() -> None:
    found = value("accuracy", ["supports", " Supports "], ["SUPPORTS", "SUPPORTS"], FEVER)
    assert (found["accuracy/published"], found["accuracy/strict"]) == (100, 0)
    assert value("accuracy", [" SUPPORTS\n"], ["SUPPORTS"], FEVER)["accuracy/strict"] == 100
    assert value("accuracy", ["b", "B"], ["b", "B"], ("B", "b"))["accuracy/published"] == 100


# --- entities --------------------------------------------------------------------------------------------------------


def entity_cases(seed: int) -> list[tuple[list[tuple[str, str]], list[tuple[str, str]]]]:
    """Gold and answered (text, label) pairs: repeats, other labels, lost and invented entities, empty lines."""
    rng = np.random.default_rng(seed)
    texts = ("salt", "water", "5 g", "[1-14C] acetate", "mix", "7.4", "a [b] c")

    def some(n: int) -> list[tuple[str, str]]:
        return [(str(rng.choice(texts)), str(rng.choice(ENTITY_TYPES))) for _ in range(n)]

    cases = []
    for i in range(N_CASES):
        gold = some(int(rng.integers(0, 7)))
        answer = [
            (text, label if rng.random() < 0.8 else str(rng.choice(ENTITY_TYPES)))
            for text, label in gold
            if rng.random() < 0.8
        ]
        cases.append((gold, answer + some(i % 3)))
    return cases


def line(pairs: list[tuple[str, str]], case: object = str) -> str:
    return " ".join(f"{text} [{case(label)}]" for text, label in pairs)  # type: ignore[operator]


def test_200_entity_cases_as_published() -> None:
    golds, answers = [], []
    for gold, answer in entity_cases(3):
        said = {}
        for text, label in answer:
            said[text] = label
        wanted = {}
        for text, label in gold:
            wanted[text] = label
        for text in wanted:
            golds.append(wanted[text])
            answers.append(said.get(text, "Amount"))
    found = value("entity_f1", *lines(3), ENTITY_TYPES)
    for average in ("micro", "macro"):
        assert found[f"{average}_f1/published"] == pytest.approx(100 * f1_score(golds, answers, average=average))
    assert found["precision/published"] == pytest.approx(100 * precision_score(golds, answers, average="micro"))
    assert found["recall/published"] == pytest.approx(100 * recall_score(golds, answers, average="micro"))


def lines(seed: int) -> tuple[list[str], list[str]]:
    """Answers and golds of `entity_cases` as lines; the labels of some answers are in capitals."""
    cases = entity_cases(seed)
    answers = [line(answer, str.upper if i % 4 == 0 else str) for i, (_, answer) in enumerate(cases)]
    return answers, [line(gold) for gold, _ in cases]


def test_200_entity_cases_strictly() -> None:
    n_right, n_gold, n_said = Counter[str](), Counter[str](), Counter[str]()
    for gold, answer in entity_cases(4):
        left = list(gold)
        for pair in answer:
            n_said[pair[1]] += 1
            if pair in left:
                left.remove(pair)
                n_right[pair[1]] += 1
        n_gold.update(label for _, label in gold)
    precision, recall = n_right.total() / n_said.total(), n_right.total() / n_gold.total()
    found = value("entity_f1", *lines(4), ENTITY_TYPES)
    assert found["precision/strict"] == pytest.approx(100 * precision)
    assert found["recall/strict"] == pytest.approx(100 * recall)
    assert found["micro_f1/strict"] == pytest.approx(200 * precision * recall / (precision + recall))
    each = [2 * n_right[label] / (n_gold[label] + n_said[label]) for label in ENTITY_TYPES]
    assert found["macro_f1/strict"] == pytest.approx(100 * np.mean(each))


def both(answer: str, gold: str) -> tuple[float, float]:
    found = value("entity_f1", [answer], [gold], ENTITY_TYPES)
    return found["micro_f1/published"], found["micro_f1/strict"]


def test_quirk_repeated_entities_collapse_to_the_last_label() -> None:
    gold = "salt [Action] salt [Reagent]"
    assert both("salt [Reagent]", gold) == (100, pytest.approx(100 * 2 / 3))
    assert both("salt [Reagent] salt [Action]", gold) == (0, 100)


def test_quirk_a_missing_entity_counts_as_amount() -> None:
    assert both("", "5 g [Amount] salt [Reagent]") == (50, 0)


def test_quirk_spurious_entities_cost_nothing() -> None:
    assert both("salt [Reagent] water [Reagent] 5 g [Amount]", "salt [Reagent]") == (100, 50)
    assert both("salt [Reagent] [Device]", "salt [Reagent]") == (100, pytest.approx(100 * 2 / 3))


def test_entities_are_keyed_by_their_whole_text() -> None:
    """The script keys by all words but the last: here both gold entities would share the key of no words."""
    assert both("salt [Reagent] mix [Reagent]", "salt [Reagent] mix [Action]")[0] == 50


def test_lines_without_entities_neither_help_nor_crash() -> None:
    assert set(value("entity_f1", ["", "no label"], ["", ""], ENTITY_TYPES).values()) == {0}
    assert both("mix [Action]", "mix [Action]") == (100, 100)
    with pytest.raises(LabelError, match=r"example 1\b.*'mix \[Verb\]'.*Amount"):
        score("entity_f1", ["", ""], ["", "5 g [Amount] mix [Verb]"], ENTITY_TYPES)


# --- questions -------------------------------------------------------------------------------------------------------


def squad_tokens(text: str) -> list[str]:
    kept = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def squad_f1(said: list[str], gold: list[str]) -> float:
    left, n_common = list(gold), 0
    for token in said:
        if token in left:
            left.remove(token)
            n_common += 1
    if n_common == 0:
        return 0.0
    precision, recall = n_common / len(said), n_common / len(gold)
    return 2 * precision * recall / (precision + recall)


def answer_cases(seed: int) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(seed)
    words = ("The", "an", "Queen", "queen's", "of", "1,200", "U.S.", "a", "–", "!", "Anne", "theatre", "of")

    def some() -> str:
        return "  ".join(str(x) for x in rng.choice(words, int(rng.integers(0, 5))))

    golds = [some() for _ in range(N_CASES)]
    return [gold.upper() if rng.random() < 0.3 else some() for gold in golds], golds


def test_200_question_cases() -> None:
    answers, golds = answer_cases(5)
    pairs = [(squad_tokens(a), squad_tokens(g)) for a, g in zip(answers, golds, strict=True)]
    exact = [said == gold for said, gold in pairs]
    f1 = [squad_f1(said, gold) for said, gold in pairs]
    found = value("qa_f1", answers, golds)
    assert found["exact_match/published"] == found["exact_match/strict"] == pytest.approx(100 * np.mean(exact))
    assert found["f1/published"] == pytest.approx(100 * np.mean(f1))
    strict = [float(s == g) if not s or not g else f for (s, g), f in zip(pairs, f1, strict=True)]
    assert found["f1/strict"] == pytest.approx(100 * np.mean(strict))
    assert found["f1/strict"] > found["f1/published"]


def test_quirk_nothing_for_nothing_is_an_exact_match_without_f1() -> None:
    found = value("qa_f1", ["the", "x"], ["A!", "..."])
    assert found == {"f1/published": 0, "f1/strict": 50, "exact_match/published": 50, "exact_match/strict": 50}


def test_a_mean_over_examples_has_the_interval_of_mean_interval() -> None:
    sides = [
        [Answered(answers, answer_cases(6)[1]) for answers in rows] for rows in ([cut(2), cut(3)], [cut(4), cut(5)])
    ]
    values = [
        [
            [squad_f1(squad_tokens(a), squad_tokens(g)) * 100 for a, g in zip(s.predictions, s.golds, strict=True)]
            for s in side
        ]
        for side in sides
    ]
    alone, by_values = mean_score("qa_f1", sides[0]), mean_interval(values[0])
    assert (alone.value, alone.low, alone.high) == pytest.approx((by_values.value, by_values.low, by_values.high))
    found, expected = paired_scores("qa_f1", *sides), paired_difference(*values)
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert found.p == pytest.approx(expected.p)


def cut(every: int) -> list[str]:
    """The gold answers, every n-th of them lost."""
    return ["" if i % every == 0 else gold for i, gold in enumerate(answer_cases(6)[1])]


# --- paraphrases -----------------------------------------------------------------------------------------------------


def bleu(said: list[str], source: list[str]) -> float:
    """Papineni et al. 2002, equations 2 and 3, without smoothing."""
    precisions = []
    for n in (1, 2, 3, 4):
        grams, others = ([tuple(side[i : i + n]) for i in range(len(side) - n + 1)] for side in (said, source))
        n_hits = sum(min(grams.count(gram), others.count(gram)) for gram in set(grams))
        precisions.append(n_hits / len(grams) if grams else 0)
    if min(precisions) == 0:
        return 0.0
    brevity = 1 if len(said) > len(source) else math.exp(1 - len(source) / len(said))
    return brevity * math.prod(precisions) ** 0.25


def paraphrase_cases(seed: int) -> tuple[list[str], list[str], list[float]]:
    rng = np.random.default_rng(seed)
    words = ("rain", "falls", "on", "the", "old", "town", "again", "today", "and", "tomorrow")
    sources = [" ".join(str(x) for x in rng.choice(words, int(rng.integers(3, 14)))) for _ in range(N_CASES)]
    answers = []
    for i, source in enumerate(sources):
        parts = source.split()
        parts[int(rng.integers(len(parts)))] = "snow"
        answers.append({0: source, 1: "", 2: "  "}.get(i % 20, " ".join(parts[: max(1, len(parts) - i % 3)])))
    return answers, sources, [float(x) for x in rng.uniform(0.3, 1, N_CASES)]


def test_200_paraphrase_cases() -> None:
    answers, sources, similarities = paraphrase_cases(7)
    published, strict = [], []
    for answer, source, similarity in zip(answers, sources, similarities, strict=True):
        said = answer.strip() or "no prediction"
        own = sentence_bleu(said, [source], smooth_method="none", use_effective_order=False).score / 100
        assert own == pytest.approx(bleu(said.split(), source.split()))
        b, s = similarity + 1e-5, own + 1e-5
        published.append((b, s, 1 / ((4 / b + 1 / (1 - s)) / 5)))
        if not answer.strip():
            strict.append((0.0, 0.0, 0.0))
        elif answer == source:
            strict.append((similarity, 1.0, 0.0))
        else:
            strict.append((similarity, own, min(1.0, max(0.0, published[-1][2]))))
    found = score("bert_ibleu", answers, sources, (), sources=sources, similarities=similarities)
    for reading, rows in (("published", published), ("strict", strict)):
        means = 100 * np.mean(rows, axis=0)
        for i, statistic in enumerate(("bert_score", "self_bleu", "bert_ibleu")):
            assert found[f"{statistic}/{reading}"].value == pytest.approx(means[i]), (statistic, reading)


def paraphrase(answer: str, source: str, similarity: float) -> dict[str, float]:
    found = score("bert_ibleu", [answer], [source], (), sources=[source], similarities=[similarity])
    return {name: reading.value for name, reading in found.items()}


SOURCE = "rain falls on the old town again"


def test_quirk_a_copy_of_the_source_is_slightly_negative() -> None:
    found = paraphrase(SOURCE, SOURCE, 1.0)
    assert found["bert_ibleu/published"] == pytest.approx(100 * 5 / (4 / 1.00001 - 1e5), rel=1e-3)
    assert -0.01 < found["bert_ibleu/published"] < 0
    assert found["bert_ibleu/strict"] == 0


def test_quirk_a_copy_of_three_words_has_no_bleu() -> None:
    found = paraphrase("rain falls again", "rain falls again", 1.0)
    assert found["bert_ibleu/published"] == pytest.approx(100, abs=0.01)
    assert (found["bert_ibleu/strict"], found["self_bleu/strict"]) == (0, 100)


def test_quirk_an_empty_prediction_is_no_prediction() -> None:
    assert missing_text(["", " \n", " rain "]) == [NO_PREDICTION, NO_PREDICTION, "rain"]
    assert paraphrase("", SOURCE, 0.4) == pytest.approx(
        {
            "bert_ibleu/published": 100 * 5 / (4 / 0.40001 + 1 / 0.99999),
            "bert_ibleu/strict": 0,
            "bert_score/published": 40.001,
            "bert_score/strict": 0,
            "self_bleu/published": 0.001,
            "self_bleu/strict": 0,
        }
    )
    assert paraphrase("", "there is no prediction for this", 0.5)["self_bleu/published"] == pytest.approx(0.001)


def test_quirk_averages_hold_the_smoothing() -> None:
    found = paraphrase("snow comes to the old town again", SOURCE, 0.7)
    assert found["bert_score/published"] - found["bert_score/strict"] == pytest.approx(1e-3)
    assert found["self_bleu/published"] - found["self_bleu/strict"] == pytest.approx(1e-3)


def test_strict_values_stay_between_0_and_1_whatever_the_similarity() -> None:
    for similarity, low, high in ((1.2, 99, 100), (0.0, 0, 0.01), (-0.3, 0, 0.01)):
        assert low <= paraphrase("snow", SOURCE, similarity)["bert_ibleu/strict"] <= high
    assert paraphrase("snow", SOURCE, -1e-5)["bert_ibleu/published"] == 0


def test_paraphrases_need_sources_and_similarities() -> None:
    with pytest.raises(DataError, match=r"sources of 1\b.*\b0\b"):
        score("bert_ibleu", ["a"], ["b"], ())
    with pytest.raises(DataError, match=r"similarities of 1\b.*\b2\b"):
        score("bert_ibleu", ["a"], ["b"], (), sources=["b"], similarities=[0.5, 0.5])
