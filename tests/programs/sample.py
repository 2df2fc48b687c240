from fastdiffusion import sample

images = sample("emoji", "a red heart", n=2, steps=4, seed=1)
images.save("out/hearts")
images.save_grid("out/hearts.png")
