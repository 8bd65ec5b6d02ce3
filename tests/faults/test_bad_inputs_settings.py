"""Bad settings, through the front door: each case one sentence that names file and key, and nothing left behind."""

from catalogue import Case, both, cases, check, file

pytest_plugins = ["places"]


def text(name: str, yaml: str | bytes, *says: str, recipe: str = "sft") -> Case:
    """A run.yaml as it stands."""
    return Case(name, says, recipe, yaml=yaml)


def setting(name: str, *says: str, recipe: str = "sft", flags: tuple = (), **settings) -> Case:
    return Case(name, says, recipe, settings, flags=flags)


FILES = [
    text("empty file", "", "run.yaml must hold lines of the form `key: value`"),
    text("list at the top", "- dataset: sft.jsonl\n", "run.yaml must hold lines of the form `key: value`"),
    text("broken yaml", "dataset: [sft.jsonl\noutput_dir: out\n", "run.yaml, line 2 is not valid YAML"),
    text("tab for indentation", "rewards:\n\t- keyword\n", "run.yaml, line 2 is not valid YAML", "'\\t'"),
    text(
        "yaml that is not utf-8",
        b"dataset: caf\xe9.jsonl\n",
        "run.yaml, line 1 is not UTF-8",
        "save the file as UTF-8",
    ),
    text(
        "yaml with a python object",
        "dataset: !!python/object/apply:os.system ['touch out']\n",
        "run.yaml, line 1 is not valid YAML",
        "python/object/apply",
    ),
    text("key twice", "lora_r: 4\ndataset: sft.jsonl\nlora_r: 8\n", "run.yaml", "line 3 gives lora_r a second time"),
    text("nested too deeply", "a: " + "[" * 5000, "run.yaml", "not valid YAML"),
    Case("no such config", ("none.yaml", "there is no such file"), flags=("--config", "none.yaml")),
    Case("a folder for a config", ("base", "cannot be read"), flags=("--config", "base")),
    Case("config without a path", ("--config wants the path of a YAML file",), flags=("--config",)),
]
KEYS = [
    setting("misspelt key", "run.yaml: no such setting lerning_rate", "did you mean learning_rate?", lerning_rate=1.0),
    setting("key of another stage", "run.yaml: no such setting kl_coef", kl_coef=0.1),
    setting(
        "misspelt flag",
        "no such flag --lerning_rate",
        "did you mean --learning_rate?",
        "--help",
        flags=("--lerning_rate", "1"),
    ),
    setting("a word without a flag", "'runs/mine' stands on the command line without a flag", flags=("runs/mine",)),
    setting("text for a number", "run.yaml: learning_rate wants a number, got 'fast'", learning_rate="fast"),
    setting("text for a number in a flag", "--learning_rate", "'fast'", flags=("--learning_rate", "fast")),
    setting(
        "part of a batch",
        "run.yaml: per_device_train_batch_size wants a whole number, got 2.5",
        per_device_train_batch_size=2.5,
    ),
    setting("number for true or false", "run.yaml: use_peft wants true or false, got 1", use_peft=1),
    setting("text for a list", "run.yaml: lora_target_modules wants a list", lora_target_modules="q_proj"),
    setting("no for a word", "run.yaml: save_strategy", "in quotes", save_strategy=False),
    setting("no output folder", "output_dir is not set", "--output_dir runs/mine/sft", output_dir=None),
    setting(
        "output folder is a file", "output_dir sft.jsonl is a file", "another --output_dir", output_dir="sft.jsonl"
    ),
    setting(
        "output folder holds something",
        "output_dir base already holds results",
        "never overwritten",
        "another --output_dir",
        output_dir="base",
    ),
    setting("unknown tracker", "report_to", "no tracker 'wanbd'", "wandb", report_to="wanbd"),
    setting("tracker without its package", "report_to", "trackio", "pip install trackio", report_to="trackio"),
    setting("unknown optimizer", "run.yaml: optim is 'adam'", "adamw_torch", optim="adam"),
    setting(
        "unknown schedule",
        "run.yaml: lr_scheduler_type is 'linaer'",
        "did you mean linear?",
        lr_scheduler_type="linaer",
    ),
]
VALUES = [
    setting("negative learning rate", "learning_rate: -0.1 is not valid", "from 0 up", learning_rate=-0.1),
    setting(
        "learning rate that is no number", "run.yaml: learning_rate is nan: give a number", learning_rate=float("nan")
    ),
    setting("no epochs", "num_train_epochs: 0 is not valid", "above 0", num_train_epochs=0),
    setting("no batch", "per_device_train_batch_size: 0 is not valid", "from 1 up", per_device_train_batch_size=0),
    setting("unknown precision", "dtype: 'fp32' is not valid", "float32", dtype="fp32"),
    setting("rank 0", "lora_r: 0 is not valid", "from 1 up", lora_r=0),
    setting("both quantisations", "load_in_8bit", "load_in_4bit is on", load_in_4bit=True, load_in_8bit=True),
    setting("all weights in 4 bits", "use_peft", "load_in_4bit is on", load_in_4bit=True, use_peft=False),
    setting("all held out", "eval_fraction: 1.0 is not valid", eval_fraction=1.0),
    setting(
        "two ways to hold out",
        "eval_fraction",
        "already named (pairs.jsonl)",
        "one of the two",
        eval_dataset="pairs.jsonl",
    ),
    setting(
        "best model without evaluation",
        "run.yaml",
        "load_best_model_at_end",
        "strategy",
        load_best_model_at_end=True,
        eval_strategy="epoch",
    ),
    setting("log never", "requires non-zero --logging_steps", logging_steps=0),
    setting("negative workers", "dataloader_num_workers: -1 is not valid", "0 or more", dataloader_num_workers=-1),
    setting("negative seed", "seed: -1 is not valid", "from 0", seed=-1),
]
PPO = [
    setting(
        "rollout of one",
        "nothing to compare",
        "per_device_train_batch_size",
        recipe="ppo",
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
    ),
    setting(
        "groups that do not divide a rollout",
        "num_generations is 3, but a rollout has 4 completions",
        "per_device_train_batch_size 2 x gradient_accumulation_steps 1 x num_mini_batches 2 x processes 1",
        recipe="ppo",
        num_generations=3,
        num_mini_batches=2,
    ),
    setting(
        "derived batch that disagrees",
        "generation_batch_size is 7, but PPO derives it",
        "it is 2 here",
        recipe="ppo",
        generation_batch_size=7,
    ),
    setting(
        "episodes and steps that disagree",
        "max_steps is 7",
        "total_episodes 8 makes it 4",
        "one of them",
        recipe="ppo",
        max_steps=7,
        total_episodes=8,
    ),
    setting("negative kl price", "kl_coef is -0.1", "must not be negative", recipe="ppo", kl_coef=-0.1),
    setting("kl price that is no number", "kl_coef is nan", "give a number", recipe="ppo", flags=("--kl_coef", "nan")),
    setting("temperature 0", "temperature is 0", "greater than 0", recipe="ppo", temperature=0),
    setting("discount above 1", "gamma is 1.1", "between 0 and 1", recipe="ppo", gamma=1.1),
    setting(
        "grpo's setting", "beta is 0.1, but PPO has no such setting", "kl_coef", "Remove it", recipe="ppo", beta=0.1
    ),
    setting("truncated sampling", "top_k is 50", "temperature", recipe="ppo", top_k=50),
    setting(
        "critic for reinforce",
        "critic_path is 'reward'",
        "contradicts algorithm reinforce",
        "no critic",
        recipe="ppo",
        algorithm="reinforce",
        critic_path="reward",
    ),
    setting(
        "epochs for a2c",
        "num_iterations is 4",
        "contradicts algorithm a2c",
        recipe="ppo",
        algorithm="a2c",
        num_iterations=4,
    ),
    setting("unknown algorithm", "algorithm is 'trpo'", "ppo, a2c, reinforce", recipe="ppo", algorithm="trpo"),
    setting(
        "baseline that compares nothing",
        "baseline is leave_one_out",
        "num_generations",
        recipe="ppo",
        algorithm="reinforce",
        baseline="leave_one_out",
    ),
    setting("warm-up to the end", "critic_warmup is 1", "the policy would never learn", recipe="ppo", critic_warmup=1),
    setting("replay of every epoch", "replay is 1", "num_iterations 1", recipe="ppo", replay=1),
    setting("ppo without lora", "use_peft", "PPO trains LoRA adapters", recipe="ppo", use_peft=False),
    setting("unknown referee", "no world 'filed_notes'", "field_notes", recipe="ppo", referee="filed_notes"),
    setting(
        "groups for grpo",
        "num_generations",
        "generation_batch_size",
        recipe="grpo",
        num_generations=3,
        generation_batch_size=8,
        eval_samples=2,
    ),
]
GAMES = """
class Maze:
    def reset(self, **row): pass
    def go(self, way: str) -> str:
        \"\"\"Goes.

        Args:
            way: Where.
        \"\"\"
class Paying(Maze):
    def get_reward(self): return 1.0
class Narrow(Maze):
    def reset(self): pass
class NoReset: pass
class Cold:
    def __init__(self): raise OSError("the server is down")
broken = 3
def look(word: str) -> str: return word
"""


