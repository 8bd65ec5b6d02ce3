"""Reconstruction: how well the prompt can be told from the completion alone."""

from typing import Any

from .perplexity import Perplexity
from .text import Texts, text_of


class Reconstruction(Perplexity):
    """The mean log-probability of the prompt, read back from the completion by a frozen language model; at most 0.

        score = 1/T * sum over t of log p(x_t | completion, newline, x_1 .. x_t-1)

    over the T tokens x of the prompt, in nats. A completion that leaves out, changes or invents something makes the
    prompt less likely. The model must have learned to read in this direction: a base trained on texts followed by
    their prompts, or an SFT adapter whose rows have the text and a newline as `prompt` and the prompt as `completion`.

        {name: reconstruction, path: runs/e2e/base, clip: [-2, 0]}

    A completion without text scores -log V.

    Options:
        path: a folder or hub name of such a model, or of a LoRA adapter on one.
        max_length (the model's): the longest text in tokens; of a longer one the beginning is left out.
        batch_size (32): texts scored at once.
        device (this process's), dtype ("auto", as saved; float32 where the
            processor has no units for 16 bits).

    Source: Tu et al. 2017, "Neural Machine Translation with Reconstruction"; as a score of candidates Li et al. 2016,
    "A Diversity-Promoting Objective Function for Neural Conversation Models" (the p(source | target) of MMI-bidi).
    """

    def __init__(
        self,
        path: str | None = None,
        max_length: int | None = None,
        batch_size: int = 32,
        device: str | None = None,
        dtype: str = "auto",
        model: Any = None,
        tokenizer: Any = None,
        log_name: str = "reconstruction",
    ):
        super().__init__(path, True, max_length, batch_size, device, dtype, model, tokenizer, log_name)

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        self._prepare()
        texts = [text_of(completion).strip() for completion in completions]
        pairs = [(f"{text}\n", text_of(prompt)) for text, prompt in zip(texts, prompts, strict=True) if text]
        scores = iter(super().__call__([text for text, _ in pairs], [prompt for _, prompt in pairs]))
        return [next(scores) if text else self._of_nothing for text in texts]
