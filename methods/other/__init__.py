"""What fits no other family."""
