"""Episodes: the walker that explores, captions of what it sees, and how both lie on disk."""
