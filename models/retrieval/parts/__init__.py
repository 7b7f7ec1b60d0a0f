"""The parts that retrieval models are composed of, each once."""
