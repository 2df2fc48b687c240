"""Teach a trained model a subject, a style or a domain, without forgetting the rest."""
