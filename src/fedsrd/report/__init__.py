"""What people see: the terminal display and tables."""
