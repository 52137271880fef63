"""What keeps data private where updates are not: sums that nobody can take apart, and noise that is accounted for."""
