"""Sellers of labels: the protocol `Annotator` and its implementations."""

from outlay.labels.allowance import Allowance
from outlay.labels.annotator import Annotator, Answer, Delivery, Order, RowCost, RowResult
from outlay.labels.replay import Replay

__all__ = ["Allowance", "Annotator", "Answer", "Delivery", "Order", "Replay", "RowCost", "RowResult"]
