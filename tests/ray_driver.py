"""Drives an experiment on a real Ray cluster of two nodes in this machine and kills one of them in the middle.

    python ray_driver.py FILE FOLDER

A process of its own: Ray's threads and warnings stay out of the tests'.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unhack.experiments.engines.options import RayOptions
from unhack.experiments.engines.ray_tasks import OBJECT_STORE_BYTES, RayEngine
from unhack.experiments.plan import load_plan, needed_runs
from unhack.experiments.prepare import prepare_directions
from unhack.experiments.runs import RunProgress, lock_holder


def raylet(node: Any) -> int:
    """The process that is a node of Ray."""
    return node.all_processes["raylet"][0].process.pid


def parent(pid: int) -> int:
    """The process that started `pid`."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def main() -> None:
    file, folder = Path(sys.argv[1]), Path(sys.argv[2])
    plan = load_plan(file)
    prepare_directions(plan, folder)
    engine = RayEngine(2, RayOptions(address="", retries=2))
    make_cluster: Any = importlib.import_module("ray.cluster_utils").Cluster  # after the engine set Ray's environment
    store = {"object_store_memory": OBJECT_STORE_BYTES}
    cluster = make_cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **store})
    nodes = {raylet(node): node for node in [cluster.add_node(num_cpus=1, **store) for _ in range(2)]}
    engine.options = RayOptions(address=cluster.address, retries=2)
    lost: list[str] = []

    def lose_a_node(progress: Sequence[RunProgress]) -> None:
        for one in progress:
            holder = lock_holder(one.run.folder) if one.step >= 3 and not lost else None
            if one.state == "running" and holder is not None:
                cluster.remove_node(nodes[parent(parent(int(holder)))], allow_graceful=False)  # run ← worker ← raylet
                lost.append(one.run.id)

    ended = engine.run(needed_runs(plan, folder), lose_a_node)
    cluster.shutdown()
    for one in ended:
        resumed = (one.run.folder / "resumes.json").exists()
        print(one.run.id, one.state, "resumed" if resumed else "undisturbed", one.message)
    print("lost with its node:", *lost)
    sys.stdout.flush()
    os._exit(0)  # Ray's own threads may outlive their cluster


if __name__ == "__main__":
    main()
