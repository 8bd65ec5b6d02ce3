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
# bitsandbytes says at its import which optional kernels it lacks, also when nobody asked for 4 bits.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
