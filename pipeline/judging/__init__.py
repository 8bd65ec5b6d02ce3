"""People as judges: a small local page that shows two completions blind and takes 1, 2 or tie.

May import: data, exam and below.
Begin with: stage.py.

| file | what |
|---|---|
| `stage.py` | the settings and the steps of `recipes/judge.py` |
| `pairs.py` | which completions are compared, in which order, and on which side each stands |
| `verdicts.py` | one judge's file: a line for each verdict, safe against a kill at any moment |
| `server.py` | the page on the loopback address (`templates/judge.html.j2`) |
| `results.py` | preference pairs for `make reward`, and the summary |
| `agreement.py` | interval of a win rate, Cohen's kappa, Krippendorff's alpha |
"""

from pipeline.judging.stage import JudgeSettings, run

__all__ = ["JudgeSettings", "run"]
