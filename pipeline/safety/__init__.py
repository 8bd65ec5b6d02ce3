"""What is not ours is read here and nothing of it is run: files against a shape, safetensors, no secret in a log.

May import: errors, rewards.
Begin with: reading.py: JSON, YAML and lines against a shape, or one clear sentence.
"""
