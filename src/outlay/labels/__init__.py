"""Sellers of labels: one protocol, `Annotator`, and everyone who keeps it."""

from outlay.labels.annotator import Annotator, Delivery, Order, Pending
from outlay.labels.replay import Replay

__all__ = ["Annotator", "Delivery", "Order", "Pending", "Replay"]
