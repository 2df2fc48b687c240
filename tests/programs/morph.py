from fastdiffusion import morph

morph("emoji", ["a red heart", "a blue heart"], steps=4).save("out/morph.mp4")
