"""The stages. Importing this package registers all of them; none of it imports torch."""

from pipeline.stages import captions, events, features, narratives, probe, queries

__all__ = ["captions", "events", "features", "narratives", "probe", "queries"]
