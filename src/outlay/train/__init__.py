"""Models, batches, losses, targets and the one training loop.

With `outlay.export` the only code that imports torch. It knows nothing of money and needs no pydantic.
"""
