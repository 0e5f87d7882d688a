#!/usr/bin/env python
"""Orderly's one entry point: every command starts here."""

import sys

if __name__ == "__main__":
    from config.commandline import main

    main(sys.argv)
