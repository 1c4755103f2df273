"""`outlay model`: sizes, size and FLOPs of a model reference, models of random weights, and a handed-over one onto a hub."""

from __future__ import annotations

import io
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outlay.cli.common import Json, parse_labels, say_notes
from outlay.cli.run_options import QuietOption
from outlay.cli.terminal import console, echo, print_json, table_console

if TYPE_CHECKING:
    from outlay.export.hub import Pushed, PushRequest
    from outlay.export.hub_files import HubFiles
    from outlay.models.random_init import Corpus
    from outlay.models.shape import ModelShape

model_app = typer.Typer(no_args_is_help=True)

LIST_N_LABELS = 2
"""Default number of classes of the head that an encoder is counted with."""

SizesOption = Annotated[
    list[Path] | None, typer.Option("--sizes", help="Your own file of sizes (YAML); may be repeated.")
]
TaskOption = Annotated[
    str | None, typer.Option("--task", help="Learn the tokenizer from this task's train and pool texts.")
]
DataOption = Annotated[Path | None, typer.Option("--data", help="Folder of data sets. (default: $OUTLAY_DATA)")]
TextsOption = Annotated[
    list[Path] | None, typer.Option("--texts", help="Learn the tokenizer from the lines of this file; may be repeated.")
]
LabelsOption = Annotated[
    list[str] | None,
    typer.Option("--labels", help="With --texts: words that get a token each, with commas; or --labels once for each."),
]


