from fastdiffusion import sample_tokens, train_autoencoder, train_token_prior

autoencoder = train_autoencoder("digits", kind="fsq", steps=2, width=8, batch_size=4).model
prior = train_token_prior(autoencoder, "digits", steps=2, width=32, depth=1, batch_size=4).model
print(sample_tokens(prior, n=2, steps=2).images.shape)
