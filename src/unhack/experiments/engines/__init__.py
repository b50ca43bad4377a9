"""Engines: what brings the runs of an experiment to their end, behind one interface.

    local   a process pool on this machine (`local.py`), the default
    ray     one Ray task per run, on this machine or a cluster (`ray_tasks.py`); needs the extra `unhack[ray]`
    slurm   writes array scripts for SLURM and submits nothing (`slurm.py`)

All of them skip finished runs, resume started ones from their last checkpoint, start a run only after those it needs,
and do one run in one process with one torch thread, so that the numbers do not depend on the engine. `DriverLock` keeps
two of them off one folder.
"""
