"""What can be said of results once they are there: pure functions of records, without clock or network."""
