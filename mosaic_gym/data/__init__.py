"""Episodes: explore, record, store, batch."""
