"""New images from a model, their recipes, and the guidance that a person asks for."""
