from fastdiffusion import train_translation, translate

net = train_translation("photos", size=16, net="unet-tiny", steps=2, batch_size=2).model
translate("photo.png", net, from_edges=True)[0].save("out/from-edges.png")
