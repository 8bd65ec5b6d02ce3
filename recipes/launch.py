"""`accelerate launch` that ends as the run does: `python recipes/launch.py --config_file recipes/accelerate/gpus.yaml
recipes/ppo.py --config recipes/tiny/ppo.yaml`.

torchrun, which Accelerate starts several processes with, ends with code 1 and a trace of its own whatever became of
them, and kills them half a minute after a signal, when a step and its checkpoint may not be through. Here they have
five minutes (TORCH_ELASTIC_SHUTDOWN_TIMEOUT, seconds), and the code is that of one process.
"""

import os
import sys

from accelerate.commands import launch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

SECONDS = "300"


def main() -> int:
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SECONDS)
    try:
        launch.launch_command(launch.launch_command_parser().parse_args())
    except SignalException as stopped:
        return 128 + stopped.sigval
    except KeyboardInterrupt:  # before it has started anything
        return 130
    except ChildFailedError as failed:
        code = failed.get_first_failure()[1].exitcode
        return code if code >= 0 else 128 - code  # negative: killed by that signal
    return 0


if __name__ == "__main__":
    sys.exit(main())
