"""Reward models that know when they do not know: k of them on one base, each trained on pairs drawn anew.

Each member is a run of the reward-model stage in a folder of its own, `member_1` to `member_k`: another seed for head,
adapter and order, and as many pairs as there are, drawn from them with replacement (the bootstrap: Efron 1979). All
are measured on the same held-out pairs. `rewards/ensemble.py` makes one score of theirs.
"""

import copy
import json
import time
from pathlib import Path

import torch

from pipeline.config import DataArguments, ModelArguments, RewardStage, check
from pipeline.errors import UserError
from pipeline.report import write_report
from pipeline.runs import checkpoint_files, claim, resume
from pipeline.runs.folder import CONFIG, UNFINISHED, RunFolder
from pipeline.safety import shapes
from pipeline.safety.console import from_main, is_main, say
from pipeline.safety.reading import read_lines
from pipeline.stages import reward_model
from rewards.ensemble import pessimistic


@claim.ends_with
def run(model_args: ModelArguments, data_args: DataArguments, config: RewardStage) -> dict:
    """Runs the stage: one reward model, or with `ensemble` its members one after the other; returns the summary.

    Raises:
        UserError: for whatever does not fit; nothing that existed before is touched.
    """
    if config.ensemble == 1:
        return reward_model.run(model_args, data_args, config)
    started = time.perf_counter()
    check(not config.push_to_hub, "push_to_hub", True, "an ensemble is several folders; push its members one by one")
    given = config.resume_from_checkpoint
    check(not given, "resume_from_checkpoint", given, "with ensemble, --resume goes on where it was stopped")
    folder = RunFolder.create(config.output_dir, resume=config.resume)
    done = config.resume and from_main(_is_done(folder, (model_args, data_args, config)) if is_main() else None)
    if isinstance(done, UserError):
        raise done
    if done:
        say(f"The run in {folder.path} is finished; nothing was done.")
        return folder.read_summary()
    folder.is_stage = True
    folder.write_config(model_args, data_args, config)
    summaries = []
    for number in range(1, config.ensemble + 1):
        say(f"Reward model {number} of {config.ensemble}")
        member = copy.copy(config)
        member.output_dir = str(folder.path / f"member_{number}")
        member.seed, member.ensemble = config.seed + number, 1
        member.resume = config.resume
        split = reward_model.Member(config.seed, number, claim.Trained(folder.path))
        summaries.append(reward_model.run(model_args, data_args, member, split))
    summary = together(folder.path, summaries) | {"seed": config.seed}
    summary["seconds"] = round(time.perf_counter() - started, 1)
    folder.write_summary(summary)
    if is_main():
        write_report(folder.path)
    say(
        f"{config.ensemble} reward models: their mean is right on {summary['accuracy']:.1%} of "
        f"{summary['heldout_pairs']:,} held-out pairs, spread {summary['spread']:.2f} where the scores' standard "
        f"deviation is {summary['score_std']:.2f}. The result lies in {folder.path}."
    )
    say(f"Next: in the rewards of ppo.yaml {{name: learned, path: {folder.path}, pessimism: 1.0}}")
    folder.finish()
    return summary


def _is_done(folder: RunFolder, settings: tuple) -> bool | UserError:
    """Whether nothing is left to do. A longer run of an ensemble that had finished is one of each of its members."""
    if not (folder.path / CONFIG).is_file():
        return False
    try:
        changed = resume.hold_settings(folder.path, settings)
    except UserError as error:
        return error
    return checkpoint_files.is_finished(folder.path, UNFINISHED) and not set(resume.LENGTH) & set(changed)


def together(folder: Path, summaries: list[dict]) -> dict:
    """Writes `pairs.jsonl` with the members' mean scores and their spread; returns what the summary says of them.

    The figures are of the held-out pairs that the members wrote down, the first of all.
    """
    members = [
        read_lines(folder / f"member_{number}" / reward_model.PAIRS, shapes.PAIR)
        for number in range(1, len(summaries) + 1)
    ]
    lines, scores, spreads = [], {"chosen": [], "rejected": []}, []
    for pair in zip(*members, strict=True):
        line = dict(pair[0])
        for side, found in scores.items():
            mean, spread = pessimistic([one[f"score_{side}"] for one in pair], 0.0)
            line |= {f"score_{side}": mean, f"spread_{side}": spread}
            found.append(mean)
            spreads.append(spread)
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    if is_main():
        (folder / reward_model.PAIRS).write_text("".join(lines), encoding="utf-8")
    first = summaries[0]
    same = ("base", "started_from", "base_fingerprint", "dtype", "hardware", "pairs")
    return {
        "stage": "reward",
        "ensemble": len(summaries),
        "members": [{key: it[key] for key in ("accuracy", "log_loss", "calibration_error")} for it in summaries],
        **reward_model.preference_metrics(*(torch.tensor(scores[side]) for side in ("chosen", "rejected"))),
        "spread": sum(spreads) / len(spreads),
        "steps": sum(it["steps"] for it in summaries),
        **{key: first[key] for key in same if key in first},
    }
