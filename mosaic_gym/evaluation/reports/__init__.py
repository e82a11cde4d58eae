"""Contact sheets, videos and plots of results."""
