"""The model card moved to `pipeline.hub.card`; this name forwards to it until 0.3."""

from pipeline.hub.card import *  # noqa: F403
