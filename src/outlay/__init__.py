"""outlay: spend a fixed budget on the best compact model it can buy."""

__version__ = "0.1.0"
