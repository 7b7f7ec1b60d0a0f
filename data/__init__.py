"""The contract on disk: video decoding, time grid, annotations, store and shards, samples."""
