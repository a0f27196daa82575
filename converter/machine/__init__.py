"""What the work runs on: device, memory, the processes that share a job."""
