"""One run of AgileRL's PPO for language models, in its own environment: `python -m tests.tools.bench.agilerl_ppo`.

The base is loaded once, actor and critic are LoRA adapters on it, the reference is the base without them. It gets its
best form: actor and critic in one pass, no gradient checkpointing (memory is not short here), and its reward costs
nothing, where ours runs a reward model. It generates one prompt at a time by itself (`get_action`).
"""

import warnings

import agilerl
import torch
from peft import LoraConfig
from transformers import AutoTokenizer

from tests.tools.bench import measure, models

# It takes language models where liger-kernel is installed alone, which cannot be imported without Triton, so not here.
agilerl.HAS_LLM_DEPENDENCIES = True
from agilerl.algorithms.ppo_llm import PPO  # noqa: E402


def agent(args, built: models.Built) -> PPO:
    rows = args.batch * args.accumulate
    return PPO(
        pad_token_id=models.PAD,
        pad_token="<pad>",
        model_name=str(built.base),
        model_config={"dtype": getattr(torch, args.dtype)},
        lora_config=LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **models.LORA),
        use_separate_reference_adapter=False,
        batch_size=rows,
        micro_batch_size_per_gpu=args.batch,
        mini_batch_size=rows,
        update_epochs=args.epochs,
        lr_actor=1e-5,
        lr_critic=1e-5,
        beta=0.05,
        temperature=models.TEMPERATURE,
        top_k=0,
        max_output_tokens=built.size.completion,
        max_model_len=built.size.prompt + built.size.completion,
        gradient_checkpointing=False,
        use_liger_loss=False,
        device=args.device,
        seed=args.seed,
    )


def main() -> None:
    args = measure.arguments(__doc__)
    measure.use_threads(args.threads)
    warnings.simplefilter("ignore")
    built = models.build(args.models, args.size, args.form, args.dtype)
    tokenizer = AutoTokenizer.from_pretrained(built.base)
    clock, memory, rows = measure.Clock(args.device), measure.Memory(args.device), args.batch * args.accumulate
    learner = agent(args, built)
    generate, learn = clock.timed("generation", learner.get_action), clock.timed("training", learner.learn)
    seconds, tokens, splits = [], [], []
    for update in range(args.updates):
        start = clock.now()
        asked = [built.prompts[(update * rows + i) % len(built.prompts)] for i in range(rows)]
        done = generate([dict(tokenizer(text, return_tensors="pt")) for text in asked])
        lengths = torch.tensor([float(mask.sum()) for mask in done.action_masks])
        learn((done.token_ids, done.action_masks, lengths / built.size.completion))
        now, parts = clock.now(), clock.read()
        seconds.append(now - start)
        tokens.append(int(lengths.sum()))
        splits.append(parts | {"other": seconds[-1] - sum(parts.values())})
    result = {"seconds": seconds[1:], "tokens": tokens[1:], "split": splits[1:], "peak_mib": memory.peak()}
    result["parameters"] = measure.distinct_parameters()
    measure.tell({"side": "agilerl", "args": vars(args), "versions": measure.versions("agilerl")} | result)


if __name__ == "__main__":
    main()
