"""What every stage needs: errors, progress, the recipe and its options."""
