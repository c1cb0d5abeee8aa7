"""Training beside TRL's `DPOTrainer` and a plain transformers loop: speed and memory."""
