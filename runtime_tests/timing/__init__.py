"""Speed, and the process in which it is measured."""
