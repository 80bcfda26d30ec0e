"""From test gradients along a step to the credit of each training example."""
