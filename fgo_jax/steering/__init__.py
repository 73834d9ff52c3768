"""Reading an optimizer's state, and steering it by hand."""
