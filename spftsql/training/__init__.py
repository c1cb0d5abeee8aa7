"""Fine-tuning: losses, batches, and the step loop over plain torch or over DeepSpeed under Ray Train."""
