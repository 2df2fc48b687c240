fastdiffusion restore photo.png --corruption "blur 1.5" --out out/deblurred.png
