"""Relevance: how near in meaning a completion is to its prompt, or to a text of its row."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .base import Reward, number
from .foreign import pickle_in
from .overlap import references_of
from .text import Texts, text_of


class Relevance(Reward):
    """Cosine similarity of the sentence embeddings of the completion and its prompt, from -1 to 1.

        score = cos(e(completion), e(prompt)) = e(completion) . e(prompt) / (|e(completion)| |e(prompt)|)

    1 is the same text; what counts as near depends on the model, which the user names.

        {name: relevance, path: sentence-transformers/all-MiniLM-L6-v2}
        {name: relevance, path: models/minilm, column: references}

    An empty completion scores 0; a row without anything to compare with scores None.

    Options:
        path: a folder or hub name of a sentence-transformers model. Of a text longer than its `max_seq_length` it
            reads the beginning.
        column ("prompt"): what to compare with: the prompt, or a column with a text or a list of texts in each row,
            of which the nearest counts.
        batch_size (32): texts embedded at once.
        device (this process's).

    It needs sentence-transformers: `pip install "plumbline[embeddings]"`. In Python `model` (anything with its
    `encode`) can be handed in, already loaded; then `path` is not needed.

    Source: Reimers and Gurevych 2019, "Sentence-BERT".
    """

    python_only = ("model",)

    def __init__(
        self,
        path: str | None = None,
        column: str = "prompt",
        batch_size: int = 32,
        device: str | None = None,
        model: Any = None,
        log_name: str = "relevance",
    ):
        super().__init__(log_name)
        if (path is None) == (model is None):
            raise self.error("give either path, or (in Python) model.")
        self.path = None if path is None else str(path)
        self.column_name = column
        self.batch_size = max(1, int(number(batch_size, "batch_size", log_name)))
        self.device = device
        self._model = model

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        if self.column_name == "prompt":
            others = [references_of(text_of(prompt), "prompt") for prompt in prompts]
        else:
            others = [references_of(x, self.column_name) for x in self.column(columns, self.column_name)]
        texts = [text_of(completion).strip() for completion in completions]
        return self.score_texts(list(zip(texts, others, strict=True)))

    def prepare(self) -> None:
        _ = self.model

    def score_texts(self, rows: Sequence[tuple[str, list[str]]]) -> list[float | None]:
        """The score of each row of a completion and the texts to compare it with."""
        needed = list(dict.fromkeys(text for said, others in rows if said and others for text in (said, *others)))
        embedded: dict[str, Any] = {}  # text -> its embedding, of length 1
        if needed:
            embeddings = self.model.encode(
                needed, batch_size=self.batch_size, normalize_embeddings=True, show_progress_bar=False
            )
            embedded = dict(zip(needed, embeddings, strict=True))

        def score(said: str, others: list[str]) -> float | None:
            if not said or not others:
                return 0.0 if others else None
            return max(float(embedded[said] @ embedded[other]) for other in others)

        return [score(said, others) for said, others in rows]

    @property
    def model(self) -> Any:
        """The sentence-transformers model, loaded at the first use."""
        if self._model is None and self.path is not None:
            self._model = self._load(self.path)
        return self._model

    def _load(self, path: str) -> Any:
        if os.path.isdir(path) and (pickled := pickle_in(Path(path))):
            raise self.error(f"'{path}' has weights in a pickle ({pickled}), which is never read.")
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise self.error(
                f'it needs sentence-transformers ({error}); run `pip install "plumbline[embeddings]"`.'
            ) from error
        from .model_based import loading, process_device

        with loading(path, self.__name__):
            model = SentenceTransformer(
                path,
                device=str(self.device or process_device()),
                trust_remote_code=False,
                local_files_only=os.path.isdir(path),
                model_kwargs={"use_safetensors": True, "dtype": "float32"},
            )
        return model.requires_grad_(False)  # its `encode` puts it into evaluation mode
