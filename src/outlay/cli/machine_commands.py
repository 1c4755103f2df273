"""`outlay machine`: prices and speeds of machines, and a measurement of this one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outlay.cli.common import Json, PricesOption, StoreOption, say_stand_in
from outlay.cli.terminal import console, echo, print_json, table_console

if TYPE_CHECKING:
    from outlay.models.cost_model import MachineProfile
    from outlay.money.machines import Machine

machine_app = typer.Typer(no_args_is_help=True)

MachinesOption = Annotated[
    list[Path] | None, typer.Option("--machines", help="Your own machine file (TOML); may be repeated.")
]


@machine_app.command("calibrate")
def calibrate(
    out: Annotated[
        Path | None, typer.Option("--out", help="The profile to write. (default: machine.toml beside the store)")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="What to call this machine.")] = "here",
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads that steps will compute with.")] = 2,
    price_item: Annotated[
        str, typer.Option("--price-item", help="Price item of the machine record that is printed.")
    ] = "cpu",
    store: StoreOption = None,
    as_json: Json = False,
) -> None:
    """Measure this machine in under a minute, so that the seconds of a step can be forecast."""
    from outlay.models.cost_model import PROFILE_FILE
    from outlay.storage.files import write_text

    path = out or _root(store).parent / PROFILE_FILE
    profile = _measured(name, threads, quiet=as_json)
    write_text(path, profile.to_toml())
    _keep_ratio(profile)
    if as_json:
        print_json({"file": str(path), "profile": profile.to_json(), "machine": profile.as_machine(price_item)})
        return
    _print_measured(profile, price_item, path, is_found=out is None)


@machine_app.command("list")
def list_machines(machines: MachinesOption = None, prices: PricesOption = None, as_json: Json = False) -> None:
    """List the machines that compute can be charged as: dollars an hour, peak, utilisation."""
    from outlay.money.machines import load_machines

    usd = _prices(prices)
    found = load_machines(machines or [])
    if as_json:
        print_json([_document(machine, usd) for machine in found.values()])
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("Machine", "$ an hour", "peak TFLOP/s", "training", "inference", "source"):
        table.add_column(heading, justify="left" if heading in ("Machine", "source") else "right", overflow="fold")
    for machine in found.values():
        table.add_row(
            machine.name,
            usd.get(machine.price_item, "no price"),
            f"{machine.peak_flops_per_second / 1e12:,.4g}",
            f"{float(machine.utilisation_train):.0%}",
            f"{float(machine.utilisation_infer):.0%}",
            machine.source,
        )
    table_console().print(table)


@machine_app.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A machine, or `here`: the one that was measured.")],
    machines: MachinesOption = None,
    prices: PricesOption = None,
    store: StoreOption = None,
    as_json: Json = False,
) -> None:
    """Print one machine: its price and speed, or the profile that `machine calibrate` wrote."""
    from outlay.models.cost_model import PROFILE_FILE, load_profile
    from outlay.money.machines import load_machines, machine

    path = _root(store).parent / PROFILE_FILE
    profile = load_profile(path)
    if profile is not None and name == profile.name and name not in load_machines(machines or []):
        if as_json:
            print_json({"file": str(path), **profile.to_json()})
        else:
            echo(f"{path}\n\n{profile.to_toml()}", nl=False)
        return
    document = _document(machine(name, machines or []), _prices(prices))
    if as_json:
        print_json(document)
        return
    for key, value in document.items():
        echo(f"{key:22}  {'no price' if value is None else value}")


def _measured(name: str, threads: int, *, quiet: bool) -> MachineProfile:
    from outlay.cli.progress import live_bars
    from outlay.train.calibration import calibrate as measure

    screen = console(err=True)
    if not quiet:
        screen.print(f"measuring this machine with {threads} threads; nothing else should run meanwhile")
    with live_bars(screen, ("detail",), quiet=quiet) as bars:
        task = bars.add_task("measuring", total=None, detail="")

        def told(n_done: int, n_total: int) -> None:
            bars.update(task, completed=n_done, total=n_total, detail=f"{n_done} of {n_total}")

        return measure(threads=threads, name=name, on_progress=told)


def _keep_ratio(profile: MachineProfile) -> None:
    """Store the measured speed of bf16, which decides the meaning of `auto` here; without it bf16 is measured again."""
    import os
    from contextlib import suppress

    from outlay.errors import StoreError
    from outlay.hardware.precision import VARIABLE, keep_bf16_speed

    if profile.bf16_ratio is not None and not os.environ.get(VARIABLE):
        with suppress(OSError, StoreError):
            keep_bf16_speed(profile.bf16_ratio)


def _print_measured(profile: MachineProfile, price_item: str, path: Path, *, is_found: bool) -> None:
    from outlay.hardware.precision import AUTO, precision_name, ratio_words, resolve

    record = profile.as_machine(price_item)
    echo(
        f"{profile.device}, {profile.threads} threads, torch {profile.torch}: "
        f"{profile.peak_flops_per_second / 1e9:,.0f} GFLOP/s on large matrices, of which training reaches "
        f"{float(record['utilisation_train']):.0%} and inference {float(record['utilisation_infer']):.0%} "
        f"on a model of 6 layers of 384 in {precision_name(profile.precision)}"
    )
    if profile.bf16_ratio is not None:
        name, ratio = precision_name(resolve(AUTO)), ratio_words(profile.bf16_ratio)
        echo(f"bf16 is {ratio} times as fast as float32 in a matrix product: `--precision auto` is {name} here")
    echo(f"profile: {path}")
    if not is_found:
        echo(f"steps read machine.toml beside the store; {path} is only kept")
    echo("\nTo be charged by what this machine reaches, put this into a file and add --machines FILE --machine NAME:\n")
    echo("[[machine]]")
    for key, value in record.items():
        echo(f"{key} = {value if isinstance(value, int) else chr(34) + str(value) + chr(34)}")


def _root(store: str | None) -> Path:
    from outlay.storage.locations import default_location, local_root

    say_stand_in(store)
    return local_root(store or default_location())


def _prices(extra: list[Path] | None) -> dict[str, str]:
    from outlay.money.amounts import PriceBook, write_usd

    return {price.item: write_usd(price.usd) for price in PriceBook.load(extra or []).items()}


def _document(machine: Machine, usd: dict[str, str]) -> dict[str, Any]:
    return {
        "name": machine.name,
        "price_item": machine.price_item,
        "usd_per_hour": usd.get(machine.price_item),
        "peak_flops_per_second": machine.peak_flops_per_second,
        "utilisation_train": float(machine.utilisation_train),
        "utilisation_infer": float(machine.utilisation_infer),
        "source": machine.source,
    }
