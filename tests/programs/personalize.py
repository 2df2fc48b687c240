from fastdiffusion import personalize, sample

dog = personalize("emoji", "photos", token="<dog>", steps=2)
sample(dog.model, "<dog> with sunglasses", n=1, steps=4).save("out/dog")
