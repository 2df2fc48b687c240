from fastdiffusion import restore

restore("photo.png", "upscale x2").save("out/upscaled.png")
