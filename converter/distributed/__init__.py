"""The processes that share a job, and how they are started."""
