"""Many methods on equal terms: the same data order, start, local steps and evaluation, by recipe and seed."""
