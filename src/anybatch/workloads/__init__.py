"""Built-in workloads, and how a workload is found by name or in a user's file."""

from anybatch.workloads.load import load_workload

__all__ = ["load_workload"]
