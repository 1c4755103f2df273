"""Sellers of labels: the protocol `Annotator` and its implementations."""

from outlay.labels.annotator import Annotator, Delivery, Order, Pending
from outlay.labels.replay import Replay

__all__ = ["Annotator", "Delivery", "Order", "Pending", "Replay"]
