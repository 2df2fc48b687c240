fastdiffusion stylize photo.png style.png --steps 2 --size 64 --out out/stylized-2.png
