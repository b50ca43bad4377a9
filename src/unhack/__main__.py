"""`python -m unhack` is the command `unhack`."""

import sys

from unhack.cli import main

if __name__ == "__main__":
    sys.exit(main())
