"""What PPOTrainer relies on of TRL and Transformers. A failure here says what changed; PPO is then to be looked at."""

import inspect

import pytest
import torch
import toy
from toy import ANSWERS
from transformers import Trainer
from trl import GRPOConfig, GRPOTrainer
from trl.trainer import grpo_trainer

from pipeline.ppo import PPOTrainer
from pipeline.ppo.passes import Passes
from pipeline.runs.resumable_trainer import Resumable, ResumableRollouts


def says(condition, sentence: str) -> None:
    assert condition, f"TRL or Transformers has changed: {sentence}"


class Plain(PPOTrainer):
    """Hands out what TRL's part returned, before PPO adds to it."""

    def _generate_and_score_completions(self, inputs):
        self.of_trl = GRPOTrainer._generate_and_score_completions(self, inputs)
        return super()._generate_and_score_completions(inputs)


@pytest.fixture
def trainer(tmp_path):
    return toy.make_trainer(tmp_path, rollout_func=toy.canned(ANSWERS), cls=Plain)


def test_keys_and_shapes_of_a_rollout(trainer):
    toy.sample(trainer)
    batch = trainer.of_trl
    shapes = {
        "prompt_ids": (8, 4),
        "prompt_mask": (8, 4),
        "completion_ids": (8, 6),
        "completion_mask": (8, 6),
        "advantages": (8,),
        "old_per_token_logps": (8, 6),
        "num_items_in_batch": (),
    }
    for name, shape in shapes.items():
        says(name in batch, f"a rollout has no {name!r} any more.")
        says(tuple(batch[name].shape) == shape, f"{name} has the shape {tuple(batch[name].shape)}, not {shape}.")
    says(set(batch) == set(shapes), f"a rollout has new entries: {set(batch) - set(shapes)}.")
    says(batch["prompt_mask"][0].tolist() == [0, 0, 0, 1], "prompts are no longer padded on the left.")
    says(batch["completion_mask"][0].tolist() == [1, 1, 0, 0, 0, 0], "completions are no longer padded on the right.")


def test_a_tool_mask_is_handed_through(tmp_path):
    def rollout(prompts, trainer):
        return toy.canned(ANSWERS)(prompts, trainer) | {"env_mask": [[0] * len(ANSWERS[p]) for p in prompts]}

    trainer = toy.make_trainer(tmp_path, rollout_func=rollout, cls=Plain)
    toy.sample(trainer)
    says("tool_mask" in trainer.of_trl, "the mask of tool tokens is not called tool_mask any more.")
    says(trainer.of_trl["tool_mask"].shape == (8, 6), "tool_mask is not (B, T) any more.")


def test_the_loop_over_turns():
    names = list(inspect.signature(inspect.unwrap(GRPOTrainer._tool_call_loop)).parameters)
    expected = ["self", "prompts", "prompt_ids", "completion_ids", "completions", "logprobs", "images"]
    says(
        names == [*expected, "multimodal_fields"],
        f"_tool_call_loop takes {names}; pipeline/rollouts/turns.py calls it.",
    )
    names = list(inspect.signature(inspect.unwrap(GRPOTrainer._generate_single_turn)).parameters)
    says(names[:4] == ["self", "prompt_ids", "images", "multimodal_fields"], f"_generate_single_turn takes {names}.")
    source = inspect.getsource(GRPOTrainer)
    for name in ("_sync_tool_dicts", "_async_tool_dicts", "_batch_environments", "_environment_pool", "_env_tools"):
        says(f"self.{name}" in source, f"there is no {name} any more, which pipeline/rollouts/turns.py puts or reads.")


def test_log_probabilities(trainer):
    method = GRPOTrainer._get_per_token_logps_and_entropies
    names = list(inspect.signature(inspect.unwrap(method)).parameters)
    expected = ["self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"]
    says(names[: len(expected)] == expected, f"_get_per_token_logps_and_entropies takes {names}.")
    says("compute_aux_loss" in names, "_get_per_token_logps_and_entropies has no compute_aux_loss.")
    batch = toy.sample(trainer)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    found = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 6, compute_entropy=True)
    says(isinstance(found, tuple) and len(found) == 3, "it no longer returns (logps, entropies, aux_loss).")
    says(found[0].shape == found[1].shape == (8, 6), "log-probabilities and entropies are not (B, T) any more.")
    padding = batch["completion_mask"] == 0
    says((found[0][padding] == 0).all(), "log-probabilities of pads are not 0 any more.")


