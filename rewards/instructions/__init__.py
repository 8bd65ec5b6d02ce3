"""Verifiable instructions: what a text is told to be, checked by a program.

`kinds` says what a kind is, `reading` what words and sentences are; `ifeval`, `ifbench` and `plain` hold the kinds,
`reward` the reward.
"""

from .kinds import RELATIONS, Kind, Parameter
from .reward import KINDS, Instructions, met, read

__all__ = ["KINDS", "RELATIONS", "Instructions", "Kind", "Parameter", "met", "read"]
