"""What no honest peer says: a grammar of it, and who says it."""
