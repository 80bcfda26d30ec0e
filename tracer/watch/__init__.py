"""What is seen of a model and its optimizer while they train."""
