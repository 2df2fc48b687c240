fastdiffusion edit photo.png "a blue square" --source "a red square" --steps 4 --out out/edited.png
fastdiffusion edit "a blue heart" --source "a red heart" --seed 3 --out out/edited-2.png
