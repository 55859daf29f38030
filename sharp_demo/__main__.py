import sys

from sharp_demo.cli import main

if __name__ == "__main__":
    sys.exit(main())
