"""Lines of Python that load a handed-over model without `outlay`, for its card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outlay.spec import TaskSpec
from outlay.tasks.row_form import RowForm

MODEL = "MODEL"
"""Name in the lines of the folder of the model."""


def loading_lines(head_file: Mapping[str, Any], rows: RowForm) -> str:
    """Return lines that define ``answer(row)``, where a row holds the fields of the task by name; ``MODEL`` names the folder.

    ``head_file``: content of the model's ``outlay.json`` (`outlay.models.loading.write_head_file`).
    """
    form, family, own = TaskSpec.from_json(head_file["form"]), head_file["family"], head_file.get("head")
    if own is not None and own["method"] in ("tfidf", "majority"):
        return _words(form, rows, own["method"])
    if own is not None:
        return _pooled(form, rows, own["reading"], family)
    if family == "encoder":
        return _tagger(rows) if form.kind == "entities" else _classifier(rows)
    return (_ranked if head_file["target"] == "classes" else _written)(form, rows, family)


def hub_lines(lines: str, repo: str, revision: str | None = None) -> str:
    """Return lines of `loading_lines` for a model on a hub.

    ``repo``: OWNER/NAME in the place of ``MODEL``; lines that read files of the model, or of another branch (``revision``), fetch
    it first.
    """
    if revision is None and f"{MODEL}/" not in lines:
        return lines.replace(f'"{MODEL}"', f'"{repo}"')
    branch = "" if revision is None else f', revision="{revision}"'
    written = lines.splitlines()
    n_imports = 1 + max(i for i, line in enumerate(written) if line.startswith(("import ", "from ")))
    fetched = ["from huggingface_hub import snapshot_download", "", f'folder = snapshot_download("{repo}"{branch})']
    whole = "\n".join([*written[:n_imports], *fetched, *written[n_imports:]]) + "\n"
    return whole.replace(f'"{MODEL}"', "folder").replace(f'"{MODEL}/', 'f"{folder}/')


def _field(name: str) -> str:
    return f'row["{name}"]'


def _text(rows: RowForm) -> str:
    """Return the expression of a row's whole text."""
    return (
        _field(rows.text[1:-1])
        if rows.text in {f"{{{name}}}" for name in rows.columns}
        else f"{rows.text!r}.format(**row)"
    )


def _segments(rows: RowForm) -> list[str]:
    """Return the expressions of the one or two texts that an encoder reads."""
    return [_text(rows) if name == "text" else _field(name) for name in rows.segments]


def _labels(form: TaskSpec) -> str:
    return f"labels = {list(form.labels)!r}"


def _classifier(rows: RowForm) -> str:
    given = ", ".join(f'"{name}": {text}' for name, text in zip(("text", "text_pair"), _segments(rows), strict=False))
    return f"""\
from transformers import pipeline

classify = pipeline("text-classification", model="{MODEL}", truncation=True)


def answer(row):
    return classify({{{given}}})["label"]
"""


def _tagger(rows: RowForm) -> str:
    return f"""\
from transformers import pipeline

tag = pipeline("token-classification", model="{MODEL}", aggregation_strategy="simple")


def answer(row):
    text = {_text(rows)}
    return [(text[found["start"] : found["end"]], found["entity_group"]) for found in tag(text)]
"""


def _pooled(form: TaskSpec, rows: RowForm, reading: str, family: str) -> str:
    texts = _segments(rows) if family == "encoder" else [_text(rows)]
    if reading == "towers":
        vectors = f"u, v = encoder.encode([{', '.join(texts)}])\n    vector = np.concatenate([u, v, abs(u - v), u * v])"
    else:
        one = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
        vectors = f"vector = encoder.encode([{one}])[0]"
    return f"""\
import numpy as np
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer

encoder, head = SentenceTransformer("{MODEL}"), load_file("{MODEL}/head.safetensors")
{_labels(form)}


def answer(row):
    {vectors}
    return labels[int(np.argmax(head["weight"] @ vector + head["bias"]))]
"""


