"""Machines and their files, exact seconds and money, and a meter that never passes its hold."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.errors import MoneyError, UnknownItem
from outlay.money.amounts import Price, PriceBook, Quote
from outlay.money.machines import Machine, load_machines, machine
from outlay.money.meter import Meter, MeterState, Reserve


def hourly(usd: str = "3.75", item: str = "gpu") -> Price:
    return Price(item, "hour", Decimal(usd), "test", None)


def hold_of(charge_micros: int, cash_micros: int) -> Quote:
    return Quote("gpu", "hour", Fraction(1), Decimal(1), charge_micros, cash_micros)


FAST = Machine("fast", "gpu", 1000, Fraction(1, 2), Fraction(1, 4), "test")
"""500 FLOP/s training, 250 FLOP/s inference."""


class TestMachines:
    def test_every_shipped_machine_has_an_hourly_price_and_a_source(self) -> None:
        prices = PriceBook.load()
        machines = load_machines()
        assert {"cpu", "a100-40gb", "a40", "h100", "h200", "l4", "t4", "rtx-4090"} <= set(machines)
        for name, found in machines.items():
            assert found.name == name
            assert prices.get(found.price_item).unit == "hour"
            assert len(found.source) > 10
        assert machines["a100-40gb"].peak_flops_per_second == 312 * 10**12
        assert machines["a40"].peak_flops_per_second == 1497 * 10**11

    def test_seconds_and_hours_are_exact(self) -> None:
        assert FAST.seconds(7, train=True) == Fraction(7, 500)
        assert FAST.seconds(7, train=False) == Fraction(7, 250)
        assert FAST.hours(500 * 3600, 250 * 1800) == Fraction(3, 2)
        a100 = machine("a100-40gb")
        assert a100.seconds(10**18, train=True) == Fraction(10**18 * 100, 312 * 10**12 * 35)
        assert a100.utilisation_train == Fraction(7, 20)

    def test_identity_holds_all_that_moves_seconds(self) -> None:
        assert set(FAST.identity()) == {
            "name",
            "price_item",
            "peak_flops_per_second",
            "utilisation_train",
            "utilisation_infer",
        }
        assert FAST.identity()["utilisation_infer"] == "1/4"

    def test_an_unknown_machine_lists_the_known_ones(self) -> None:
        with pytest.raises(
            UnknownItem, match=r"no machine 'a100' \(did you mean a100-\d+gb\?\); known: cpu, a100-40gb"
        ):
            machine("a100")

    def test_a_file_of_ones_own_adds_and_replaces(self, tmp_path: Path) -> None:
        path = tmp_path / "machines.toml"
        path.write_text(record(name="cpu", peak=7) + record(name="mine", utilisation="1"))
        assert machine("cpu", [path]).peak_flops_per_second == 7
        assert machine("mine", [path]).utilisation_train == 1
        assert "a40" in load_machines([path])

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("machine = 3", r"\[\[machine\]\]"),
            ("", r"\[\[machine\]\]"),
            ("[[machine", "TOML"),
            ("[[machine]]\nname = 'x'", "machine 1: .* name, price_item"),
            ("machine = [1]", "machine 1: .* name, price_item"),
            ("record:peak=0", r"\b0 FLOP/s.* above 0"),
            ("record:peak='fast'", "peak_flops_per_second is 'fast'"),
            ("record:utilisation=0", r"\b0; .* above 0, up to 1"),
            ("record:utilisation=1.5", "3/2; .* above 0, up to 1"),
            ("record:utilisation=1/0", r"'1/0'.*\b0\.35"),
            ("record:name=", "name is ''"),
            ("twice", "machine 2: 'x' .* twice"),
        ],
    )
    def test_wrong_files(self, tmp_path: Path, text: str, says: str) -> None:
        path = tmp_path / "machines.toml"
        if text == "twice":
            text = record(name="x") * 2
        elif text.startswith("record:"):
            field, _, value = text.removeprefix("record:").partition("=")
            text = record(**{field: value})
        path.write_text(text)
        with pytest.raises(MoneyError, match=says) as raised:
            load_machines([path])
        assert "\n" not in str(raised.value)

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(MoneyError, match=r"machine file.*none\.toml"):
            load_machines([tmp_path / "none.toml"])


def record(name: str = "x", peak: object = 10, utilisation: str = "0.5") -> str:
    return (
        f'[[machine]]\nname = "{name}"\nprice_item = "gpu"\npeak_flops_per_second = {peak}\n'
        f'utilisation_train = "{utilisation}"\nutilisation_infer = "0.5"\nsource = "a test"\n'
    )


def test_compute_is_paid_by_the_hour() -> None:
    with pytest.raises(MoneyError, match=r"'x'.*per label.*by the hour"):
        Meter(FAST, Price("x", "label", Decimal(1), "test", None), hold_of(1, 1))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class TestMeter:
    UNLIMITED = hold_of(10**15, 10**15)

    @settings(deadline=None)
    @given(
        batches=st.lists(st.tuples(st.integers(0, 10**7), st.booleans()), max_size=40),
        reserve=st.builds(Reserve, st.integers(0, 10**6), st.integers(0, 10**6), st.just(0.0)),
        limit=st.integers(0, 10**8),
        kill_after=st.integers(0, 40),
    )
    def test_it_never_passes_its_hold(
        self, batches: list[tuple[int, bool]], reserve: Reserve, limit: int, kill_after: int
    ) -> None:
        hold = hold_of(limit, 10**15)
        meter = Meter(FAST, hourly(), hold, reserve=reserve, clock=Clock())
        done = {True: 0, False: 0}
        for i, (flops, train) in enumerate(batches):
            if i == kill_after:
                kept = json.loads(json.dumps(meter.state().to_json()))
                meter = Meter(FAST, hourly(), hold, reserve=reserve, clock=Clock())
                meter.restore(MeterState.from_json(kept))
            after = dict(done)
            after[train] += flops
            fits = self.cost(after[True] + reserve.flops_train, after[False] + reserve.flops_infer) <= limit
            assert meter.may_start(flops, train=train) == fits
            if fits:
                meter.add(flops, train=train)
                done = after
                assert meter.charge_micros == self.cost(done[True], done[False]) <= limit
        if any(done.values()):  # what was reserved fits
            meter.add(reserve.flops_train, train=True)
            meter.add(reserve.flops_infer, train=False)
        assert meter.charge_micros <= limit or not any(done.values())

    @staticmethod
    def cost(train: int, infer: int) -> int:
        return math.ceil(Fraction(train, 500) / 3600 * 3_750_000 + Fraction(infer, 250) / 3600 * 3_750_000)

    def test_the_total_is_rounded_up_once(self) -> None:
        meter = Meter(FAST, hourly(), self.UNLIMITED, clock=Clock())
        for _ in range(1000):
            meter.add(1)
        assert meter.charge_micros == math.ceil(1000 * 3_750_000 / 500 / 3600) == 2084
        assert meter.hours * 3600 == 2
        assert meter.hours == Fraction(2, 3600)

    def test_cash_is_the_wall_clock(self) -> None:
        clock = Clock()
        meter = Meter(FAST, hourly(), self.UNLIMITED, clock=clock)
        clock.now += 7
        assert meter.wall_seconds == 7
        assert meter.cash_micros == math.ceil(7 * 3_750_000 / 3600)
        assert meter.charge_micros == 0

    def test_cash_is_paid_for_the_machine_that_is_here(self) -> None:
        clock = Clock()
        meter = Meter(FAST, hourly(), self.UNLIMITED, cash_price=hourly("0.05", "cpu"), clock=clock)
        clock.now += 3600
        assert meter.cash_micros == 50_000

    def test_it_foresees_cash_from_the_pace_of_the_work(self) -> None:
        clock = Clock()
        meter = Meter(FAST, hourly("3.6"), hold_of(10**15, 10_000), reserve=Reserve(wall_seconds=2), clock=clock)
        clock.now += 1  # loading the model is no work: it costs, but says nothing of the pace
        n = 0
        while meter.may_start(500):  # one second on the flops clock, two by the wall
            clock.now += 2
            meter.add(500)
            n += 1
        assert n == 3  # 1 + 3 * 2 = 7 s; one more and the reserve would make 11 s of the 10 that are paid for
        assert meter.cash_micros == 7_000
        assert not Meter(FAST, hourly("3.6"), hold_of(10**15, 1_999), reserve=Reserve(wall_seconds=2)).may_start(0)

    def test_it_goes_on_from_a_checkpoint(self) -> None:
        clock = Clock()
        meter = Meter(FAST, hourly(), self.UNLIMITED, clock=clock)
        assert meter.may_start(500)
        clock.now += 4
        meter.add(500)
        meter.add(250, train=False)
        state = MeterState.from_json(json.loads(json.dumps(meter.state().to_json())))
        assert state == MeterState(500, 250, 4.0, 4.0)
        later = Clock()
        resumed = Meter(FAST, hourly(), self.UNLIMITED, clock=later)
        later.now += 3
        resumed.restore(state)
        assert resumed.state() == MeterState(500, 250, 7.0, 4.0)
        assert resumed.charge_micros == meter.charge_micros

    def test_prices_must_be_hourly(self) -> None:
        label = Price("label/x", "label", Decimal("0.2"), "test", None)
        with pytest.raises(MoneyError, match=r"'label/x'.*per label"):
            Meter(FAST, label, self.UNLIMITED)
        with pytest.raises(MoneyError, match=r"'label/x'.*per label"):
            Meter(FAST, hourly(), self.UNLIMITED, cash_price=label)
