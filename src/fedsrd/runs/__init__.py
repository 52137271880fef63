"""What a run leaves behind: its folder, its records, and its adapter's card. Needs no engine and no model."""
