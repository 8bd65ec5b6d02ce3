"""The stages of Plumbline as a library: SFT, reward model and PPO with LoRA adapters on the Hugging Face stack."""

import logging
import os
import sys

__version__ = "0.1.0"

# No request leaves the machine unless the user asks for the Hub: `HF_HUB_DISABLE_TELEMETRY=0` switches it on again.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# The tokenizers library warns at every fork when this is unset.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1" and "huggingface_hub.constants" in sys.modules:
    # Read once at its import, so the environment alone comes too late.
    sys.modules["huggingface_hub.constants"].HF_HUB_DISABLE_TELEMETRY = True
# OpenMP's threads wait for each other at the end of every parallel loop, by default for many milliseconds without
# sleeping. Where another program runs as well, two of them are thereby several times slower than one. A fraction of a
# millisecond bridges the way to the next loop all the same. libgomp reads it once, when torch loads it.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
# bitsandbytes says at its import which optional kernels it lacks, also when nobody asked for 4 bits.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
