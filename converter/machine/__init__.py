"""What the work runs on: device, memory, arithmetic."""
