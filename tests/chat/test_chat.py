"""The chat with base, SFT and trained policy: who answers with which adapter, what is scored, and how it is driven."""

import io
import json

import pytest
import torch
from chats import REWARDS, ROWS, make_adapter, make_run
from conftest import CHAT_TEMPLATE, build_tokenizer
from peft import PeftModel
from rich.cells import cell_len
from rich.console import Console
from transformers import AutoModelForCausalLM

from pipeline.chat import speakers
from pipeline.chat import terminal_chat as chat
from pipeline.chat.speakers import Answer, Speaker, load_run
from pipeline.chat.terminal_chat import Chat, frame_of
from pipeline.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model_folder):
    """A PPO run on plain text. Do not write into it."""
    return make_run(tmp_path_factory.mktemp("chat"), tiny_model_folder)


@pytest.fixture(scope="module")
def loaded(folder):
    return load_run(str(folder))


@pytest.fixture
def talk(loaded):
    """A chat and what it prints: `say(line)` gives back the new lines."""
    return talk_to(loaded)


def talk_to(run, width=80, **options):
    console = Console(file=io.StringIO(), width=width, force_terminal=False, highlight=False)
    made = Chat(run, console, **options)

    def say(line: str) -> list[str]:
        console.file.seek(0)
        console.file.truncate()
        made.going_on = made.say(line)
        lines = console.file.getvalue().splitlines()
        assert all(cell_len(text) <= width for text in lines)
        return [text.rstrip() for text in lines]

    made.hear = say
    return made


# ------------------------------------------------------------ who answers
@pytest.mark.parametrize(("name", "adapter"), [("base", None), ("SFT", "sft"), ("PPO", "ppo")])
def test_each_speaker_answers_as_the_model_that_plain_peft_loads(loaded, folder, tiny_model_folder, name, adapter):
    assert [speaker.name for speaker in loaded.speakers] == ["base", "SFT", "PPO"]
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, folder.parent / adapter)
    tokenizer, prompt = build_tokenizer(), "say red =>\n"
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    for _ in range(5):  # greedy by hand
        with torch.no_grad():
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    answers, _ = speakers.answer(loaded, [prompt] * 3, ROWS[0], temperature=0.0, seed=0)
    assert len({each.text for each in answers}) == 3
    mine = answers[[speaker.name for speaker in loaded.speakers].index(name)]
    wanted = ids[0, -5:].tolist()
    wanted = wanted[: wanted.index(2) + 1] if 2 in wanted else wanted
    assert mine.text == tokenizer.decode(wanted, skip_special_tokens=True) and mine.tokens == len(wanted)
    assert mine.finished == (wanted[-1] == 2)


def test_there_is_one_base_in_memory(loaded):
    embeddings = [n for n, _ in loaded.model.named_parameters() if "embed_tokens" in n and "lora" not in n]
    assert len(embeddings) == 1 and set(loaded.model.peft_config) == {"default", "reference"}
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_speakers_differ_and_turns_are_sampled_anew(talk):
    once, again, repeated = talk.hear("/example 1"), talk.hear("/example 1"), talk_to(talk.run).hear("/example 1")
    assert once != again and once == repeated  # another turn, other dice; the same turn, the same


def test_scores_are_those_of_the_rewards_by_hand(loaded):
    run = load_run(str(loaded.folder))
    run.rewards = speakers.build_rewards(REWARDS[:2])
    scores, reasons = speakers._score(run, ["p"] * 3, ["It is red.", "abc", "red"], [[5], [5], [5]], ROWS[0])
    # length: 0 up to 3 characters, below that the excess over the limit, without the clip of the training
    assert scores["keyword"] == [1.0, 0.0, 1.0] and scores["length"][1:] == [0.0, 0.0]
    assert scores["length"][0] < -0.1 and reasons == []
    assert scores["score"] == pytest.approx([1.0 + 0.5 * scores["length"][0], 0.0, 1.0])


# ------------------------------------------------------------ what is said
def test_an_example_brings_its_columns(talk):
    lines = talk.hear("/example 2")
    assert lines[0] == "say blue =>" and lines[1].split() == ["base", "SFT", "PPO"]
    table = {line.split()[0]: line.split() for line in lines if line.split()[:1] and line.split()[0] in SCORES}
    assert table.keys() == SCORES and all(len(row) == 6 and "-" not in row for row in table.values())
    assert talk.hear("/example")[0] == "say old =>"  # the next one
    assert talk.hear("/example 4")[0] == "say new =>" and talk.hear("/example")[0] == "say red =>"


