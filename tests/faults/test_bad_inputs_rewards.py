"""Bad rewards, through the front door: each case one sentence with the reward's name, and nothing left behind."""

from catalogue import Case, cases, check, file, prepare

pytest_plugins = ["places"]

MINE = """
import math
broken = 3
def raises(prompts, completions, **columns): raise OSError("the scoring server is down")
def short(prompts, completions, **columns): return [0.0]
def single(prompts, completions, **columns): return 0.5
def nothing(prompts, completions, **columns): pass
def nones(prompts, completions, **columns): return [None] * len(prompts)
def nans(prompts, completions, **columns): return [math.nan] * len(prompts)
def infinite(prompts, completions, **columns): return [math.inf] * len(prompts)
def strings(prompts, completions, **columns): return ["good"] * len(prompts)
def lists(prompts, completions, **columns): return [[1.0]] * len(prompts)
def huge(prompts, completions, **columns): return [1e6 * len(text) for text in completions]
def no_columns(prompts, completions): return [0.0] * len(prompts)
class Cold:
    def __init__(self, path): raise FileNotFoundError(2, "No such file", path)
"""


def spec(case: str, /, *says: str, make=None, **reward) -> Case:
    """A case whose only reward is `reward`."""
    return Case(case, says, "ppo", {"rewards": [reward]}, make)


def own(name: str, *says: str, function: str, **options) -> Case:
    """A case whose only reward is a function of the user's module."""
    return Case(name, says, "ppo", {"rewards": [{"name": f"mine:{function}"} | options]}, file("mine.py", MINE))


