"""PPO on the current TRL: `PPOTrainer` and `PPOConfig`."""

from pipeline.ppo.config import PPOConfig
from pipeline.ppo.trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer"]
