"""The math reward: equal as mathematics, by pencil; what cannot be read; computations without an end."""

import pytest

import rewards.math_answer
from rewards import Math, RewardError, build_rewards, token_rewards_of
from rewards.verifier import Process


@pytest.fixture(scope="module")
def math():
    reward = Math(seconds=20)  # a busy machine is no test of the limit
    yield reward
    reward._process.close()


def score(reward, answer, *completions):
    return reward(["p"] * len(completions), list(completions), answer=[answer] * len(completions))


@pytest.mark.parametrize(
    ("answer", "completion", "expected"),
    [
        # GSM8K
        ("6 * 12 = <<6*12=72>>72 pages.\n#### 72", "She reads 12 a day.\n#### 72", 1),
        ("so 72\n#### 72", "#### 71", 0),
        ("#### 1,080", "That makes $1080.\n#### $1,080.00", 1),
        ("#### 5", "#### 4\nNo, once more.\n#### 5", 1),  # the last one counts
        ("#### 5", "#### 5\nNo, once more.\n#### 4", 0),
        ("72", "#### 72 pages", 1),
        # boxed
        ("72", r"So it is \boxed{72}.", 1),
        (r"\frac{1}{2}", r"Thus $x = \boxed{0.5}$.", 1),
        (r"\frac{1}{2}", r"\boxed{\dfrac{2}{4}}", 1),
        (r"\frac{1}{2}", r"\boxed{\frac{1}{3}}", 0),
        (r"$2\sqrt{3}$", r"\boxed{\sqrt{12}}", 1),
        ("x^2+2x+1", r"\boxed{(x+1)^2}", 1),
        ("72", r"First I thought \boxed{70}, and it is 72.", 0),
        # intervals, sets, units, percent
        (r"[0,1)", r"\boxed{[0, 1)}", 1),
        (r"[0,1)", r"\boxed{[0, 1]}", 0),
        (r"(-\infty, 2) \cup (3, \infty)", r"\boxed{(-\infty,2)\cup(3,\infty)}", 1),
        (r"\{1, 2, 3\}", r"\boxed{\{3, 2, 1\}}", 1),
        (r"\{1, 2, 3\}", r"\boxed{\{1, 2\}}", 0),
        ("5", r"\boxed{5\text{ cm}}", 1),
        (r"25\%", r"\boxed{\frac{1}{4}}", 1),
        # plain text
        ("1,234,567", "The answer is 1234567.", 1),
        ("1234.5", "The final answer is 1,234.50", 1),
        ("-7", "It is -7.", 1),
        (18, "She makes 9 * 2 = 18 dollars.", 1),
        (0.25, "1/4", 1),
        (["3", "x=3"], "The answer is 3", 1),  # any of the right answers
        ("4", "It is 3, or 4, or 5.", 0),
    ],
)
def test_answers_by_pencil(math, answer, completion, expected):
    assert score(math, answer, completion) == [float(expected)]


def test_what_cannot_be_read(math):
    """A completion without mathematics scores 0, or nothing if so set; a row without an answer scores nothing."""
    logged = {}
    completions = ["#### 5", "I do not know.", "#### five", "#### 5", "", "#### 5"]
    columns = {"answer": ["5", "5", "5", None, "5", "who knows"], "log_metric": logged.__setitem__}
    assert math(["p"] * 6, completions, **columns) == [1.0, 0.0, 0.0, None, 0.0, None]
    assert logged == {"math/unread": 3 / 6, "math/late": 0.0, "math/unread_column": 2 / 6}
    other = Math(unread="none")
    other._process = math._process
    assert score(other, "5", "#### 5", "Well.", "#### 6") == [1.0, None, 0.0]


def test_only_a_part_is_read(math):
    for options, completion, expected in [
        ({"after": "</think>"}, "<think>maybe 4</think>So 5.", 1.0),
        ({"after": "</think>"}, "<think>so 5", 0.0),
        ({"tag": "answer"}, "<answer>x^2</answer> or 5", 0.0),
        ({"tag": "answer"}, "4 <answer> 5 </answer> 6", 1.0),
        ({"tag": "answer"}, "4 <answer>5", 0.0),
        ({"tag": "answer", "after": "</think>"}, "<answer>4</answer></think><answer>5</answer>", 1.0),
    ]:
        reward = Math(**options)
        reward._process = math._process
        assert score(reward, "5", completion) == [expected], (options, completion)


