"""A Ray cluster on this machine for tests: a head without CPUs and nodes of one CPU each.

Prints its address; then takes one word per line: `kill` ends the first node's raylet hard, `add`
adds a node. Ends with its standard input.
"""

from __future__ import annotations

import logging
import os
import sys

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # loopback (`ray_workers.py`)

from ray.cluster_utils import Cluster

STORE_BYTES = 80 * 2**20


def main() -> None:
    logging.disable(logging.ERROR)
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES) for _ in range(2)]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "kill":
            cluster.remove_node(nodes.pop(0), allow_graceful=False)
        else:
            nodes.append(cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES))
        print(line.strip(), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
