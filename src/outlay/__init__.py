"""outlay: spend a fixed budget on the best compact model it can buy."""

__version__ = "0.2.0.dev0"
