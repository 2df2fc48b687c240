"""One trainer: configuration, batches, optimizers, averages, callbacks and reports."""
