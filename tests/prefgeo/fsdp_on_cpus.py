"""``prefgeo`` in a process that shards weights by FSDP on a CPU, for ``test_language_launch``.

accelerate turns to FSDP where it finds several accelerators, and trains by DDP on CPUs whatever its configuration says.
Here it takes the CPUs for accelerators at that one question; all else that it and transformers do is their own.
"""

from __future__ import annotations

import sys
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from prefgeo.cli import main

ordinary = AcceleratorState.__init__


def sharding(self: AcceleratorState, *args: Any, **more: Any) -> None:
    """With processes of CPUs named as those of GPUs are, when it is asked for the first time."""
    if PartialState._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    ordinary(self, *args, **more)
    assert self.distributed_type == DistributedType.FSDP and self.fsdp_plugin.fsdp_version == 2


if __name__ == "__main__":  # not where this file is only read, as by tests of all files
    AcceleratorState.__init__ = sharding
    sys.exit(main())