def test_signatures_of_what_is_overridden():
    expected = {
        "_generate_and_score_completions": ["self", "inputs"],
        "_generate": ["self", "prompts"],
        "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
        "_prepare_inputs": ["self", "generation_batch"],
        "_compute_loss": ["self", "model", "inputs"],
        "training_step": ["self", "model", "inputs", "num_items_in_batch"],
        "log": ["self", "logs", "start_time"],
        "_save_checkpoint": ["self", "model", "trial"],
        "_get_train_sampler": ["self", "dataset"],
        "_load_optimizer_and_scheduler": ["self", "checkpoint"],
        "_save": ["self", "output_dir", "state_dict"],
        "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
        "_load_best_model": ["self"],
        "create_optimizer": ["self", "model"],
        "train": ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
        "_get_output_dir": ["self", "trial"],
        "_push_from_checkpoint": ["self", "checkpoint_folder"],
    }
    for name, parameters in expected.items():
        says(hasattr(GRPOTrainer, name), f"GRPOTrainer has no {name} any more.")
        found = list(inspect.signature(inspect.unwrap(getattr(GRPOTrainer, name))).parameters)
        says(found == parameters, f"{name} takes {found}, not {parameters}.")
    # and of Trainer, for pipeline/watching/nonfinite.py
    hooks = {"_clip_grad_norm": ["self", "model"], "_get_grad_norm": ["self", "model", "grad_norm"]}
    for name, parameters in hooks.items():
        says(list(inspect.signature(getattr(GRPOTrainer, name)).parameters) == parameters, f"{name} has changed.")
    classes = (PPOTrainer, Passes, ResumableRollouts, Resumable)
    overridden = {n for c in classes for n in vars(c) if hasattr(GRPOTrainer, n) and not n.startswith("__")}
    ours = {"_tag_names", "_name", "_paper", "_run_epoch"}  # the last passes on whatever it is called with
    # the surface is written down here: a new override must be added with its signature
    assert overridden - ours - {"_get_per_token_logps_and_entropies"} == set(expected)  # that one: see above


def test_when_trl_generates_anew(trainer):
    """2 micro-batches, 2 iterations: TRL samples at _step 0 and 4 and hands out slices in between."""
    rows = [{"prompt": p} for p in toy.PROMPTS]
    trainer.model.train()
    says(trainer._buffered_inputs is None and trainer._step == 0, "_buffered_inputs or _step start in another way.")
    first = trainer._prepare_inputs(rows)
    buffer = trainer._buffered_inputs
    says(isinstance(buffer, list) and len(buffer) == 2, "_buffered_inputs is no list of steps_per_generation slices.")
    says(first is buffer[0], "_prepare_inputs does not hand out the buffered slice itself (PPO writes into it).")
    for step in (1, 2, 3):
        trainer._step = step
        says(trainer._prepare_inputs(rows) is buffer[step % 2], "slices are handed out in another order.")
    trainer._step = 4
    trainer._prepare_inputs(rows)
    says(trainer._buffered_inputs is not buffer, "no new rollout after steps_per_generation x num_iterations.")


@pytest.mark.parametrize("algorithm", ["ppo", "reinforce"])
def test_our_training_step_does_what_trls_does(tmp_path, algorithm):
    """PPOTrainer goes forward and backward in parts; TRL's step, on the whole loss, counts and learns alike."""
    gradients = []
    for step in (PPOTrainer.training_step, grpo_trainer.GRPOTrainer.training_step):
        trainer = toy.make_trainer(tmp_path, algorithm=algorithm, num_iterations=1, rollout_func=toy.canned(ANSWERS))
        trainer.create_optimizer()
        trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
        trainer._metrics["train"].clear()
        loss = step(trainer, trainer.model, [{"prompt": prompt} for prompt in toy.PROMPTS], None)
        says(trainer._step == 1, f"_step is {trainer._step} after one micro-batch.")
        parameters = trainer.model.named_parameters()
        gradients.append({"loss": loss} | {n: p.grad.clone() for n, p in parameters if p.grad is not None})
    ours, trls = gradients
    says(set(ours) == set(trls), "TRL's training_step gives other parameters a gradient.")
    for name in ours:
        torch.testing.assert_close(ours[name], trls[name], atol=1e-6, rtol=1e-4)


def test_order_of_the_prompts(trainer):
    order = trainer._get_train_sampler()
    for name in ("shuffle", "num_samples", "generator", "repeat_count"):
        says(hasattr(order, name), f"the sampler has no {name} any more; resuming and rollout_ahead rely on it.")
    says(len(order) == 8 * 2 * 2, "the sampler no longer repeats prompts iterations x steps_per_generation times.")
    expected = torch.randperm(8, generator=torch.Generator().manual_seed(trainer.args.seed)).tolist()
    says(list(order)[:8] == expected, "the order of the prompts is no longer torch.randperm of the seed.")


def test_logs_and_metrics(trainer):
    toy.sample(trainer)
    column = trainer._logs["advantages"]
    says(len(column) == len(trainer._logs["prompt"]), "_logs['advantages'] has not one entry a completion.")
    says(set(trainer._metrics) == {"train", "eval"}, "_metrics is not split by train and eval any more.")
    says(all(isinstance(x, list) for x in trainer._metrics["train"].values()), "_metrics holds no lists any more.")


