from fastdiffusion import stylize

stylize("photo.png", "style.png", steps=2, size=64).save("out/stylized.png")
