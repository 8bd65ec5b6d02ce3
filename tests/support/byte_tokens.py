"""A byte-level tokenizer, some of whose tokens end in the middle of a character."""

import functools

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = ["the cat sat on the mat, the dog sat too", "的一的不的中的猫坐在上面", "a 👍 👍 😀 😃 end"] * 20


def fast(tokenizer, **options):
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", **options)


@functools.cache
def byte_level():
    """Byte-level BPE, some of whose tokens end in the middle of a character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["</s>", "<x>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return fast(tokenizer)


@functools.cache
def vocabulary():
    """id -> bytes of the byte-level tokenizer; a special token is none."""
    signs = {}
    for byte in range(256):  # GPT-2's table: printable bytes stand for themselves, the others from U+0100 up
        printable = 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255
        signs[chr(byte) if printable else chr(256 + sum(c > "\xff" for c in signs))] = byte
    words = byte_level().get_vocab()
    return {i: bytes(signs[c] for c in word) for word, i in words.items() if word not in ("</s>", "<x>")}


def ids_of(data):
    """One token a byte."""
    single = {word: i for i, word in vocabulary().items() if len(word) == 1}
    return [single[bytes([byte])] for byte in data]


def paid(reward, *tokens, **columns):
    """Token rewards of one completion, given as the texts of its tokens."""
    text, ends = "".join(tokens), [len("".join(tokens[: t + 1])) for t in range(len(tokens))]
    columns = {name: [value] for name, value in columns.items()}
    (row,) = reward.token_rewards(["p"], [text], [list(range(len(tokens)))], [ends], **columns)
    return row
