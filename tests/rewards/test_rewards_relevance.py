"""Relevance: cosines by pencil, and a tiny sentence-transformers model against mean pooling by hand."""

import sys

import numpy as np
import pytest
import torch
from scored import COMPLETIONS, PROMPTS, make_tokenizer
from transformers import BertConfig, BertModel

from rewards import Relevance, RewardError, build_rewards


class Vectors:
    """Embeds three texts as (1, 0), (3/5, 4/5) and (-1, 0), and counts what it is asked for."""

    table = {"east": (1.0, 0.0), "north-east": (0.6, 0.8), "west": (-1.0, 0.0)}

    def __init__(self):
        self.asked = []

    def encode(self, texts, batch_size, normalize_embeddings, show_progress_bar):
        assert normalize_embeddings
        self.asked += texts
        return np.array([self.table[text] for text in texts])


def test_cosines_by_pencil():
    # (1, 0).(3/5, 4/5) = 3/5; (1, 0).(-1, 0) = -1; (3/5, 4/5).(-1, 0) = -3/5
    prompts, completions = ["east", "east", "north-east", "west"], ["north-east", "west", "west", "west"]
    model = Vectors()
    assert Relevance(model=model)(prompts, completions) == pytest.approx([0.6, -1.0, -0.6, 1.0])
    assert sorted(model.asked) == ["east", "north-east", "west"]  # each text is embedded once


def test_another_column_and_the_nearest_of_several_texts():
    reward = Relevance(model=Vectors(), column="references")
    references = ["north-east", ["west", "north-east"], ["west", None, ""]]
    assert reward(["?"] * 3, ["east"] * 3, references=references) == pytest.approx([0.6, 0.6, -1.0])
    with pytest.raises(RewardError, match="no column 'references'.*it has target"):
        reward(["?"], ["east"], target=["west"])


def test_empty_texts():
    reward = Relevance(model=Vectors())
    assert reward(["east", "east", "", " ", "east"], ["", " \n", "east", "", "east"]) == [0.0, 0.0, None, None, 1.0]


def test_messages_are_read():
    prompt, said = [{"role": "user", "content": "east"}], [{"role": "assistant", "content": "north-east"}]
    assert Relevance(model=Vectors())([prompt], [said]) == pytest.approx([0.6])


@pytest.mark.parametrize(
    "spec, message",
    [
        ({}, "give either path"),
        ({"path": "x", "model": 1}, "no option 'model'"),
        ({"path": "x", "colum": "y"}, "did you mean 'column'"),
        ({"path": "x", "batch_size": "many"}, "batch_size is 'many'"),
    ],
)
def test_options_are_checked(spec, message):
    with pytest.raises(RewardError, match=message):
        build_rewards([{"name": "relevance"} | spec])


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    ((reward, _),) = build_rewards([{"name": "relevance", "path": "x"}])  # it is asked for at the first score
    with pytest.raises(RewardError, match=r"needs sentence-transformers.*pip install \"plumbline\[embeddings\]\""):
        reward(["p"], ["c"])


# --- with the library -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random BERT with mean pooling in a sentence-transformers folder, and the BERT itself."""
    library = pytest.importorskip("sentence_transformers", reason="the extra `embeddings` is not installed")
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    path = tmp_path_factory.mktemp("embedder")
    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    bert = BertModel(BertConfig(vocab_size=320, max_position_embeddings=64, initializer_range=0.5, **sizes)).eval()
    bert.save_pretrained(path / "bert")
    make_tokenizer(padding_side="right", model_max_length=64).save_pretrained(path / "bert")
    modules = [Transformer(str(path / "bert")), Pooling(32, pooling_mode="mean")]
    library.SentenceTransformer(modules=modules, device="cpu").save(str(path / "model"))
    return path / "model", bert


def by_hand(bert, text):
    with torch.no_grad():
        ids = make_tokenizer()(text, return_tensors="pt")["input_ids"]
        return bert(input_ids=ids).last_hidden_state[0].mean(dim=0)


@pytest.mark.parametrize("batch_size", [1, 32])
def test_it_is_the_cosine_of_the_models_embeddings_whatever_the_batch(folder, batch_size):
    path, bert = folder
    spec = {"name": "relevance", "path": str(path), "device": "cpu", "batch_size": batch_size}
    ((reward, _),) = build_rewards([spec])
    prompts, completions = [*PROMPTS[:3], "on the mat"], [*COMPLETIONS[:3], "on the mat"]
    pairs = zip(prompts, (text.strip() for text in completions), strict=True)
    expected = [torch.cosine_similarity(by_hand(bert, p), by_hand(bert, c), dim=0).item() for p, c in pairs]
    scores = reward(prompts, completions)
    assert scores == pytest.approx(expected, abs=1e-5)
    assert scores[-1] == pytest.approx(1.0, abs=1e-6)  # the same text
    assert len({round(score, 3) for score in scores}) == 4
    assert not reward.model.training and not any(p.requires_grad for p in reward.model.parameters())


def test_nothing_there_is_one_clear_line(folder, tmp_path):
    with pytest.raises(RewardError, match="cannot load.*none.*no such folder") as caught:
        Relevance(str(tmp_path / "none"), device="cpu")(["p"], ["c"])
    assert "\n" not in str(caught.value)
