from fastdiffusion import animate

animate("film.mp4", "a watercolor", strength=0.5).save("out/film.mp4")