def test_attributes(trainer):
    says(trainer.reward_func_names == ["letters"], "reward_func_names are not the functions' names any more.")
    says(trainer.eos_token_ids == [toy.EOS], "eos_token_ids is no list of all end-of-text ids any more.")
    says(
        torch.equal(trainer.reward_weights, torch.ones(1)), "reward_weights is no tensor of ones by default any more."
    )
    says(trainer.is_in_train is False, "Trainer no longer says whether it trains; rollout_ahead asks it.")
    says(trainer.loss_is_scaled_for_ga is True, "loss_is_scaled_for_ga is not True: the loss would be divided again.")
    for name in "epsilon_low epsilon_high entropy_coef temperature aux_loss_enabled num_iterations _tokenizer".split():
        says(hasattr(trainer, name), f"GRPOTrainer has no {name} any more.")


def test_the_loss_comes_from_compute_loss(trainer, monkeypatch):
    monkeypatch.setattr(PPOTrainer, "_compute_loss", lambda self, model, inputs: torch.tensor(1.5))
    says(trainer.compute_loss(trainer.model, {}) == 1.5, "compute_loss does not return what _compute_loss does.")


def test_trl_asks_for_two_generations(tmp_path):
    with pytest.raises(ValueError, match="at least 2 generations"):
        GRPOConfig(str(tmp_path), num_generations=1, use_cpu=True, bf16=False)


def test_trainer_passes_the_reported_loss_through(tmp_path):
    """The value that training_step returns is not divided by the accumulation."""
    settings = {"algorithm": "reinforce", "num_iterations": 1, "learning_rate": 0.0}  # without a critic
    trainer = toy.make_trainer(tmp_path, rollout_func=toy.canned(ANSWERS), **settings)
    losses, step = [], trainer.training_step

    def spy(*args):
        losses.append(step(*args))
        return losses[-1]

    trainer.training_step = spy
    trainer.train()
    says(len(losses) == 2, "one optimizer step no longer makes gradient_accumulation_steps calls of training_step.")
    total = sum(loss.item() for loss in losses)
    says(toy.logged(trainer, "loss")[0] == pytest.approx(total, abs=1e-6), "the logged loss is not the sum of both.")


def test_quantized_bases_are_rounded_in_init():
    """Why nothing is trainable while GRPOTrainer.__init__ runs."""
    source = inspect.getsource(grpo_trainer.GRPOTrainer.__init__)
    says("param.requires_grad and" in source, "TRL casts adapters on a quantized base in another way.")


def test_hooks_of_trainer_that_resuming_uses():
    source = inspect.getsource(Trainer.train) + inspect.getsource(Trainer._prepare_for_training)
    for name in ("self._load_from_checkpoint(resume_from_checkpoint", "self._load_optimizer_and_scheduler("):
        says(name in source, f"Trainer no longer calls {name}…) when it resumes.")
    # what is put back in on_train_begin (pipeline/runs/resumable_trainer.py) is reset before it, and in these words
    begin = inspect.getsource(Trainer._inner_training_loop).partition("on_train_begin")[0]
    for name in ("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged", "_initial_global_step"):
        says(f"self.{name} = " in begin, f"Trainer no longer resets {name} before on_train_begin.")
    save = inspect.getsource(Trainer._save_checkpoint)
    says("self._get_output_dir(trial=trial)" in save, "Trainer asks in another way where a checkpoint goes.")
    says("self._push_from_checkpoint(output_dir)" in save, "Trainer pushes a checkpoint in another way.")
    for loader in (Trainer._load_rng_state, Trainer._load_optimizer_and_scheduler, Trainer._load_scaler):
        source = inspect.getsource(loader)
        says(source.count("torch.load(") == source.count("weights_only=True"), "a checkpoint is read as a pickle.")


def test_where_trl_asks_vllm():
    """pipeline/rollouts/vllm_trainer.py stands in the place of TRL's own client."""
    from trl import RLOOTrainer

    for trainer in (GRPOTrainer, RLOOTrainer):
        source = inspect.getsource(trainer._generate_single_turn)
        for words in ("if self.use_vllm:", "!= self._last_loaded_step", "self.vllm_generation.sync_weights()"):
            says(words in source, f"{trainer.__name__} no longer asks vLLM so: {words}")
        call = source.partition("self.vllm_generation.generate(")[2].partition(")")[0]
        for name in ("prompts=prompt_ids", "images=images", "num_generations=num_generations", "profiler="):
            says(name in call, f"{trainer.__name__} gives vLLM no {name}.")
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    for words in ("(old_per_token_logps - sampling_per_token_logps) * mask", 'output["importance_sampling_ratio"]'):
        says(words in source, f"GRPOTrainer corrects for vLLM in another way: {words}")
