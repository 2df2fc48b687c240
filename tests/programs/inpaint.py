from fastdiffusion import sample

sample("emoji", "a red heart", guidance="inpaint photo.png mask.png", n=1, steps=4).save("out/inpainted")
