"""The Gymnasium environments: spaces, reset options, tasks, snapshots and vector environments."""
