"""Update rules: each step of an optimizer as a linear map of gradients, one file per rule."""
