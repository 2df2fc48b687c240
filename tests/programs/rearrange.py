from fastdiffusion import rearrange

rearrange("photo.png", n=2).save("out/rearranged")