NAMED = [
    Case("no rewards", ("run.yaml: rewards", "at least one"), "ppo", {"rewards": None}),
    Case("rewards that are no list", ("run.yaml: rewards wants a list",), "ppo", {"rewards": {"name": "bleu"}}),
    Case("a number for a reward", ("run.yaml: rewards: each item wants the form",), "ppo", {"rewards": [3]}),
    Case(
        "two rewards of one name",
        ("Two rewards are called 'a'", "log_name"),
        "ppo",
        {"rewards": [{"name": "bleu", "log_name": "a"}, {"name": "length", "max": 3, "log_name": "a"}]},
    ),
    spec("unknown reward", "no reward 'blue'", "did you mean 'bleu'?", name="blue"),
    spec(
        "unknown option",
        "Reward 'keyword' has no option 'wnated'",
        "did you mean 'wanted'?",
        name="keyword",
        wnated=["a"],
    ),
    spec("weight that is no number", "Reward 'bleu': weight is 'high'; give a number", name="bleu", weight="high"),
    spec("clip the wrong way round", "clip is [1, 0]", "smaller", name="bleu", clip=[1, 0]),
    spec("math of a number for none", "Reward 'math': unread is 1; give 0 or none", name="math", unread=1),
    spec("tag in brackets", "Reward 'answer': tag is '<answer>'", "without brackets", name="answer", tag="<answer>"),
    spec("unknown way to match", "Reward 'answer': match is 'f2'; give exact", name="answer", match="f2"),
    spec("unknown mode", "Reward 'instructions': mode is 'any'; give share or all", name="instructions", mode="any"),
    spec("no form", "Reward 'format': give one of pattern, sections and schema", name="format"),
    spec("pattern that is none", "Reward 'format': '(a' is no regular expression", name="format", pattern="(a"),
    spec(
        "pattern that runs away",
        "Reward 'format'",
        "more than 0.3 seconds",
        "it backtracks",
        name="format",
        pattern="^(a|aa)+$",
        seconds=0.3,
    ),
    spec("schema that is none", "Reward 'format'", "no JSON Schema", "at type", name="format", schema={"type": "x"}),
    spec("schema that is not there", "the schema 'no.json' cannot be read", name="format", schema="no.json"),
    spec(
        "schema from elsewhere",
        "refers to 'http://x.org/y'",
        "only a $ref within it",
        name="format",
        schema={"$ref": "http://x.org/y"},
    ),
    spec(
        "option of TRL's reward missing",
        "Reward 'cosine_scaled_reward': TRL refuses its options",
        "max_len",
        name="cosine_scaled_reward",
    ),
    spec(
        "answers column missing",
        "Reward 'math'",
        "no column 'answer'; it has facts",
        name="math",
    ),
    spec(
        "gate without a condition",
        "Reward 'gate' needs the option 'condition'",
        name="gate",
        rewards=[{"name": "bleu"}],
    ),
    spec(
        "normalized reward in a gate",
        "Reward 'gate': 'bleu' has normalize: running",
        "set it on 'gate' itself",
        name="gate",
        condition={"name": "length", "max": 3},
        rewards=[{"name": "bleu", "normalize": "running"}],
    ),
    spec(
        "weight in a product",
        "Reward 'product': 'length' has the weight 2",
        name="product",
        rewards=[{"name": "length", "max": 3, "weight": 2}],
    ),
    spec("threshold and clip", "at_least gives 0 or 1; leave clip out", name="bleu", at_least=0.2, clip=[0, 1]),
    Case(
        "unknown way to add rewards up",
        ("run.yaml: multi_objective_aggregation is 'normalise'", "choose one of sum_then_normalize"),
        "ppo",
        {"multi_objective_aggregation": "normalise"},
    ),
    spec("option missing", "Reward 'learned': give either path", name="learned"),
    spec(
        "column missing",
        "Reward 'keyword'",
        "no column 'fact'",
        "did you mean 'facts'?",
        name="keyword",
        column="fact",
    ),
    spec(
        "gpu for a reward",
        "Reward 'learned': device is 'cuda'",
        "no GPU",
        "leave it out",
        name="learned",
        path="reward",
        device="cuda",
    ),
    spec("module that is not there", "Reward 'nowhere:score'", "cannot import 'nowhere'", name="nowhere:score"),
    spec(
        "module that needs another",
        "Reward 'mine:score'",
        "No module named 'nowhere_else'",
        make=file("mine.py", "import nowhere_else\n"),
        name="mine:score",
    ),
    spec(
        "module that does not parse",
        "Reward 'mine:score'",
        "mine.py",
        "line 2",
        make=file("mine.py", "\ndef score(:\n"),
        name="mine:score",
    ),
    spec(
        "module that fails on import",
        "Reward 'mine:score'",
        "ZeroDivisionError",
        "mine.py",
        "line 2",
        make=file("mine.py", "\n1 / 0\n"),
        name="mine:score",
    ),
    own("function that is not there", "'mine' has no 'shrot'", "did you mean 'short'?", function="shrot"),
    own("a number for a function", "Reward 'mine:broken' is no function but int", function="broken"),
    own(
        "an option that the function lacks",
        "Reward 'mine:short' has no option 'max_words'",
        function="short",
        max_words=3,
    ),
    own(
        "a class that fails",
        "Reward 'mine:Cold'",
        "FileNotFoundError",
        "weights.bin",
        function="Cold",
        path="weights.bin",
    ),
]
SERVER = {"name": "judge", "url": "http://127.0.0.1:9/v1", "model": "m"}  # where nobody listens
JUDGES = [
    spec("judge that is not there", "the judge m at http://127.0.0.1:9/v1 cannot be reached", retries=0, **SERVER),
    spec("judge without a url", "Reward 'judge' needs the option 'url'", name="judge", model="m"),
    spec("judge at no address", "url is 'localhost'; give an address such as", **SERVER | {"url": "localhost"}),
    spec("judge with a key in its url", "environment variable", **SERVER | {"url": "http://me:secret@host/v1"}),
    spec("judge without its key", "key_variable is NO_API_KEY, which is not set", key_variable="NO_API_KEY", **SERVER),
    spec("judge with the key itself", "not the name of an environment variable", key_variable="sk-123", **SERVER),
    spec("judge with an empty rubric", "rubric is []; give words, or a list of criteria", rubric=[], **SERVER),
    spec("judge with a broken criterion", "write it like {name: correct", rubric=[{"name": "good"}], **SERVER),
    spec("judge with a scale the wrong way round", "the smaller number first", scale=[10, 1], **SERVER),
    spec("judge with one vote thrice", "for several votes more than 0", votes=3, temperature=0, **SERVER),
    spec("judge with no budget at all", "max_requests is 0; give a whole number from 1 up", max_requests=0, **SERVER),
    spec("judge with two ways", "reference and against are two ways", reference="a", against="b", **SERVER),
    Case(
        "judge of an evaluation with a clip",
        ("judges: judge says who wins: leave weight, clip",),
        "eval",
        {
            **{"candidates": [{"base": "base"}], "dataset": "prompts.jsonl", "output_dir": "out", "use_cpu": True},
            "judges": [SERVER | {"clip": [0, 1]}],
        },
    ),
]
ASKED = [
    spec(
        "letter that is no choice",
        "Reward 'answer'",
        "column 'facts', row 0 of the batch, holds 'w",
        "none of A, B, C, D",
        name="answer",
        column="facts",
        match="choice",
    ),
    spec(
        "instructions that are words",
        "Reward 'instructions'",
        "column 'facts', row 0 of the batch, holds ['w",
        "a list of dicts",
        name="instructions",
        ids="facts",
        kwargs="facts",
    ),
    own(
        "raises",
        "Reward 'raises' failed for every completion",
        "OSError: the scoring server is down",
        function="raises",
    ),
    own("wrong length", "Reward 'short'", "1 scores for 2 completions", "one for each", function="short"),
    own("one number for all", "Reward 'single'", "returned 0.5", "a list", function="single"),
    own("returns nothing", "Reward 'nothing'", "returned None", "a list", function="nothing"),
    own("strings", "Reward 'strings'", "returned 'good'", "return a number, or None", function="strings"),
    own("lists", "Reward 'lists'", "returned [1.0]", "return a number, or None", function="lists"),
    own("none for all", "No reward scored any completion", "Check that the columns", function="nones"),
    own("nan for all", "No reward scored any completion", "NaN", function="nans"),
    own("infinite", "infinite returned an infinite score", "clip it", function="infinite"),
    spec(
        "negative factor of a product",
        "Reward 'product': 'length' scored -0.99",
        "clip from 0 up",
        name="product",
        rewards=[{"name": "length", "min": 900}],
    ),
    own("takes no columns", "Reward 'no_columns'", "**columns", function="no_columns"),
]


@cases(*NAMED, *JUDGES, *ASKED)
def test_bad_rewards(door, place, case):
    check(door, place, case)


def test_a_reward_of_a_huge_scale_is_warned_of_with_the_figure(door, place):
    prepare(place, own("huge", function="huge"))
    done = door("ppo", ["--config", "run.yaml"], place)
    assert done.code == 0 and (place / "out/adapter_model.safetensors").is_file(), done
    assert done.out.count("Warning (step") == 1 and "score/huge is" in done.out and "normalize: running" in done.out
