"""The verbs: what a person does with a model."""
