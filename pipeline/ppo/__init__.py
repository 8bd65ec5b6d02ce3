"""PPO on the current TRL: `PPOTrainer` and `PPOConfig`; A2C and REINFORCE are settings of it.

May import: hub, rollouts, models and below.
Begin with: trainer.py, which reads as one update from top to bottom; math.py has the formulas.
"""

from pipeline.ppo.config import PPOConfig
from pipeline.ppo.trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer"]
