"""What reads noisy images: classifiers to guide by, and predictors of the noise level."""
