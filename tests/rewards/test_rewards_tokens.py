"""Which token completes which character, for real tokenizers of each kind."""

import functools
from itertools import accumulate

from byte_tokens import byte_level, fast, ids_of, vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.decoders import DecodeStream
from transformers import ByT5Tokenizer

from rewards import Keyword, Reward, pays_tokens, token_ends
from rewards.tokens import WINDOW, pay

TEXTS = st.text(st.sampled_from("abt 的一中猫é👍😀\u200d\n.é"), max_size=40)
EOS = 0  # "</s>" in all of them


@functools.cache
def metaspace():
    """SentencePiece-like: a space opens a word, and the decoder drops the first one."""
    pieces = ["</s>", "<unk>", "▁", "▁the", "▁cat", "▁sat", "▁猫", "坐", "在", "t", "s", "é", "👍", "a▁b", "."]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["</s>", "<unk>"])
    return fast(tokenizer)


@functools.cache
def byte_fallback():
    """Llama-2-like: unknown characters as bytes, pieces fused, the first space stripped."""
    pieces = ["</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "▁cat", "c", "a", "t", "s"]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return fast(tokenizer)


@functools.cache
def word_piece():
    """BERT-like: its decoder puts spaces between words and takes some away again."""
    words = ["</s>", "[UNK]", "do", "n", "'", "t", "the", "cat", "##s", "sat", ".", "x '"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens(["</s>"])
    return fast(tokenizer, clean_up_tokenization_spaces=True)


def ends_of(tokenizer, ids):
    """Text and ends of one row, the text being what a trainer decodes."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    (ends,) = token_ends([ids], [text], tokenizer)
    assert len(ends) == len(ids) and ends == sorted(ends) and (not ends or ends[-1] == len(text))
    return text, ends


def pieces(tokenizer, *names):
    return [tokenizer.convert_tokens_to_ids(name) for name in names]


# --- byte-level -----------------------------------------------------------------------------------------------------
def test_a_character_counts_with_its_last_byte():
    # a: 1 byte, é: 2, 猫: 3, 😀: 4
    assert ends_of(byte_level(), ids_of("aé猫😀b".encode())) == ("aé猫😀b", [1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 5])


def test_merged_words_and_special_tokens():
    ids = byte_level()("the cat sat", add_special_tokens=False)["input_ids"]
    assert [vocabulary()[i] for i in ids] == [b"the", b" cat", b" sat"]
    text, ends = ends_of(byte_level(), [EOS, ids[0], EOS, 1, *ids[1:], EOS])
    assert (text, ends) == ("the cat sat", [0, 3, 3, 3, 7, 11, 11])


def test_a_special_token_inside_a_character():
    first, second = ids_of("é".encode())
    assert ends_of(byte_level(), [first, EOS, second]) == ("é", [0, 0, 1])


def test_a_whole_character_counts_though_the_same_token_begins_another():
    (inside,) = [i for i, word in vocabulary().items() if word == "的".encode() + "一".encode()[:2]]
    assert ends_of(byte_level(), [inside, *ids_of("一".encode()[2:])]) == ("的一", [1, 2])


def test_bytes_that_are_no_character():
    cut = ids_of("😀".encode()[:2])
    assert ends_of(byte_level(), [*cut, *ids_of(b"b")]) == ("\ufffdb", [0, 0, 2])
    assert ends_of(byte_level(), [*ids_of(b"a"), *cut]) == ("a\ufffd", [1, 1, 2])
    assert ends_of(byte_level(), ids_of(b"a\xff\xff\xffb"))[1] == [1, 1, 1, 1, 5]
    # a character that looks like them
    assert ends_of(byte_level(), ids_of("\ufffdx".encode())) == ("\ufffdx", [0, 0, 0, 2])


@settings(max_examples=200, deadline=None)
@given(data=st.data(), text=TEXTS, special=st.booleans())
def test_any_tokens_of_any_text_against_its_bytes(data, text, special):
    # not the tokenizer's own choice of tokens: at each place any one that fits
    ids, written, expected = [], b"", []
    while written != text.encode() or (special and not ids):
        if special and data.draw(st.integers(0, 5)) == 0 and len(ids) < 200:
            ids.append(data.draw(st.sampled_from([EOS, 1])))
        elif (rest := text.encode()[len(written) :]) == b"":
            ids.append(EOS)
        else:
            ids.append(data.draw(st.sampled_from([i for i, word in vocabulary().items() if rest.startswith(word)])))
            written += vocabulary()[ids[-1]]
        expected.append(len(written.decode(errors="ignore")))
    assert ends_of(byte_level(), ids) == (text, expected)


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=60))
def test_any_bytes_against_the_tokenizers_own_stream(data):
    ids = ids_of(data)
    stream, written, expected = DecodeStream(skip_special_tokens=True), 0, []
    for i in ids:
        written += len(stream.step(byte_level().backend_tokenizer, i) or "")
        expected.append(written)
    ends = ends_of(byte_level(), ids)[1]
    assert ends[:-1] == expected[:-1]


# --- others ---------------------------------------------------------------------------------------------------------
def test_metaspace_drops_the_first_space_only():
    tokenizer = metaspace()
    assert ends_of(tokenizer, pieces(tokenizer, "▁the", "▁cat", "▁sat", "</s>")) == ("the cat sat", [3, 7, 11, 11])
    assert ends_of(tokenizer, pieces(tokenizer, "▁", "t", "▁cat", "</s>", "▁", "t")) == ("t cat t", [0, 1, 5, 5, 6, 7])


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_metaspace_any_pieces(data):
    words = {i: word for word, i in sorted(metaspace().get_vocab().items()) if word not in ("</s>", "<unk>")}
    ids = data.draw(st.lists(st.sampled_from([EOS, *words]), max_size=60))
    first = next((t for t, i in enumerate(ids) if i in words), None)
    shown = [words.get(i, "").replace("▁", "" if t == first else " ") for t, i in enumerate(ids)]
    assert ends_of(metaspace(), ids) == ("".join(shown), list(accumulate(map(len, shown))))


def test_byte_fallback():
    tokenizer = byte_fallback()
    ids = tokenizer("the cat 猫s", add_special_tokens=False)["input_ids"]
    ids = pieces(tokenizer, "▁the", "▁cat", "▁", "<0xE7>", "<0x8C>", "<0xAB>", "s", "</s>")
    assert ends_of(tokenizer, ids) == ("the cat 猫s", [3, 7, 8, 8, 8, 9, 10, 10])
    long = ids[:-1] * 12  # further than the window
    assert ends_of(tokenizer, long)[1] == [
        11 * turn + end + (-1 if end == 0 else 0) for turn in range(12) for end in (3, 7, 8, 8, 8, 9, 10)
    ]


def test_word_piece_whose_prefixes_do_not_begin_the_text():
    tokenizer = word_piece()
    ids = pieces(tokenizer, "do", "n", "'", "t", "</s>", "the", "cat", "##s", ".")
    # "do", "do n", "do n '", "don't": what they share with "don't the cats."
    assert ends_of(tokenizer, ids) == ("don't the cats.", [2, 2, 2, 5, 5, 9, 13, 14, 15])
    # "cat x '" has "cat x" in common with "cat x't"
    assert ends_of(tokenizer, pieces(tokenizer, "cat", "x '", "t")) == ("cat x't", [3, 5, 7])
    text, ends = ends_of(tokenizer, ids[5:] * 12)
    assert text == " ".join(["the cats."] * 12)
    assert ends == [10 * turn + end for turn in range(12) for end in (3, 7, 8, 9)]


def test_a_slow_tokenizer_and_a_bare_one():
    slow = ByT5Tokenizer()
    ids = [byte + 3 for byte in "a猫b".encode()] + [slow.eos_token_id]
    assert ends_of(slow, ids) == ("a猫b", [1, 1, 1, 2, 3, 3])
    assert token_ends([ids_of("é".encode())], ["é"], byte_level().backend_tokenizer) == [[0, 1]]


def test_long_rows_cost_about_one_window_a_token():
    class Counting:
        decoded = 0

        def decode(self, ids, skip_special_tokens):
            Counting.decoded += len(ids)
            return byte_level().decode(ids, skip_special_tokens=skip_special_tokens)

    text = "the cat 的一的不 👍👍 sat on the mat. " * 40
    ids = ids_of(text.encode())
    (ends,) = token_ends([ids], [text], Counting())
    assert ends == [len(text.encode()[:n].decode(errors="ignore")) for n in range(1, len(ids) + 1)]
    assert Counting.decoded < 2 * WINDOW * len(ids)


def test_rows_whose_text_is_not_what_the_ids_decode_to():
    ids = byte_level()("the cat", add_special_tokens=False)["input_ids"]
    said = {"role": "assistant", "content": "the cat"}
    completions = ["the cat", "the  cat", "the cat ", "", [said], [said, {"role": "tool", "content": "7"}]]
    assert token_ends([ids] * 6, completions, byte_level()) == [[3, 7], None, None, None, [3, 7], None]


def test_rows_without_tokens_or_text():
    assert token_ends([[], [EOS], []], ["", "", "x"], byte_level()) == [[], [0], None]
    assert token_ends([], [], byte_level()) == []


# --- paying ---------------------------------------------------------------------------------------------------------
def test_pay_puts_amounts_at_the_token_that_completes_so_many_characters_and_the_rest_at_the_end():
    # "the c", "at", "</s>"
    assert pay(2.0, [(3, 0.5), (7, 1.0)], 3, [5, 7, 7]) == [0.5, 1.0, 0.5]
    assert pay(2.0, [(5, 0.5), (6, 1.0)], 3, [5, 7, 7]) == [0.5, 1.0, 0.5]
    assert pay(2.0, [(3, 0.5)], 3, None) == [0.0, 0.0, 2.0]
    assert pay(None, [], 3, [5, 7, 7]) is None
    assert pay(1.0, [], 0, []) == pay(1.0, [], 0, None) == []


def test_who_pays_per_token():
    class Own:
        def token_rewards(self, **everything):
            """A user's own object."""

    class Asked(Own):
        instant = False

    assert pays_tokens(Own()) and not pays_tokens(Asked())
    assert not pays_tokens(Keyword(wanted="x")) and not pays_tokens(Reward("x")) and not pays_tokens(len)
