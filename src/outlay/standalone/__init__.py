"""The single steps, for those who want only one: fine-tune, teach, distil, predict, evaluate.

No money moves here. A step's result lies in one place of the user's choice with the request it answers; the same request again
goes on where a kill left it. Nothing here imports torch before a model is needed.
"""
