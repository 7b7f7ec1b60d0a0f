"""The training program: fits, evaluates and predicts with the models of the retrieval family."""
