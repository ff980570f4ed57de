"""``python -m beit``: the command line, also under torchrun."""

from beit.cli.main import main

if __name__ == "__main__":
    main()
