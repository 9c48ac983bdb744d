"""``python -m whitebox``, for torchrun and accelerate launch."""

from whitebox.cli import main

if __name__ == "__main__":
    main()
