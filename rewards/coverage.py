"""Coverage: how much of the content of a source text its summary keeps."""

from collections.abc import Sequence
from typing import Any

from .base import Reward
from .text import Texts, text_of, words

# English function words: articles, pronouns, prepositions, conjunctions, auxiliaries, and what `words` leaves of I'm,
# don't and the like.
STOP_WORDS = """
a an the this that these those i me my mine you your yours he him his she her hers it its we us our ours they them
their theirs who whom whose which what where when why how there here at by for from in into of off on onto out over
to up with without about after before between through during under as than and or but nor so if because while though
although until not no be am is are was were been being do does did done have has had having will would shall should
can could may might must also too very just then s t d ll m re ve
don doesn didn isn aren wasn weren hasn haven hadn couldn wouldn shouldn
""".split()


class Coverage(Reward):
    """Share of the source's content words that the completion says, from 0 to 1.

        score = |C(source) and C(completion)| / |C(source)|,    C(x) = the different content words of x

    A content word is any word but a stop word, compared without case; in scripts without spaces each character is a
    word. Numbers and names count like every other word. Whoever copies the source has 1, so give it a `length` reward
    as company: {name: length, column: source, max: 0.3}.

        {name: coverage, column: source}

    An empty completion scores 0; a source without content words scores None.

    Options:
        column ("prompt"): the source: the prompt, or a column with a text (or a list of texts, taken as one).
        stop_words (about 130 English function words): a list to take their place, in any language.

    Source: unigram recall (ROUGE-1 without stop words, Lin 2004) against the source in place of a reference, as Louis
    and Nenkova 2013, "Automatically Assessing Machine Summary Content Without a Gold Standard", compare a summary with
    its input. "Coverage" in Grusky et al. 2018 (Newsroom) is another thing: the share of the summary's words that are
    copied from the source.
    """

    def __init__(self, column: str = "prompt", stop_words: Sequence[str] | None = None, log_name: str = "coverage"):
        super().__init__(log_name)
        self.column_name = column
        if stop_words is not None and (
            isinstance(stop_words, str) or not all(isinstance(word, str) for word in stop_words)
        ):
            raise self.error(f"stop_words is {stop_words!r:.100}; give a list of words ([] for none).")
        self.stop_words = set(words(" ".join(STOP_WORDS if stop_words is None else stop_words)))

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        sources = self.texts(prompts, columns, self.column_name)
        return [self.score(text_of(said), source) for said, source in zip(completions, sources, strict=True)]

    def score(self, completion: str, source: str) -> float | None:
        """The score of one completion; None for a source without content words."""
        wanted = self.content_words(source)
        return len(wanted & self.content_words(completion)) / len(wanted) if wanted else None

    def content_words(self, text: str) -> set[str]:
        """The different words of `text` that are no stop words."""
        return set(words(text)) - self.stop_words
