"""Language models and their attention."""
