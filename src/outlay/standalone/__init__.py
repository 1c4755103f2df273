"""Single steps without a budget: fine-tune, teach, distil, predict, evaluate.

No money moves here. A step's result lies in one place of the user's choice with its request; the same request again
goes on where a kill stopped it. Nothing here imports torch before a model is needed.
"""
