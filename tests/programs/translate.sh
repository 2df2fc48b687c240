fastdiffusion train-translation photos --size 16 --net unet-tiny --steps 2 --batch-size 2 --folder runs/edges
fastdiffusion translate photo.png runs/edges --from-edges --out out/translated.png
