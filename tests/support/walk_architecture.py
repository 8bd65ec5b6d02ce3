"""One architecture through the stages: SFT, reward model, two PPO updates with the critic on all layers and on one.

What comes out is compared with a fresh model from the saved files, one text at a time and without padding, by
transformers' own forward pass.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import tiny_architectures as tiny
import torch
from conftest import build_tokenizer
from datasets import Dataset
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    set_seed,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pipeline.config import ModelArguments, RewardStage, SFTStage
from pipeline.errors import UserError
from pipeline.models import auto_class, precision, probe
from pipeline.models import loading as models
from pipeline.models.structure import freeze_idle
from pipeline.ppo import PPOConfig, PPOTrainer
from pipeline.ppo.critic import HEAD
from pipeline.stages.refusals import in_one_sentence
from pipeline.stages.reward_model import Reward, score_pairs
from pipeline.stages.sft import SFT

STAGES = ("sft", "reward", "ppo", "critic_layers")
PROMPTS = ["ab", "the cat sat on", "x y z", "we go", "a b c d e f g h i", "hello", "no", "once upon"]
ANSWERS = [" " + text[::-1] for text in PROMPTS]
CLOSE = 1e-4  # in nats, and in the units of scores of about 1
_COMMON = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
_COMMON |= {"lr_scheduler_type": "constant", "learning_rate": 1e-2, "per_device_train_batch_size": 8}


class Walk:
    """The stages of one architecture, in a folder of its own."""

    training = False  # whether the stage that runs has come to its training

    def __init__(self, model_type: str, folder: Path, targets: list[str] | None = None, **settings):
        self.folder, self.base = folder, str(folder / "base")
        tiny.save(model_type, self.base)
        build_tokenizer().save_pretrained(self.base)
        targets = targets or tiny.targets_of(model_type)
        self.args = ModelArguments(self.base, lora_r=2, lora_alpha=4, lora_target_modules=targets)
        self.tokenizer = models.load_tokenizer(self.base, self.args)
        self.sft_path, self.reward_path = folder / "sft", folder / "reward"
        self.auto = AutoModelForCausalLM  # of the language model
        self.settings = _COMMON | tiny.settings_of(model_type) | settings

    def sft(self) -> float:
        """How far the loss that SFT states is from the mean over tokens of the saved model."""
        trainer = self.sft_trainer()
        self._train(trainer)
        fresh, logprobs = self._fresh(self.auto, self.sft_path), []
        for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
            ids = self.tokenizer(prompt)["input_ids"], self.tokenizer(answer)["input_ids"] + [2]
            logprobs.append(_logprobs(fresh, *ids))
        said = trainer.evaluate()["eval_loss"]
        said -= trainer.router_aux_loss_coef * trainer.state.log_history[-1].get("eval_aux_loss", 0.0)
        return abs(said + torch.cat(logprobs).mean().item())

    def sft_trainer(self) -> SFT:
        set_seed(0)
        model = self._language_model()
        rows = Dataset.from_dict({"prompt": PROMPTS, "completion": ANSWERS})
        config = SFTStage(str(self.sft_path), max_steps=2, **self.settings)
        probe.check(model, self.tokenizer, "SFT", config)
        with in_one_sentence(model):
            trainer = SFT(model, config, None, rows, rows, self.tokenizer, peft_config=models.lora_config(self.args))
        _ready(trainer)
        return trainer

    def reward(self) -> float:
        """How far the scores of the held-out texts are from those of the saved model."""
        reads_end = auto_class.reads_end(models.load_config(self.args, self.base))
        model = models.load_base(self.args, "scores", base=self.base, tokenizer=self.tokenizer)
        with in_one_sentence(model):
            model = models.start_score_adapter(model, self.args, self._if_made(self.sft_path))
        rows = Dataset.from_dict({"prompt": PROMPTS, "chosen": ANSWERS, "rejected": [" a"] * len(PROMPTS)})
        config = RewardStage(str(self.reward_path), max_steps=2, **_COMMON)
        probe.check_adapter(model)
        if not reads_end:
            probe.check_scores(model, self.tokenizer, "The reward-model stage")
        trainer = Reward(model, config, None, rows, rows, self.tokenizer, reads_end=reads_end)
        _ready(trainer)
        self._train(trainer)
        fresh = self._fresh(AutoModelForSequenceClassification, self.reward_path)
        texts = [p + a + "</s>" * reads_end for p, a in zip(PROMPTS, ANSWERS, strict=True)]
        with torch.no_grad():
            said = [fresh(input_ids=torch.tensor([self.tokenizer(text)["input_ids"]])).logits[0, 0] for text in texts]
        return (score_pairs(trainer)[0] - torch.stack(said)).abs().max().item()

    def ppo(self, layers: int | None = None) -> float:
        """How far log-probabilities and values of a rollout are from those of the saved policy and critic; with
        `layers` also the values that the epochs begin with."""
        path = self.folder / f"ppo_{layers}"
        trainer = self.ppo_trainer(path, layers)
        self.training = True
        trainer.train()
        trainer.save_model(str(path))
        with torch.no_grad():
            batch = trainer._generate_and_score_completions([{"prompt": prompt} for prompt in PROMPTS])
            values = [batch["old_values"]]
            if layers:
                ids, mask = (torch.cat([batch[f"prompt_{x}"], batch[f"completion_{x}"]], 1) for x in ("ids", "mask"))
                width = batch["completion_ids"].shape[1]
                values.append(trainer.critic.values(ids, mask, width, batch.get("critic_states")))
        policy, apart = self._fresh(self.auto, path), []
        head = load_file(path / "critic" / "adapter_model.safetensors")
        critic, reads = self._fresh_critic(path / "critic")
        for row, prompt, completion in _rows(batch):
            said = batch["old_per_token_logps"][row, : len(completion)]
            apart.append((said - _logprobs(policy, prompt, completion)).abs().max())
            states = _entering(reads, critic, prompt + completion)[len(prompt) - 1 : -1]
            wanted = states @ head[HEAD + "weight"][0] + head[HEAD + "bias"]
            apart += [(found[row, : len(completion)] - wanted).abs().max() / wanted.abs().max() for found in values]
        return torch.stack(apart).max().item()

    def critic_layers(self) -> float:
        return self.ppo(layers=1)

    def ppo_trainer(self, path: Path, layers: int | None) -> PPOTrainer:
        model = self._language_model()
        start, reward = self._if_made(self.sft_path), self._critic_start()
        if start:
            model = models.load_adapter(model, start, trainable=True)
        settings = {"num_iterations": 2, "max_completion_length": 10, "total_episodes": 16, "critic_layers": layers}
        with in_one_sentence(model):
            trainer = PPOTrainer(
                model=model,
                reward_funcs=_different_letters,
                args=PPOConfig(str(path), critic_path=reward, **settings, **self.settings),
                train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
                processing_class=self.tokenizer,
                peft_config=None if start else models.lora_config(self.args),
            )
        if reward is None:
            torch.nn.init.normal_(trainer.critic.head.weight)
        return trainer

    def _language_model(self):
        model = models.load_base(self.args, base=self.base, tokenizer=self.tokenizer)
        if type(model).__name__ not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
            self.auto = AutoModelForImageTextToText
        return model

    def _train(self, trainer) -> None:
        self.training = True
        trainer.train()
        trainer.save_model()

    def _if_made(self, path: Path) -> str | None:
        return str(path) if (path / "adapter_config.json").exists() else None

    def _critic_start(self) -> str | None:
        """The reward model's folder, where it is made and has a head that a critic can start from."""
        made = self._if_made(self.reward_path)
        return made if made and HEAD + "weight" in load_file(Path(made, "adapter_model.safetensors")) else None

    def _fresh_critic(self, folder: Path):
        """The model with the critic's adapter, and the module whose input its head reads: the score head of
        transformers' own reward model, or where there is none the output layer."""
        config = PeftConfig.from_pretrained(folder)
        config.task_type = config.modules_to_save = None
        scores = self._critic_start() is not None
        model = self._fresh(AutoModelForSequenceClassification if scores else self.auto, folder, config=config)
        return model, model.score if hasattr(model, "score") else model.get_output_embeddings()

    def _fresh(self, auto, adapter: Path, config: PeftConfig | None = None):
        options = {"num_labels": 1} if auto is AutoModelForSequenceClassification else {}
        model = auto.from_pretrained(self.base, **options).eval()
        model.config.get_text_config().pad_token_id = 0
        return PeftModel.from_pretrained(model, adapter, config=config).eval()


