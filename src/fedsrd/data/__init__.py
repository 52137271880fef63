"""Examples: the embedded data sets, the user's own files, and how an example becomes tokens."""
