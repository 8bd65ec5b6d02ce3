"""Adapters as the stages leave them, saved."""

import torch
import toy
from peft import LoraConfig, get_peft_model
from transformers import LlamaForSequenceClassification

from pipeline.config import ModelArguments
from pipeline.models import loading as models


def make_adapter(base, path, value: float = 0.01, scores: bool = False, **settings):
    """A saved adapter on `base` whose LoRA B matrices are `value`, so that it changes something."""
    args = ModelArguments(model_name_or_path=str(base), lora_r=4, **settings)
    # as a file from elsewhere may be: what our stages would not train is not refused here
    model = models.load_base(ModelArguments(model_name_or_path=str(base)), "scores" if scores else "causal")
    model = get_peft_model(model, models.lora_config(args, "SEQ_CLS" if scores else "CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, value)
    model.save_pretrained(path)
    return path


def reward_folder(base, folder, **config):
    """What a reward stage leaves: a SEQ_CLS adapter with its score head, both far from their start."""
    model = LlamaForSequenceClassification.from_pretrained(base, num_labels=config.pop("num_labels", 1))
    settings = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "down_proj"], "task_type": "SEQ_CLS"}
    model = get_peft_model(model, LoraConfig(**settings | config))
    toy.randomize(model, "default", 4)
    torch.manual_seed(4)
    torch.nn.init.normal_(model.base_model.model.score.modules_to_save["default"].weight)
    model.save_pretrained(folder)
    return model.eval()
