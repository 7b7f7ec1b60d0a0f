"""The preprocessing program: batch jobs that turn videos and queries into a store of shards."""
