fastdiffusion clip-score photo.png "a red square" "a cat"
fastdiffusion search photos "a red square" -n 2