SCORES = {"keyword", "length", "bleu", "score"}


def test_a_typed_prompt_leaves_out_what_lacks_a_column_and_says_why_once(talk):
    lines = talk.hear("say pink")
    table = {line.split()[0]: line.split()[1::2] for line in lines if line.split()[:1] and line.split()[0] in SCORES}
    assert table["keyword"] == table["bleu"] == table["score"] == ["-"] * 3
    assert all(float(x) <= 0 for x in table["length"])
    text = " ".join(lines)
    assert "Reward 'keyword': the data has no column 'facts'" in text and text.count("/example brings a prompt") == 2
    assert "the data has no column" not in " ".join(talk.hear("say pink"))


def test_a_line_is_sent_in_the_frame_of_the_data(talk):
    for line in ("say pink", "say pink =>", "  say pink  "):
        assert talk._prompts(line.strip()) == ["say pink =>\n"] * 3
    assert frame_of(["a =>\n", "b =>\n"]) == ("", " =>\n") and frame_of(["a.", "b."]) == ("", "")
    assert frame_of(["\n\nHuman: Hi?\n\nAssistant:", "\n\nHuman: Ho?\n\nAssistant:"]) == (
        "\n\nHuman: ",
        "\n\nAssistant:",
    )
    assert frame_of(["one\n"]) == frame_of(["one\n", "one\n"]) == frame_of([]) == ("", "")


def test_what_a_model_says_is_shown_as_text():
    nasty = Answer("\x1b[2J[bold]x[/bold] :smile:\x07", 9, False, {"[i]r": 0.5, "none": None})
    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None)
    for width in (60, 30):  # beside each other, and one below the other
        console.print(chat.side_by_side(["A", "B"], [nasty, nasty], width))
    text = console.file.getvalue()
    assert text.count("[bold]x[/bold]") == 4 and text.count("\\x1b[2J") == 4 and text.count("[i]r") == 4
    assert "\x1b" not in text and "\x07" not in text and text.count("(cut at 9 tokens)") == 4


def test_commands(talk):
    assert talk.hear("/greedy") == ["Greedy"] and talk.hear("/example 1") == talk.hear("/example 1")
    assert talk.hear("/temperature 0.7") == ["Sampled at temperature 0.7"] and talk.temperature == 0.7
    assert any("/temperature T" in line for line in talk.hear("/help")) and talk.going_on
    assert talk.hear("   ") == [] and talk.going_on
    assert talk.hear("/quit") == [] and not talk.going_on


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("/foo", "error: there is no command /foo; /help lists them"),
        ("/temperature", "error: temperature: '' is not valid: a number from 0"),
        ("/temperature nan", "error: temperature: 'nan' is not valid"),
        ("/temperature -1", "error: temperature: '-1' is not valid"),
        ("/example 5", "error: /example: '5' is not valid: a number from 1 to 4"),
        ("/example x", "error: /example: 'x' is not valid: a number from 1 to 4"),
        ("x" * 600, "error: the prompt has 604 tokens and leaves no room in the model's context of 512"),
    ],
)
def test_errors_are_one_sentence_and_the_chat_goes_on(talk, line, error):
    assert " ".join(talk.hear(line)).startswith(error) and talk.going_on
    assert talk.hear("/example 1")[0] == "say red =>"


def test_a_narrow_terminal_has_the_answers_below_each_other(loaded):
    lines = talk_to(loaded, width=40).hear("/example 1")
    heads = [line for line in lines if line in ("base", "SFT", "PPO")]
    assert heads == ["base", "SFT", "PPO"] and sum(line.startswith("keyword") for line in lines) == 3