def _ready(trainer) -> None:
    """What SFT and the reward stage do between the making of their trainer and its training."""
    precision.train_in_float32(trainer.model)
    probe.check_adapter(trainer.model)
    freeze_idle(trainer.model)


def walk(model_type: str, folder: Path, stages: tuple[str, ...] = STAGES) -> dict[str, float | str]:
    """For each stage how far the result is from that of a fresh model, or the sentence by which it is refused, before
    a step is made, with X for the base's folder."""
    try:
        steps, found = Walk(model_type, folder), {}
        for stage in stages:
            steps.training = False
            try:
                found[stage] = getattr(steps, stage)()
            except UserError as error:
                if steps.training:
                    raise
                found[stage] = str(error).replace(steps.base, "X")
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _different_letters(prompts, completions, **columns) -> list[float]:
    return [float(len(set(text))) for text in completions]


@torch.no_grad()
def _logprobs(model, prompt: list[int], completion: list[int]) -> Tensor:
    logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0]
    each = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
    return each.gather(1, torch.tensor(completion)[:, None])[:, 0]


@torch.no_grad()
def _entering(module, model, ids: list[int]) -> Tensor:
    """What enters a module of the model for each token, (T, H)."""
    seen = []
    hook = module.register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
    model(input_ids=torch.tensor([ids]), use_cache=False)
    hook.remove()
    return seen[0]


def _rows(batch: dict[str, Tensor]) -> Iterator[tuple[int, list[int], list[int]]]:
    for row in range(len(batch["completion_ids"])):
        yield row, *(batch[f"{x}_ids"][row][batch[f"{x}_mask"][row].bool()].tolist() for x in ("prompt", "completion"))
