"""The stages. Importing this package registers all of them; none of it imports torch."""

from pipeline.stages import (
    captions,
    events,
    features,
    i3d,
    narratives,
    panns,
    probe,
    queries,
    vgg,
)

__all__ = [
    "captions",
    "events",
    "features",
    "i3d",
    "narratives",
    "panns",
    "probe",
    "queries",
    "vgg",
]
