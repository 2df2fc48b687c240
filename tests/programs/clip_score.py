from fastdiffusion import clip_score, search

print(clip_score("photo.png", ["a red square", "a cat"]))
print(search("photos", "a red square", n=2))
