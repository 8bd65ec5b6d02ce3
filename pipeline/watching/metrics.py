"""What each figure is that the trainers log: name -> formula or meaning.

Means are over the real tokens (or completions) of all processes since the last log.
"""

# PPO, A2C, REINFORCE; TRL's trainers log some of them
PPO = {
    "score": "mean over completions of the weighted sum of the rewards, before KL and missing-EOS penalties",
    "score/<reward>": "mean over completions of what one reward function returned, unweighted",
    "score_std": "standard deviation of the score over the completions of a rollout, missing-EOS penalty included",
    "advantage/<reward>": "share of the advantages' variance that came of one reward's payments, Cov(A_k, A)/Var(A) "
    "over tokens; below 0 it worked against the others. These, `advantage_kl` and `advantage_rest` add up to 1",
    "advantage_kl": "the same of the KL penalty",
    "advantage_rest": "the rest of it: critic or baseline, missing-EOS penalty",
    "kl": "mean over completions of Σ_t kl_t against the reference, in nats, by `kl_estimator`, as penalised",
    "kl_coef": "β of the KL penalty in this update",
    "entropy": "mean over tokens of -Σ_a π(a) log π(a), in nats, at the sampling temperature",
    "loss/policy": "mean over tokens of -min(ρA, clip(ρ, 1-ε, 1+ε)A)",
    "loss/value": "mean over tokens of ½ max((V-R)², (clip(V, V_old ± cliprange_value)-R)²)",
    "clip_fraction/policy": "share of tokens whose ratio was clipped (no gradient)",
    "clip_fraction/value": "share of tokens whose value was clipped",
    "approx_kl": "mean over tokens of ρ - 1 - log ρ, in nats: how far the update moved from the sampling policy",
    "ratio": "mean over tokens of ρ = π/π_old",
    "ratio/max": "largest ρ",
    "ratio/first": "mean over tokens of abs(ρ - 1) in the first step on a rollout: 0 but for rounding",
    "sampler/kl": "mean over tokens of r - 1 - log r with r = π_ours/π_sampler, in nats: how far a vLLM server is "
    "from the trainer's own pass (with `rollout_ahead` an update lies between them); with `vllm_server` only",
    "sampler/ratio_max": "largest r, before it is truncated",
    "sampling/sampling_logp_difference/mean": "mean over tokens of abs(log π_ours - log π_sampler), in nats; "
    "TRL's, with `vllm_server` only, as the next four",
    "sampling/sampling_logp_difference/max": "the largest of these",
    "sampling/importance_sampling_ratio/min": "smallest weight of a token in the loss: π_ours/π_sampler, cut at "
    "`vllm_importance_sampling_clip_max`",
    "sampling/importance_sampling_ratio/mean": "mean of these weights",
    "sampling/importance_sampling_ratio/max": "the largest of these weights",
    "replay/weight": "mean over tokens of earlier rollouts of min(2, π/π_sampled), with `replay` only",
    "explained_variance": "1 - Var(R - V)/Var(R) of the critic before the update",
    "values": "mean over tokens of V before the update",
    "returns": "mean over tokens of R = A + V, before whitening",
    "length/mean": "mean tokens that the policy sampled in a completion, end-of-text token included",
    "length/min": "shortest completion, tokens",
    "length/max": "longest completion, tokens",
    "finished": "share of completions that ended with an end-of-text token (the others were cut at the limit)",
    "repetition": "mean over completions of the share of token trigrams that stood earlier in the same completion",
    "episodes": "completions sampled so far",
    "tokens": "completion tokens sampled so far",
    "tokens_per_second": "completion tokens of the update / wall time of the update, all processes together",
    "time/generation": "seconds an update in sampling completions (per process)",
    "time/scoring": "seconds an update in reward functions",
    "time/forward": "seconds an update in log-probabilities and values of the rollout",
    "time/training": "seconds an update in forward and backward passes of the PPO epochs",
    "grad_norm": "norm of the whole gradient of the last step, before clipping",
    "learning_rate": "learning rate of the policy in the last step",
    "loss": "what was minimised: loss/policy + vf_coef · loss/value - entropy_coef · entropy",
    "skipped_steps": "optimizer steps since the last log that were not made: loss or gradient was NaN or infinite",
    "epoch": "passes over the prompts",
}

DPO = {
    "loss": "what was minimised: mean over pairs of -log sigmoid(rewards/chosen - rewards/rejected), by loss_type",
    "rewards/chosen": "mean over pairs of beta (log π - log π_ref) of the chosen completion: its implicit reward",
    "rewards/rejected": "the same of the rejected one",
    "rewards/margins": "mean of the difference of the two",
    "rewards/accuracies": "share of pairs whose chosen completion has the higher implicit reward",
    "logps/chosen": "mean of log π of the chosen completion, in nats",
    "logps/rejected": "the same of the rejected one",
    "episodes": "completions trained on so far, two a pair; a pair counts in each epoch",
    "tokens": "tokens of these",
    "grad_norm": "norm of the whole gradient of the last step, before clipping",
    "learning_rate": "learning rate in the last step",
    "skipped_steps": "steps since the last log that were not made: loss or gradient was NaN or infinite",
    "epoch": "passes over the data",
}

ILQL = {
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
