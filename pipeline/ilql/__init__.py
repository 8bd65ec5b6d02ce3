"""Implicit language Q-learning: Q and V over tokens, learned offline, that shift the policy's logits in decoding."""