def game(name: str, *says: str, recipe: str = "ppo", **settings) -> Case:
    """A run with tools or an environment, on prompts that are messages and a template that writes tool calls."""
    rows = [{"prompt": [{"role": "user", "content": f"say {i}"}]} for i in range(16)]
    template = "{% for m in messages %}{{ m.role }} {{ m.content }} {{ m.tool_calls }}{% endfor %}"
    make = both(file("games.py", GAMES), file("talks.jsonl", rows), file("calls.jinja", template))
    given = {"dataset": "talks.jsonl", "chat_template_path": "calls.jinja"}
    return Case(name, says, recipe, given | settings, make)


PAID = {"name": "environment", "instant": "turns"}
SEVERAL_TURNS = [
    game("environment without a colon", "environment: 'Maze' is not valid", "module:Class", environment="Maze"),
    game("environment in no module", "environment: nogames:Maze cannot be imported", environment="nogames:Maze"),
    game("environment that is not there", "has no attribute 'Maise'", environment="games:Maise"),
    game("environment that is a number", "games:broken is no class or function but int", environment="games:broken"),
    game("environment without reset", "games:NoReset has no reset method", environment="games:NoReset"),
    game(
        "environment that cannot be made",
        "environment games:Cold cannot be made: OSError: the server is down (games.py, line 16)",
        environment="games:Cold",
    ),
    game(
        "environment that takes no columns",
        "environment Narrow: reset fails: TypeError",
        "end its parameters with **row",
        environment="games:Narrow",
    ),
    game("tool that is not there", "tools: games:lok cannot be imported", tools=["games:lok"]),
    game(
        "an environment's pay that is not named",
        "the environment pays by itself (get_reward)",
        "{name: environment, instant: turns}",
        environment="games:Paying",
    ),
    game(
        "pay of an environment that has none",
        "the environment has no get_reward",
        environment="games:Maze",
        rewards=[PAID],
    ),
    game("pay of no environment", "environment is not set", rewards=[PAID]),
    game(
        "turns without turns",
        "instant: turns wants tools or an environment",
        rewards=[{"name": "length", "max": 3, "instant": "turns"}],
    ),
    game(
        "games for text",
        "environment: the prompts are text, and turns are messages",
        environment="games:Maze",
        dataset="prompts.jsonl",
    ),
    game(
        "games without a template for calls",
        "environment: the chat template of this tokenizer writes no tool calls",
        "chat_template_path",
        environment="games:Maze",
        chat_template_path=None,
    ),
    game(
        "calls that nobody can read back",
        "does not say how tool calls are read back",
        "response_template",
        environment="games:Maze",
    ),
    game(
        "row of no environment",
        "there are maze, and the first row's column environment is None",
        environment={"maze": "games:Maze"},
    ),
    game(
        "games by vllm",
        "environment and vllm_server",
        "leave one of the two out",
        environment="games:Maze",
        vllm_server="http://127.0.0.1:1",
    ),
    game(
        "games for grpo", "environment", "games of several turns are for PPO", recipe="grpo", environment="games:Maze"
    ),
]


@cases(*FILES, *KEYS, *VALUES, *PPO, *SEVERAL_TURNS)
def test_bad_settings(door, place, case):
    check(door, place, case)
