from fastdiffusion import remove_watermark

remove_watermark(["photos/0.png", "photos/1.png", "photos/2.png"]).save("out/clean")