@model_app.command("list")
def model_list(sizes: SizesOption = None, as_json: Json = False) -> None:
    """Name the sizes that `make` builds: layers, parameters, FLOPs per token."""
    from outlay.models.shape import shape_of_size
    from outlay.models.sizes import load_sizes

    shapes = {name: shape_of_size(size) for name, size in load_sizes(sizes or ()).items()}
    if as_json:
        print_json([{"size": name, **_weighed(shape, LIST_N_LABELS)} for name, shape in shapes.items()])
        return
    from rich.table import Table

    columns = (
        "size",
        "family",
        "layers",
        "width",
        "vocabulary",
        "parameters",
        "counted (N)",
        "FLOPs/token, train",
        "forward",
    )
    table = Table(*columns, box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for name, shape in shapes.items():
        row = _weighed(shape, LIST_N_LABELS)
        millions = (f"{row[key] / 1e6:,.1f} M" for key in ("n_parameters", "n_counted_parameters"))
        flops = (f"{row[key]:.2e}" for key in ("flops_train_per_token", "flops_infer_per_token"))
        table.add_row(
            name, shape.family, _layers(shape), str(shape.hidden_size), f"{shape.vocab_size:,}", *millions, *flops
        )
    table_console().print(table)


@model_app.command("show")
def model_show(
    ref: Annotated[
        str, typer.Argument(metavar="REF", help="A hub name, a folder, package:PKG/SUB, cut:K or tiny:LxH.")
    ],
    base: Annotated[
        str | None, typer.Option("--base", help="The checkpoint that cut:K and tiny:LxH are made from.")
    ] = None,
    n_labels: Annotated[int, typer.Option("--n-labels", min=1, help="Classes of an encoder's head.")] = LIST_N_LABELS,
    as_json: Json = False,
) -> None:
    """Say what a model reference is: family, layers, width, parameters; read without loading it."""
    from outlay.models.shape import shape_of

    shape = shape_of(ref, base=base)
    row = _weighed(shape, n_labels)
    if as_json:
        print_json({"model": ref, "base": base, "n_labels": n_labels, **row})
        return
    head = f"the head of {n_labels} classes" if shape.family == "encoder" else "the head over the vocabulary"
    tied = ", which is the table of words itself" if shape.tied_head else ""
    lines = [
        ("family", shape.family),
        ("layers", _layers(shape) + (" (encoder + decoder)" if shape.n_decoder_layers else "")),
        ("width", f"{shape.hidden_size:,}"),
        ("vocabulary", f"{shape.vocab_size:,} rows"),
        ("parameters", f"{row['n_parameters']:,}"),
        ("  embeddings", f"{shape.n_embedding_parameters:,}"),
        ("counted (N)", f"{row['n_counted_parameters']:,}: weight matrices of the layers and of {head}{tied}"),
        ("FLOPs/token", f"{row['flops_train_per_token']:,} to train, {row['flops_infer_per_token']:,} forward"),
    ]
    echo("\n".join(f"{name:13} {value}" for name, value in lines))


@model_app.command("make")
def model_make(
    size: Annotated[str, typer.Argument(metavar="SIZE", help="A size by name; `outlay model list` names them.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the new checkpoint.")],
    task: TaskOption = None,
    data: DataOption = None,
    texts: TextsOption = None,
    labels: LabelsOption = None,
    vocab_size: Annotated[
        int | None, typer.Option("--vocab-size", min=1, help="Rows of the vocabulary. (default: the size's)")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the random weights.")] = 0,
    bf16: Annotated[bool, typer.Option("--bf16", help="Keep the weights in bfloat16: half the bytes.")] = False,
    sizes: SizesOption = None,
    as_json: Json = False,
) -> None:
    """Build a checkpoint of random weights, with a tokenizer learnt from a task's texts. It knows nothing."""
    from outlay.models.random_init import build_checkpoint
    from outlay.models.sizes import find_size
    from outlay.settings import check_seed

    check_seed(seed)
    chosen = find_size(size, sizes or ())
    chosen = replace(chosen, vocab_size=vocab_size) if vocab_size is not None else chosen
    corpus = _corpus(task, data, texts, labels)
    built = build_checkpoint(chosen, corpus, out, seed=seed, bf16=bf16)
    if as_json:
        document = {"n_texts": len(corpus.texts), "seed": seed, "knows_nothing": True}
        print_json({**asdict(built), "folder": str(built.folder), "size": asdict(chosen), **document})
        return
    echo(
        f"{built.folder}: {chosen.name} with {built.n_parameters:,} parameters, {built.n_tokens:,} tokens learnt from "
        f"{len(corpus.texts):,} texts\nIts weights are random: it knows nothing. It is for trying things and for measuring speed."
    )


@model_app.command("push")
def model_push(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="A results folder, as `run` and `compare` make it, or its model.")
    ],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME, or NAME for the account of the token.")],
    private: Annotated[
        bool, typer.Option("--private/--public", help="Who may read it: you and your organisation, or all.")
    ] = True,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="BRANCH", help="Branch, new or there. (default: main)")
    ] = None,
    message: Annotated[
        str | None, typer.Option("--message", help="Of the commit. (default: which model it is)")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", metavar="URL", help="The hub. (default: $HF_ENDPOINT or https://huggingface.co)"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List files, bytes and place; send nothing.")] = False,
    quiet: QuietOption = False,
    as_json: Json = False,
) -> None:
    """Push the model that a run or a comparison handed over to a Hugging Face hub, with its card, in one commit."""
    from outlay.export.hub import PushRequest, push

    asked = PushRequest(out, repo, private=private, revision=revision, message=message, endpoint=endpoint)
    files, is_quiet = asked.files(), quiet or as_json
    if dry_run:
        _show_push(asked, files, as_json=as_json)
        return
    say_notes(files.notes, quiet=is_quiet)
    screen = console(err=True, quiet=is_quiet)
    screen.print(f"sending {_count(files)}, to {asked.place}", style="dim", soft_wrap=True)
    pushed = push(asked, bars=screen.is_terminal and not is_quiet)
    if as_json:
        print_json(_push_json(asked, pushed.files, pushed))
        return
    _say_pushed(asked, pushed)


def _say_pushed(asked: PushRequest, pushed: Pushed) -> None:
    files, readers = pushed.files, "private" if pushed.is_private else "public"
    done = f"pushed {_count(files)}" if pushed.is_changed else "nothing to push, the same files are there"
    lines = [f"{done}: {pushed.url} ({readers}, commit {pushed.commit[:7]})"]
    lines += [f"removed, of the model before: {', '.join(pushed.removed)}"] if pushed.removed else []
    lines += [f"hub: export HF_ENDPOINT={asked.hub}"] if asked.endpoint is not None else []
    echo("\n".join([*lines, f"fetch: {files.fetch}", f"predict: {files.predict}", "", files.loading]), nl=False)


def _show_push(asked: PushRequest, files: HubFiles, *, as_json: bool) -> None:
    if as_json:
        print_json(_push_json(asked, files, None))
        return
    for name, n_bytes in files.sizes.items():
        echo(f"{n_bytes:15,} {name}")
    echo(f"{sum(files.sizes.values()):15,} bytes in {len(files.sizes):,} files to {asked.place}; nothing was sent")
    say_notes(files.notes)


def _push_json(asked: PushRequest, files: HubFiles, pushed: Pushed | None) -> dict[str, Any]:
    done = (
        None if pushed is None else {"commit": pushed.commit, "changed": pushed.is_changed, "removed": pushed.removed}
    )
    return {
        "url": pushed.url if pushed is not None else asked.place if "/" in files.repo else None,
        "repo": files.repo,
        "revision": asked.revision,
        "private": asked.private if pushed is None else pushed.is_private,
        "folder": str(files.folder),
        "files": [{"name": name, "n_bytes": n_bytes} for name, n_bytes in files.sizes.items()],
        "n_bytes": sum(files.sizes.values()),
        "notes": files.notes,
        "pushed": done,
    }


def _count(files: HubFiles) -> str:
    from outlay.report.values import size_text

    return f"{len(files.sizes):,} files, {size_text(sum(files.sizes.values()) / 1e6)} MB"


def _weighed(shape: ModelShape, n_labels: int) -> dict[str, Any]:
    from outlay.models.shape import flops_infer, flops_train

    return {
        **asdict(shape),
        "n_parameters": shape.n_total_parameters(n_labels),
        "n_counted_parameters": shape.n_counted_parameters(n_labels),
        "flops_train_per_token": flops_train(shape, 1, n_labels),
        "flops_infer_per_token": flops_infer(shape, 1, n_labels),
    }


def _layers(shape: ModelShape) -> str:
    return f"{shape.n_layers} + {shape.n_decoder_layers}" if shape.n_decoder_layers else str(shape.n_layers)


def _corpus(task: str | None, data: Path | None, files: list[Path] | None, labels: list[str] | None) -> Corpus:
    from outlay.errors import UsageError

    if (task is None) == (not files):
        raise UsageError("a tokenizer is learnt from --task NAME or from --texts FILE; give one of them")
    if task is not None and labels is not None:
        raise UsageError("--labels belongs to --texts; a task has its own")
    return _task_corpus(task, data) if task is not None else _file_corpus(files or [], labels)


def _task_corpus(name: str, root: Path | None) -> Corpus:
    """Return the texts that a task's models read: rows without their answers, which are for sale, and the label set."""
    from outlay.models.random_init import Corpus
    from outlay.tasks.loading import load_data
    from outlay.tasks.task import load_task

    task = load_task(name)
    form = task.form
    splits = load_data(task, root).splits()
    rows = [example for split, examples in splits if split not in ("dev", "test") for example in examples]
    answers = [f"[{label}]" for label in form.labels] if form.kind == "entities" else form.labels
    return Corpus([form.prefix + example.text for example in rows], tuple(answers))


def _file_corpus(files: list[Path], labels: list[str] | None) -> Corpus:
    from outlay.text.text_file import read_text

    texts = []
    for path in files:
        lines = io.StringIO(read_text(path), newline="")
        texts += [text for line in lines if (text := line.rstrip("\r\n")).strip()]
    from outlay.models.random_init import Corpus

    return Corpus(texts, parse_labels(labels))
