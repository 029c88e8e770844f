"""Encoders judged without fine-tuning: linear probe and nearest neighbours on stored features."""
