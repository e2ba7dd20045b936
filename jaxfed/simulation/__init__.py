"""A run: who takes part, the engine that runs their rounds, and what is recorded and kept."""