def test_messages(math):
    assert math(
        [[{"role": "user", "content": "2 + 3?"}]], [[{"role": "assistant", "content": "5"}]], answer=["5"]
    ) == [1]


def test_a_computation_without_an_end_is_ended():
    """The next row is answered all the same."""
    reward = Math(seconds=1, unread="none")
    logged = {}
    towers = [r"\boxed{9^{9^{9^{9}}}}", r"\boxed{(10^{10})!}", "#### 5"]
    scores = reward(["p"] * 3, towers, answer=["5", "5", "5"], log_metric=logged.__setitem__)
    assert scores[2] == 1.0 and 1.0 not in scores[:2]
    assert logged["math/late"] > 0
    reward._process.close()


def test_a_process_that_does_not_answer_is_killed_and_replaced(tmp_path):
    stubborn = tmp_path / "math_process.py"
    stubborn.write_text(
        "import signal, sys, json\nprint('{\"ready\": true}', flush=True)\n"
        "for line in sys.stdin:\n"
        "    if 'hang' in line:\n"
        "        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])\n"
        "        while True: pass\n"
        '    print(\'{"right": true, "given": true, "equal": true}\', flush=True)\n'
    )
    process = Process(stubborn, "math-verify", 0.2)
    process.ask({"given": "5"})
    first = process._running
    assert process.ask({"given": "hang"}) == {"late": True}
    assert first.poll() is not None
    assert process.ask({"given": "5"})["equal"] and process._running is not first
    process.close()


def test_a_process_that_does_not_start_says_why(tmp_path, monkeypatch):
    (tmp_path / "math_process.py").write_text("raise ImportError('no sympy here')")
    monkeypatch.setattr(rewards.math_answer, "__file__", str(tmp_path / "math_answer.py"))
    with pytest.raises(RewardError, match="Reward 'math': math-verify does not start: ImportError: no sympy here"):
        Math().prepare()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"unread": 1}, "unread is 1; give 0 or none"),
        ({"seconds": 0}, "seconds is 0; give a number from 0.1"),
        ({"tag": "<answer>"}, "without brackets"),
        ({"after": ""}, "after is ''"),
        ({"colum": "x"}, "did you mean 'column'"),
    ],
)
def test_options_that_are_wrong(options, says):
    with pytest.raises(RewardError, match=says):
        build_rewards([{"name": "math"} | options])


def test_a_column_of_another_kind_is_named_with_its_row(math):
    with pytest.raises(RewardError, match="column 'answer', row 1 of the batch, holds .* give a text, a number"):
        math(["p"] * 2, ["5", "5"], answer=["5", [["5"]]])


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(rewards.math_answer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RewardError, match=r'run `pip install -e "\.\[math\]"`'):
        Math()


def test_it_is_paid_at_the_last_token(math):
    (paid,) = token_rewards_of(math, ["p"], ["#### 5"], [[7, 8, 9]], [[2, 4, 6]], answer=["5"])
    assert paid == [0.0, 0.0, 1.0]


def test_ctrl_c_in_the_middle_leaves_no_answer_to_the_next_question(tmp_path):
    """What the process says of the question that was left is not taken for an answer to the one after it."""
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import os, signal, sys, json\nprint('{\"ready\": true}', flush=True)\nsignal.signal(2, signal.SIG_IGN)\n"
        "for line in sys.stdin:\n"
        "    given = json.loads(line)['given']\n"
        "    given == 'interrupt' and os.kill(os.getppid(), signal.SIGINT)\n"
        "    print(json.dumps({'given': given}), flush=True)\n"
    )
    process = Process(slow, "nothing", 20)
    with pytest.raises(KeyboardInterrupt):
        for _ in range(1000):  # Ctrl-C may come when the line was read already
            process.ask({"given": "interrupt"})
    assert process.ask({"given": "5"}) == {"given": "5"}
    process.close()


def test_numbers_of_the_column_are_read_as_they_are_written(math):
    """1e-05 is no product of e; NaN is what pandas has for nothing."""
    answers = [1e-05, 1e22, 4.0, 10**5000, float("nan"), [float("nan"), 4]]
    completions = ["0.00001", "1" + "0" * 22, "4", "4", "4", "4"]
    assert math(["p"] * 6, completions, answer=answers) == [1.0, 1.0, 1.0, 0.0, None, 1.0]


@pytest.mark.parametrize("column", [None, 5, "", ["answer"]])
def test_a_column_is_a_name(column):
    with pytest.raises(RewardError, match="column is .*; give the name of a column"):
        Math(column=column)
