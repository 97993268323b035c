"""The kit for tests of code that runs jobs: a contract for backends, and virtual time. Nothing below imports it."""
