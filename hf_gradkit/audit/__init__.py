"""Privacy audit: what a fine-tuned model gives away about its training data."""
