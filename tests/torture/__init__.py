"""Storyline under fire: `python -m tests.torture` (or `make torture`) breaks runs, processes,
disks, videos and shards in every way that the sections know, and prints what happened as figures.

    python -m tests.torture                     all sections in full; writes docs/reliability.md
    python -m tests.torture --size short        the version of the default tests
    python -m tests.torture --only driver       one section; may be repeated

The oracle of every section is an undisturbed run (`oracle.py`). Nothing in the product knows of
these tests: processes are killed from outside, and the module `os` of the store's own modules is
replaced inside the child process that is to fail (`faulty.py`).
"""
