"""`python -m cervicyte`, and `accelerate launch -m cervicyte train …` for several GPUs."""

from cervicyte.cli import main

if __name__ == "__main__":
    main()
