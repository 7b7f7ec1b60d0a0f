"""The engine: one scheduling loop over workers on Ray or in this process (DESIGN §4)."""
