"""``python -m whitebox``, for torchrun and accelerate launch."""

from whitebox_seg import main

if __name__ == "__main__":
    main()
