"""The one training loop over a Workload, in a single process or under torchrun."""
