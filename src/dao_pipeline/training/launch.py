"""Start the processes of a training on this node with torchrun's agent, and end as they end.

torchrun itself ends with 1 whatever its workers' exit codes were. Here the code survives: 75 from a training that
saved its state, 2 from a user's error. Several nodes need no launcher of ours: start the command with torchrun on
each.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Sequence

from dao_pipeline.errors import EXIT_CONTINUE

GRACE_SECONDS = 120
"""From the request to stop until workers are killed: a step and a checkpoint must fit.

PyTorch 2.12 and later; before, it is 30 seconds whatever is asked for.
"""


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run ``dao-pipeline ARGUMENTS`` in ``processes`` processes that know of each other; returns the exit code.

    SIGTERM and SIGUSR1 are passed on to the workers, which save their state. If one worker fails, the others are
    ended.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    os.environ["OMP_NUM_THREADS"] = str(max(1, threads // processes))
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(GRACE_SECONDS)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port
        local_addr="localhost",
        max_restarts=0,  # a failed training is run again by the workflow, from its checkpoint
        signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    )
    try:
        elastic_launch(config, sys.executable)("-m", "dao_pipeline.cli", *arguments)
    except SignalException:
        return EXIT_CONTINUE
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        # those that the agent ended have negative codes
        own = [code for code in codes if code > 0]
        return max(own, default=1)
    return 0
