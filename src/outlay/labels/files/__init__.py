"""Labels from people who fill in a file: an order is a folder, answers come back into it."""

from outlay.labels.files.guideline import Guideline
from outlay.labels.files.order_folder import OrderFolder, order_folders
from outlay.labels.files.seller import FileSeller
from outlay.labels.files.status import OrderStatus, close_order, status

__all__ = [
    "FileSeller",
    "Guideline",
    "OrderFolder",
    "OrderStatus",
    "close_order",
    "order_folders",
    "status",
]
