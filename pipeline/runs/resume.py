"""`--resume`: the same command again goes on where the run was stopped.

What decides the result must be as it was; how long the run is and what it logs may change, and is written down.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import yaml

from pipeline.errors import UserError
from pipeline.runs import checkpoint_files
from pipeline.runs.folder import CONFIG, SUMMARY, UNFINISHED, RunFolder, settings_of, versions
from pipeline.safety.console import from_main, is_main, say
from pipeline.safety.weights import fingerprint
from rewards.ensemble import members_of

LENGTH = ("max_steps", "num_train_epochs", "total_episodes")
# What may change on the way. Everything else decides the result, so a new setting is held fast until it stands here.
FREE = {
    *LENGTH,
    *("output_dir", "resume", "resume_from_checkpoint", "run_name", "project", "debug", "ddp_timeout"),
    *("logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "log_level", "log_level_replica"),
    *("disable_tqdm", "report_to", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    *("sample_every", "show_samples", "log_completions", "log_multimodal", "num_completions_to_print"),
    *("log_unique_prompts", "log_completions_hub_repo", "skip_memory_metrics", "include_num_input_tokens_seen"),
    *("save_strategy", "save_steps", "save_minutes", "save_total_limit", "save_on_each_node", "save_only_model"),
    *("push_to_hub", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision"),
    *("eval_accumulation_steps", "prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object"),
    *("batch_eval_metrics", "include_for_metrics", "bf16_full_eval", "fp16_full_eval"),
    *("eval_every", "eval_samples", "eval_batch_size", "referee"),
    *("dataloader_pin_memory", "dataloader_num_workers", "dataloader_prefetch_factor", "dataset_num_proc"),
    *("vllm_adapters", "vllm_copy", "vllm_request_timeout", "vllm_server_timeout"),
    *("dataloader_persistent_workers", "dataloader_multiprocessing_context", "torch_empty_cache_steps"),
}

# Of a reward: what it may spend and how patiently it asks, not what it says.
FREE_OF_REWARD = {
    "judge": {"at_once", "timeout", "retries", "cache", "key_variable", "max_requests", "max_tokens"},
}
EVALUATION = {"eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size"}
DERIVED = {"generation_batch_size", "steps_per_generation", "reward_weights"}  # from settings that are named as well


def open_run(*settings: Any) -> RunFolder:
    """The output folder of a stage: new, or that of a run to go on with.

    Args:
        settings: the dataclasses of the stage, the trainer's config last.

    Returns:
        The folder; `checkpoint` is where to go on from (None: from the beginning), `finished` says that there is
        nothing left to do.

    Raises:
        UserError: when the folder is in use and `resume` was not asked for; when a setting that must not change was
            changed; when the checkpoint that was given is damaged.
    """
    config = settings[-1]
    given = config.resume_from_checkpoint
    if not config.resume or given:
        folder = RunFolder.create(config.output_dir, resume=bool(given))
        folder.checkpoint = Path(given) if given else None
        if given:
            checkpoint_files.check(folder.checkpoint)
    else:
        folder = RunFolder.create(config.output_dir, resume=True)
        _take_its_threads(folder.path)
        # one process looks, and all of them do as it says
        found = from_main(_look(folder, settings) if is_main() else None)
        if isinstance(found, UserError):
            raise found
        folder.checkpoint, folder.finished, folder.resumed = found
    folder.inputs, folder.is_stage = inputs_of(*settings), True
    if not folder.finished and is_main():
        checkpoint_files.clear(folder.path)
        if folder.checkpoint is None and (aside := checkpoint_files.set_aside(folder.path)):
            say(f"No checkpoint there can be used. What the run had written is kept in {aside}.")
    return folder


def _take_its_threads(run: Path) -> None:
    """The number of threads that the run began with, which decides its last bits, unless OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    try:
        config = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
        threads = int(config["versions"]["threads"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return  # of an older version, or none that can be read, which is told elsewhere
    if 0 < threads <= (os.cpu_count() or 1):
        torch.set_num_threads(threads)


def inputs_of(*settings: Any) -> dict[str, str]:
    """Fingerprints of the weights in every folder that the settings name, by setting."""
    found = {}
    for item in settings:
        for key, value in settings_of(item).items():
            for text in _texts(value) if key != "output_dir" else ():
                if mark := fingerprint(text):
                    found[f"{key} {text}"] = mark
    return found


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def hold_settings(run: Path, settings: tuple) -> dict[str, list]:
    """What may change and has, as [then, now], in a run that is gone on with.

    Raises:
        UserError: a setting has changed that decides the result, or config.yaml cannot be read.
    """
    changed, refused = compare(run, settings)
    if refused:
        raise UserError(_refusal(run, refused))
    return changed


def _look(folder: RunFolder, settings: tuple) -> tuple[Path | None, bool, dict | None] | UserError:
    """What `open_run` shall do: the checkpoint, whether the run is finished, the row of resumed.jsonl."""
    run = folder.path
    if not folder.is_used():
        say(f"There is no run in {run} yet: it starts from the beginning.")
        return None, False, None
    if not (run / CONFIG).is_file():
        if (run / UNFINISHED).is_file():
            say(f"The run in {run} was stopped before it had begun: it starts from the beginning.")
            return None, False, None
        return UserError(f"output_dir {run} holds files, but no run ({CONFIG} is missing): give another --output_dir")
    try:
        changed, refused = compare(run, settings)
    except UserError as error:
        return error
    finished = checkpoint_files.is_finished(run, UNFINISHED)
    if not finished:  # other settings follow from it, so it comes first
        refused = _processes(run, settings[-1]) | refused
    if refused:
        return UserError(_refusal(run, refused))
    if finished and not set(LENGTH) & set(changed):
        say(f"The run in {run} is finished; nothing was done.")
        return None, True, None
    checkpoint = checkpoint_files.newest(run, say)
    if checkpoint is None and finished:
        return UserError(f"the finished run in {run} has no checkpoint to go on from: give another --output_dir")
    step = 0 if checkpoint is None else checkpoint_files.step_of(checkpoint)
    say(f"The run in {run} goes on from step {step}." if step else f"The run in {run} starts from the beginning.")
    for line in _told(changed, settings[-1], step):
        say(line)
    return checkpoint, False, {"step": step, "time": time.strftime("%Y-%m-%d %H:%M:%S %z"), "changed": changed}


def _processes(run: Path, config: Any) -> dict[str, list]:
    """How many there were and are, where that of the newest checkpoint is another one."""
    newest, now = max(checkpoint_files.of(run), key=checkpoint_files.step_of, default=None), config.world_size
    try:
        then = now if newest is None else checkpoint_files.read_manifest(newest)["inputs"]["processes"]
    except (OSError, ValueError, KeyError):  # it is damaged, which is said below
        then = now
    return {} if then == now else {"processes": [then, now]}


def compare(run: Path, settings: tuple) -> tuple[dict[str, list], dict[str, list]]:
    """Settings (and versions) that differ from those in the run's config.yaml, as [then, now]: free, and held fast.

    Raises:
        UserError: when config.yaml cannot be read.
    """
    try:
        then = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
        versions_then = dict(then.pop("versions", {}))
    except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError) as error:
        reason = getattr(error, "problem", None) or type(error).__name__
        raise UserError(f"{run / CONFIG} cannot be read ({reason}), so nothing can be resumed: put it back") from None
    now, defaults = {}, {}
    for item in settings:
        for field in fields(item):
            defaults.setdefault(field.name, getattr(field.default, "value", field.default))
        for key, value in settings_of(item).items():
            now.setdefault(key, value)
    now = yaml.safe_load(yaml.safe_dump(now, sort_keys=False))
    # an evaluation of sampled completions draws random numbers, and the training goes on with the next ones
    may_change = FREE | (set() if hasattr(settings[-1], "steps_per_generation") else EVALUATION)
    free, fast = {}, {}
    for key in [*now, *(key for key in then if key in defaults and key not in now)]:
        # a setting that is None stands nowhere; one that is new since then counts as its default
        pair = [then.get(key, defaults.get(key) if key in now else None), now.get(key)]
        if pair[0] != pair[1] and (key in then or isinstance(pair[0], str | int | float | bool | None)):
            unbound = key == "rewards" and _deciding(pair[0]) == _deciding(pair[1])
            unbound = unbound or (key == "vllm_server" and all(pair))  # another address, not another way to sample
            (free if key in may_change or unbound else fast)[key] = pair
    if fast.keys() - DERIVED or fast.keys() == {"reward_weights"}:
        fast = {key: pair for key, pair in fast.items() if key not in DERIVED}
    for name, version in versions().items():
        if name in versions_then and versions_then[name] != version:
            free["threads" if name == "threads" else f"version of {name}"] = [versions_then[name], version]
    return free, fast


def _deciding(rewards: Any) -> Any:
    """Specs of rewards without the options that may change on the way, mixtures included."""
    if isinstance(rewards, list):
        return [_deciding(spec) for spec in rewards]
    if not isinstance(rewards, dict):
        return rewards
    free = FREE_OF_REWARD.get(str(rewards.get("name")), set())
    return {k: _deciding(v) if k == "rewards" else v for k, v in rewards.items() if k not in free}


def _refusal(run: Path, refused: dict[str, list]) -> str:
    pairs = "; ".join(f"{key} was {then!r} and is {now!r} now" for key, (then, now) in refused.items())
    begun = checkpoint_files.of(run) or members_of(str(run)) or (run / SUMMARY).is_file()
    way_out = "" if begun else f", or remove {run}, which has no checkpoint yet"
    return (
        f"a run goes on with the settings that it began with: {pairs}. "
        f"Take them back, or give another --output_dir{way_out}"
    )


def _told(changed: dict[str, list], config: Any, step: int) -> Iterator[str]:
    for key, (then, now) in changed.items():
        if key != "output_dir":
            yield f"Changed: {key} {then!r} -> {now!r}"
    if any(key.startswith("version of") or key == "threads" for key in changed):
        yield (
            "With other versions of the libraries, or another number of threads, the last bits may differ from those "
            "of a run without a stop."
        )
    if set(LENGTH) & set(changed) and step:
        schedule = str(getattr(config.lr_scheduler_type, "value", config.lr_scheduler_type))
        if schedule not in ("constant", "constant_with_warmup"):
            yield (
                f"The {schedule} learning rate runs to the new end from here on; the {step} steps so far were made on "
                "the way to the old one, so the result is not that of a run that had the new length from the start."
            )
