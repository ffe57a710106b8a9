"""``python -m mlx_itune`` is the same as the console script ``mlx-itune``."""

from mlx_itune.cli import main

if __name__ == "__main__":
    main()
