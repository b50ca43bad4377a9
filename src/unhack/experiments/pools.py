"""Teacher pools that are made while an experiment runs: ordered before the runs, built by the first run that needs one.

    pools/NAME-seed-S.order.json    written by `prepare.py`: which run, and which of its rollouts
    pools/NAME-seed-S/              the pool, built by whoever starts a run that names it (every engine)

The pool of seed s holds training rollouts of the plan's arm (vanilla, say) under that same seed. Runs of one seed draw
the same training prompts step by step, so the pool's problems are those that the run meets anyway, and its rollouts
were sampled by that arm's own policy for them: no arm is shown a problem or a grade that another of its seed could not
have seen, and arms that are compared (paired by seed) have the same pool.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from unhack.config import TrainConfig
from unhack.experiments.plan import Plan, pool_path, run_folder
from unhack.experiments.references import references
from unhack.files import PARTIAL_SUFFIX, read_object, sync_folder, write_json
from unhack.pool import build_pool, read_header
from unhack.types import PlainValue

_PARTS = ("only", "modes", "per_mode", "seed")


def order_file(pool: Path) -> Path:
    """Where it is written what the pool in the folder `pool` is to be made of."""
    return pool.with_name(f"{pool.name}.order.json")


def order_pools(plan: Plan, folder: Path) -> dict[Path, str]:
    """Write the orders of the pools that runs of the plan name; path → content hash of those that are built already.

    ValueError for one that was built to another order.
    """
    built: dict[Path, str] = {}
    for name in dict.fromkeys(named for arm in plan.arms for named in pools_of(plan, plan.config(arm))):
        for seed in plan.seeds:
            path, order = pool_path(folder, name, seed), _order(plan, folder, name, seed)
            if path.exists():
                built[path] = _checked(path, order)
            write_json(order_file(path), order)
    return built


def pools_of(plan: Plan, config: TrainConfig) -> list[str]:
    """The plan's pools that the settings of an arm name: one or none."""
    return [named for reference, named in references(config) if "pools" in reference.tables and named in plan.pools]


def is_ordered(config: TrainConfig) -> bool:
    """Whether the run with these settings takes rollouts of a pool of its experiment."""
    pool = config.teacher.pool
    return pool is not None and order_file(Path(pool)).is_file()


def build_ordered(config: TrainConfig) -> None:
    """Build the pool that the run with these settings needs, if it was ordered and is not there yet.

    The finished folder appears under its name at once. Whoever else wants it meanwhile waits (flock, as for runs), and
    what a killed builder left is removed. ValueError as `build_pool`, if the run that it is made of is not finished.
    """
    if config.teacher.pool is None or not is_ordered(config):
        return
    pool = Path(config.teacher.pool)
    order = read_object(order_file(pool))
    with _alone(pool):
        if pool.exists():
            return
        building = pool.with_name(f".{pool.name}{PARTIAL_SUFFIX}")
        if building.exists():
            shutil.rmtree(building)
        first, end = order["steps"]
        parts = {name: order[name] for name in _PARTS}
        build_pool([Path(str(order["run"]))], building, first_step=first, end_step=end, **parts)
        os.rename(building, pool)
        sync_folder(pool.parent)


def _order(plan: Plan, folder: Path, name: str, seed: int) -> dict[str, PlainValue]:
    """What `build_pool` is asked for, in the words of the pool's own header, and the folder of the run."""
    one = plan.pools[name]
    first, end = one.steps or (0, None)
    run = str(run_folder(folder, one.arm, seed))
    parts = {"only": one.only, "modes": list(one.modes), "per_mode": one.per_mode, "seed": seed}
    return {"run": run, "steps": [first, end], **parts}


def _checked(pool: Path, order: Mapping[str, PlainValue]) -> str:
    """The content hash of the pool that is there, which must be of this order."""
    header = read_header(pool)
    made = {**header["request"], "run": header["runs"][0]["run"]}
    for name, wanted in {**order, "run": Path(str(order["run"])).name}.items():
        if made.get(name) != wanted:
            said = made.get(name)
            raise ValueError(f"{pool}: {name} is {said!r}, the plan's is {wanted!r}: remove it to make it anew")
    return str(header["content_hash"])


@contextmanager
def _alone(pool: Path) -> Iterator[None]:
    """Inside, no other process builds this pool; the kernel lets go of the lock when its holder dies."""
    lock = os.open(pool.with_name(f".{pool.name}.lock"), os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
