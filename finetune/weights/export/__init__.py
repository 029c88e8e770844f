"""Models of ours, out: in the form of other projects, proved against the model they come from."""
