"""Training: objectives, losses, the training loop, checkpoints, process groups, a teacher's targets.

Imports nothing of money, and needs no pydantic.
"""