# ------------------------------------------------------------ conversations
def test_a_conversation_is_kept_for_each_speaker(tmp_path, tiny_model_folder, monkeypatch):
    rows = [{"prompt": [{"role": "user", "content": f"say {w}"}], "facts": [w]} for w in ("red", "blue")]
    run = load_run(str(make_run(tmp_path, tiny_model_folder, rows, rewards=[{"name": "test_chat:roles"}])), True)
    assert run.conversational and run.tokenizer.chat_template == CHAT_TEMPLATE
    made, heard = talk_to(run, temperature=0.0), []
    ask = chat.answer
    monkeypatch.setattr(chat, "answer", lambda run, prompts, *rest: heard.append(prompts) or ask(run, prompts, *rest))
    table = made.hear("hello")
    assert next(line.split()[1::2] for line in table if line.startswith("roles")) == ["1.000"] * 3
    made.hear("and now?")
    assert [turn["role"] for turn in heard[1][0]] == ["user", "assistant", "user"]
    said = [history[1]["content"] for history in made.histories]
    assert [prompt[1]["content"] for prompt in heard[1]] == said and len(set(said)) > 1  # each has its own
    assert made.hear("/new") == ["A new conversation."]
    made.hear("again")
    assert heard[2] == [[{"role": "user", "content": "again"}]] * 3
    made.hear("/example 2")  # starts the conversation that the row holds
    made.hear("and?")
    assert heard[4][0][0] == rows[1]["prompt"][0] and len(heard[4][0]) == 3


def roles(prompts, completions, **columns):
    """1 for each row that comes as messages, the user's last."""
    return [
        float(p[-1]["role"] == "user" and c[0]["role"] == "assistant")
        for p, c in zip(prompts, completions, strict=True)
    ]


async def later(prompts, completions, **columns):
    return [2.0] * len(prompts)


def broken(prompts, completions, secret, **columns):
    return [1.0] * len(prompts)


# ------------------------------------------------------------ other runs
def test_rewards_of_ones_own_may_be_async_or_miss_their_columns(tmp_path, tiny_model_folder):
    rewards = [{"name": "test_chat:later"}, {"name": "test_chat:broken"}]
    made = talk_to(load_run(str(make_run(tmp_path, tiny_model_folder, rewards=rewards)), own_code=True))
    lines = made.hear("hello")
    assert next(line.split()[1::2] for line in lines if line.startswith("later")) == ["2.000"] * 3
    assert next(line.split()[1::2] for line in lines if line.startswith("broken")) == ["-"] * 3
    assert "'broken' failed for every completion: TypeError" in " ".join(lines)


def test_runs_of_sft_without_rewards_and_without_their_data(tmp_path, tiny_model_folder):
    rows = [{"prompt": f"say {w} =>\n", "completion": "x"} for w in ("red", "blue")]
    gone = {"rewards": None, "algorithm": None, "adapter_path": None, "max_completion_length": None}
    folder = make_run(tmp_path, tiny_model_folder, rows, name="mine", **gone)
    (folder / "summary.json").write_text('{"stage": "sft"}')
    run = load_run(str(folder))
    assert run.speakers == [Speaker("base", None), Speaker("SFT", "default")] and run.max_tokens == 256
    lines = talk_to(run).hear("/example")
    assert lines[0] == "say red =>" and lines[1].split() == ["base", "SFT"]
    (tmp_path / "prompts.jsonl").unlink()
    lines = talk_to(load_run(str(folder))).hear("/example")
    assert " ".join(lines).startswith("error: there is no example: ") and "prompts.jsonl" in "".join(
        lines
    )  # a long path is broken


def test_a_checkpoint_takes_the_settings_of_its_run(tmp_path, tiny_model_folder):
    folder = make_run(tmp_path, tiny_model_folder)
    run = load_run(str(make_adapter(folder / "checkpoint-4", tiny_model_folder, seed=3)))
    assert run.max_tokens == 5 and [speaker.name for speaker in run.speakers] == ["base", "SFT", "PPO"]


def test_what_is_no_run_is_refused_by_name(tmp_path, tiny_model_folder):
    with pytest.raises(UserError, match="is no run folder .there is no config.yaml in it."):
        load_run(str(tiny_model_folder))
    folder = make_run(tmp_path, tiny_model_folder)
    adapter = folder / "adapter_config.json"
    settings = json.loads(adapter.read_text())
    adapter.write_text(json.dumps(settings | {"task_type": "SEQ_CLS"}))
    with pytest.raises(UserError, match="is a reward model, which scores but does not answer"):
        load_run(str(folder))
    adapter.unlink()
    with pytest.raises(UserError, match="holds no LoRA adapter: the run has not finished"):
        load_run(str(folder))
    (folder / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match="config.yaml, line 1 is not valid YAML"):
        load_run(str(folder))


# ------------------------------------------------------------ as a person drives it
