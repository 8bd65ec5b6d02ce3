"""What stands in the files of a run folder, in the language of reading.py. Readers rely on nothing else."""

from pipeline.safety.reading import MESSAGES, NUMBER, TEXT

_MEANS = ({str: NUMBER}, None)  # name -> mean over the held-out rows
_BIN = {"from": float, "to": float, "pairs": int, "confidence?": NUMBER, "accuracy?": NUMBER}

# summary.json of SFT, the reward model and the algorithms of reinforcement learning; others have their own
SUMMARY = {
    "stage?": (str, None),
    "algorithm?": (str, None),
    "before?": _MEANS,
    "after?": _MEANS,
    "greedy?": ({"before?": _MEANS, "after?": _MEANS}, None),
    "heldout_loss?": ({"before": NUMBER, "after": NUMBER}, None),
    "calibration_bins?": ([_BIN], None),
    **{f"{key}?": NUMBER for key in ("kl", "episodes", "tokens", "seconds", "heldout_rows", "rows", "steps", "pairs")},
    **{f"{key}?": NUMBER for key in ("accuracy", "accuracy_se", "margin", "log_loss", "calibration_error")},
    **{f"{key}?": NUMBER for key in ("score_mean", "score_std", "heldout", "peak_memory_mib")},
    "heldout_pairs?": int,
    **{f"{key}?": (str, None) for key in ("base", "base_fingerprint", "started_from", "dtype", "hardware")},
}
EXAM = {"step?": float, "kl?": NUMBER, "score?": NUMBER, "rewards?": _MEANS, "referee?": _MEANS}  # of heldout.jsonl
_TURN = {"said": str, "calls": [str], "answers": [str], "paid": NUMBER}
SAMPLE = {  # of samples.jsonl
    "prompt?": TEXT,
    "before?": TEXT,
    "after?": TEXT,
    "scores_before?": _MEANS,
    "scores_after?": _MEANS,
    "length_before?": NUMBER,
    "length_after?": NUMBER,
    "turns_before?": ([_TURN], None),  # where the completions are games of several turns
    "turns_after?": ([_TURN], None),
}
PAIR = {  # of pairs.jsonl
    "prompt?": TEXT,
    "chosen": (str, MESSAGES),
    "rejected": (str, MESSAGES),
    "score_chosen": float,
    "score_rejected": float,
}
_OF_TOKENS = [float]
TOKENS = {  # of tokens.jsonl
    "prompt": (str, MESSAGES),
    "why": str,
    "score": NUMBER,
    "score_before": NUMBER,
    "tokens": [str],
    "silent": {str: str},
    "rewards": _OF_TOKENS,
    "scores": (_OF_TOKENS, None),
    "values": (_OF_TOKENS, None),
    "advantages": (_OF_TOKENS, None),
    "kl": _OF_TOKENS,
    "probs_before": _OF_TOKENS,
    "probs_after": _OF_TOKENS,
}
_SHIFT = {
    "token": str,
    "before": float,
    "after": float,
    "change": float,
    "sampled_before": float,
    "sampled_after": float,
    "example": {"prompt": (str, MESSAGES), "context": str, "before": float, "after": float},
}
SHIFTS = {"gains": [_SHIFT], "losses": [_SHIFT], "completions": [int], "positions": int}  # shifts.json
# config.yaml and adapter_config.json, as far as they are read for more than being shown
CONFIG = {
    "rewards?": ([(dict, str)], None),
    "versions?": ({str: (str, float)}, None),
    **{f"{key}?": (str, None) for key in ("dataset", "eval_dataset", "referee", "hub_model_id", "output_dir")},
    **{f"{key}?": (str, None) for key in ("adapter_path", "model_name_or_path", "algorithm", "dtype")},
    **{f"{key}?": NUMBER for key in ("max_steps", "total_episodes", "seed", "temperature")},
    "max_completion_length?": (int, None),
}
ADAPTER_CONFIG = {
    "base_model_name_or_path?": (str, None),
    "task_type?": (str, None),
    "revision?": (str, None),
    "r?": int,
    "lora_alpha?": float,
    "target_modules?": ([str], str, None),
    "modules_to_save?": ([str], None),
    "use_rslora?": (bool, None),
    "use_dora?": (bool, None),
    "rank_pattern?": ({str: int}, None),
    "alpha_pattern?": ({str: float}, None),
}
_FIGURE = {"value": NUMBER, "low": NUMBER, "high": NUMBER}
_WORTH = {**_FIGURE, "samples": NUMBER}
_POINT = {"n": int, "kl": float, "score": _FIGURE, "rewards": {str: _FIGURE}, "referee": {str: _FIGURE}}
EVALUATION = {  # summary.json of `make eval`, as far as the report shows it
    "reference": str,
    "prompts": int,
    "candidates": {str: {"path": str, "sampled": {str: _FIGURE}}},
    "sharpened?": (
        {str: {"name": str, "temperature": NUMBER, "entropy": float, "entropy_start": float, "entropy_found": NUMBER}},
        None,
    ),
    "best_of?": (
        {
            "candidate": str,
            "samples": int,
            "weights": {str: float},
            "curve": [_POINT],
            "worth": {str: {"score": _WORTH, "referee": {str: _WORTH}}},
        },
        None,
    ),
}
