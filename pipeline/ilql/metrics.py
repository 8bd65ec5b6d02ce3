"""What ILQL logs."""

# name -> formula or meaning. Means are over the real tokens of all processes since the last log.
METRICS = {
    "loss": "what was minimised: loss/q + loss/v + cql_coef · loss/conservative",
    "loss/q": "mean over tokens of (Q - r - γ V')², summed over both heads",
    "loss/v": "mean over tokens of the expectile loss of V against the smaller target Q",
    "loss/conservative": "mean over tokens of log Σ exp Q - Q, summed over both heads, in nats",
    "q": "mean over the data's tokens of the smaller Q",
    "values": "mean over tokens of V before the token",
    "explained_variance": "1 - Var(R - V)/Var(R), with R what the completion still earns, discounted",
    "episodes": "completions trained on so far; a row counts in each epoch",
    "tokens": "tokens of these",
    "grad_norm": "norm of the whole gradient of the last step, before clipping",
    "learning_rate": "learning rate in the last step",
    "skipped_steps": "steps since the last log that were not made: loss or gradient was NaN or infinite",
    "epoch": "passes over the data",
}
