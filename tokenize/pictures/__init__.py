"""Pictures of a store: views and visual words."""
