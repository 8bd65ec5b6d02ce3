"""The reference checks of IFEval and IFBench on cases from stdin; runs in an environment that has if-verifiable.

A line in is `[id, parameters, text]` in JSON, a line out true, false, or the error's words. NLTK's trained Punkt is
fetched from elsewhere; here stands Punkt without training, which knows no abbreviations.
"""

import importlib.util
import json
import random
import sys
import types

import nltk
from nltk.tokenize.destructive import NLTKWordTokenizer
from nltk.tokenize.punkt import PunktSentenceTokenizer

# The package's own __init__ imports what evaluates whole models; the checks need none of that.
package = types.ModuleType("if_verifiable")
package.__path__ = list(importlib.util.find_spec("if_verifiable").submodule_search_locations)
sys.modules["if_verifiable"] = package
PUNKT, TREEBANK = PunktSentenceTokenizer(), NLTKWordTokenizer()


def word_tokenize(text: str) -> list[str]:
    return [token for sentence in PUNKT.tokenize(text) for token in TREEBANK.tokenize(sentence)]


def main() -> None:
    nltk.download = lambda *names, **options: True  # the package asks for data when it is imported
    import langdetect
    from if_verifiable.ifbench import instructions_registry as ifbench
    from if_verifiable.ifeval import instructions_registry as ifeval
    from if_verifiable.ifeval import instructions_util

    nltk.word_tokenize = word_tokenize
    instructions_util._get_sentence_tokenizer = lambda: PUNKT
    langdetect.DetectorFactory.seed = 0
    kinds = ifeval.INSTRUCTION_DICT | ifbench.INSTRUCTION_DICT
    random.seed(0)
    for line in sys.stdin:
        id, parameters, text = json.loads(line)
        try:
            instruction = kinds[id](id)
            instruction.build_description(**parameters)
            verdict = bool(instruction.check_following(text))
        except Exception as error:
            verdict = f"{type(error).__name__}: {error}"
        print(json.dumps(verdict))


if __name__ == "__main__":
    main()
