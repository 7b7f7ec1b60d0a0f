"""Networks only: backbones, captioners, text encoders and the retrieval family."""
