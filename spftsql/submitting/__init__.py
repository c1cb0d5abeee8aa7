"""Runs and single stages as Ray jobs: sent to a cluster, followed, and stopped."""
