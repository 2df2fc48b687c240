fastdiffusion rearrange photo.png --size 96x48 -n 1 --out out/wide.png
