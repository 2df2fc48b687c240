from fastdiffusion import edit

edit("photo.png", "a blue square", source="a red square", steps=4).save("out/edited.png")
