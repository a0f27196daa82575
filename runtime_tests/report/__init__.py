"""What a validation leaves behind: files for people and for CI."""