def _words(form: TaskSpec, rows: RowForm, method: str) -> str:
    if method == "majority":
        return f"""\
from safetensors.numpy import load_file

{_labels(form)}
head = load_file("{MODEL}/head.safetensors")


def answer(row):
    return labels[int(head["bias"].argmax())]
"""
    text = " + '\\n' + ".join(_segments(rows))
    return f"""\
import json
from itertools import pairwise
from pathlib import Path

from safetensors.numpy import load_file
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

{_labels(form)}
split = CountVectorizer(strip_accents="unicode")
prepare, words_of = split.build_preprocessor(), split.build_tokenizer()


def analyze(text):
    words = words_of(prepare(text))[:{form.max_source_tokens}]
    return [*words, *(f"{{first}} {{second}}" for first, second in pairwise(words))]


head = load_file("{MODEL}/head.safetensors")
words_known = json.loads(Path("{MODEL}/vocabulary.json").read_text(encoding="utf-8"))
vocabulary = {{word: i for i, word in enumerate(words_known)}}
vectorizer = TfidfVectorizer(analyzer=analyze, sublinear_tf=True, vocabulary=vocabulary)
vectorizer.idf_ = head["idf"]


def answer(row):
    words = vectorizer.transform([{text}])
    return labels[int((words @ head["weight"].T + head["bias"]).argmax())]
"""


def _prompt(form: TaskSpec, rows: RowForm, family: str) -> tuple[str, str]:
    """Return the class that loads a model which writes, and the lines that make ``read`` of a row."""
    text = f"{form.prefix!r} + {_text(rows)}" if form.prefix else _text(rows)
    limit = form.max_source_tokens
    if family == "seq2seq":
        return "AutoModelForSeq2SeqLM", f"tokenizer({text}, truncation=True, max_length={limit}).input_ids"
    return "AutoModelForCausalLM", f"prompt_of({text})"


_PROMPT_OF = """

def prompt_of(text):
    close = tokenizer("\\n", add_special_tokens=False).input_ids
    ids = tokenizer(text, truncation=True, max_length=LIMIT - len(close)).input_ids
    return [*(ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids), *close]
"""


def _head_of_writer(form: TaskSpec, auto: str, family: str) -> str:
    prompt_of = _PROMPT_OF.replace("LIMIT", str(form.max_source_tokens)) if family == "causal" else ""
    return f"""\
import torch
from transformers import {auto}, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained("{MODEL}"), {auto}.from_pretrained("{MODEL}").eval()
{prompt_of}"""


def _written(form: TaskSpec, rows: RowForm, family: str) -> str:
    auto, read = _prompt(form, rows, family)
    behind = "[0]" if family == "seq2seq" else "[0][len(read):]"
    return f"""\
{_head_of_writer(form, auto, family)}

def answer(row):
    read = {read}
    others = list(range(len(tokenizer), model.get_input_embeddings().num_embeddings)) or None
    given = {{"input_ids": torch.tensor([read]), "attention_mask": torch.ones(1, len(read), dtype=torch.long)}}
    written = model.generate(**given, max_new_tokens={form.max_target_tokens}, do_sample=False, suppress_tokens=others)
    return tokenizer.decode(written{behind}, skip_special_tokens=True).strip()
"""


def _ranked(form: TaskSpec, rows: RowForm, family: str) -> str:
    auto, read = _prompt(form, rows, family)
    if family == "seq2seq":
        score = """\
    ids = tokenizer(text_target=label).input_ids
    return -len(ids) * model(input_ids=torch.tensor([read]), labels=torch.tensor([ids])).loss.item()"""
    else:
        score = """\
    ids = [*tokenizer(label, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    whole, asked = torch.tensor([[*read, *ids]]), torch.tensor([[*[-100] * len(read), *ids]])
    return -len(ids) * model(input_ids=whole, labels=asked).loss.item()"""
    return f"""\
{_head_of_writer(form, auto, family)}{_labels(form)}


@torch.no_grad()
def log_probability(read, label):
{score}


def answer(row):
    read = {read}
    return max(labels, key=lambda label: log_probability(read, label))
"""
