"""Between text and images: dual encoders, search, priors, languages."""
