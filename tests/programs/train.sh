fastdiffusion train digits --net unet-tiny --steps 3 --folder runs/digits-again
fastdiffusion train digits --net unet-tiny --steps 3 --folder runs/digits-again
