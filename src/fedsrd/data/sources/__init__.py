"""One file a source: from the bytes that a package carries to examples. No text of theirs stands in this repository."""
